"""What this host has seen: of each model, of its requests, of the feeds."""
