"""The commands of `lmk data`."""
