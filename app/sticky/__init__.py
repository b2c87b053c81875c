"""Where a client's last good model is kept."""
