"""Predictions to scores: truth, submissions and the contest metrics."""
