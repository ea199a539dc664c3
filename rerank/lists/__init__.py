"""Retrieval lists."""
