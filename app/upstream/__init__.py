"""Everything that talks to the backend."""
