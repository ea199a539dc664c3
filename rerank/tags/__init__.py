"""Tags of pictures: taggers, thresholds, votes."""
