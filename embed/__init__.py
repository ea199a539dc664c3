"""Embedders: manifests, decoding of pictures, networks, extraction of vectors, training."""
