"""The `lmk` command line: thin functions over the library."""
