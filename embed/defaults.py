"""The models that are taken where none is named; light, so that --help can name them."""

DEFAULT = "landmarks-lite1"  # the embedder
DEFAULT_TAGGER = "tags-lite1"
