"""Faults in labelled photos."""
