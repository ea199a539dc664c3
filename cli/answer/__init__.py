"""Commands that answer: query, submit, tune, calibrate, demo."""
