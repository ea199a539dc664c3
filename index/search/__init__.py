"""The choice of a search, and search in bulk."""
