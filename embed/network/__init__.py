"""Pixels to features: backbone, pooling, runtime."""
