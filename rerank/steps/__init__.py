"""The steps from neighbours to predictions, pure functions."""
