"""The life of an index: build, sync, merge, repair."""
