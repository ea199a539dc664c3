"""The gallery folder: read, write, compact, merge, verify."""
