"""Commands about tags."""
