"""Fits tables, thresholds and calibrations to a gallery."""
