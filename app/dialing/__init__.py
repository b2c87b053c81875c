"""How TCP connections are made, and how it is noticed that their peer has vanished."""
