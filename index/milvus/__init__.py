"""Search on a Milvus server."""
