"""The commands of `lmk eval`."""
