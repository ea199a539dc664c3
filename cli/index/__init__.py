"""Commands that build and keep an index."""
