"""The SQLite catalog of a gallery."""
