"""Stickiness: which model last answered a client, and where that is kept."""
