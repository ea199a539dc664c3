"""Choice of pipelines, calibrations and thresholds on held-out photos."""
