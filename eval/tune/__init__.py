"""Honest choices: grids, folds, calibration."""
