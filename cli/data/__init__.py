"""The commands of `lmk data`, and relabel."""
