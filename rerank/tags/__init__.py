"""Taggers of pictures, thresholds of tags, and votes for tags."""
