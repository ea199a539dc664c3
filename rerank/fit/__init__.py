"""What a gallery learns: tables, threshold, calibration."""
