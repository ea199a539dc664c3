"""Building, changing, merging and repairing an index."""
