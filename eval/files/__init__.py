"""Contest files: submissions and solutions."""
