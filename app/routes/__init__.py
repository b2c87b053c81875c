"""The HTTP surface: Flask blueprints and error answers."""
