"""The commands tag and tag-thresholds."""
