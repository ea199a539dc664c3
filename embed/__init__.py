"""Pictures to vectors: manifests, decoding, embedders, streamed extraction."""
