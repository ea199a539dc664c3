"""The commands query, submit, tune, calibrate and demo."""
