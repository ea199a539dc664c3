"""Functions that build, change, merge and repair an index."""
