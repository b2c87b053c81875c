"""Cooling: what this host has just seen of each model, and which it sets aside for that."""
