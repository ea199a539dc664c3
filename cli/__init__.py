"""The `lmk` command line, which calls the library and prints its results."""
