"""Vectors to neighbours: the gallery on disk and the search over it."""
