"""Local features of a picture."""
