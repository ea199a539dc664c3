"""Vectors, labels and neighbours: what a search reads and gives."""
