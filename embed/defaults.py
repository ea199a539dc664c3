"""Names of the default models; this module imports nothing, so that --help can use them."""

DEFAULT = "landmarks-lite1"  # the embedder
DEFAULT_TAGGER = "tags-lite1"
