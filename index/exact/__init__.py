"""Certified exact search."""
