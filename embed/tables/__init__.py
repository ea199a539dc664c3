"""CSV and text files, and the labels in them."""
