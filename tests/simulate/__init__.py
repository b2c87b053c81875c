"""A fleet of chutes in a model, and what the router's own choices do to it."""
