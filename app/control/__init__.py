"""What keeps the picture of the backend fresh."""
