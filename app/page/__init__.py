"""The router's picture: as JSON, and as a page that a person reads."""
