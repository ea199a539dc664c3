"""The contents of an error report."""
