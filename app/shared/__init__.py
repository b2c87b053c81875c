"""Small state that the processes of one router share."""
