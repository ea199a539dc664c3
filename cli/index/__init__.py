"""Commands that build, change, search and check an index."""
