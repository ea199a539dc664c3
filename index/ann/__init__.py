"""Approximate search: cells, FAISS, HNSW."""
