"""Search: queries to neighbours, and the choice of how to search a gallery."""

from __future__ import annotations

from typing import Protocol

from lmk.embed.embeddings import Embeddings
from lmk.index.catalog import Role
from lmk.index.gallery import Gallery
from lmk.index.neighbours import Neighbours


class Searcher(Protocol):
    """Finds the rows of a gallery nearest to queries."""

    @property
    def reason(self) -> str:
        """Why this kind of search was chosen, in words for a user."""
        ...

    def search(self, queries: Embeddings, k: int) -> Neighbours:
        """Returns the k nearest rows of each query, by score falling, then row rising.

        Where there are fewer than k rows, NO_ROW and -inf fill the end.

        Raises:
            UsageError: for k below 1.
            EmbedderMismatch: for queries of another embedder than the gallery's.
            ValueError: for queries of another dim.
        """
        ...


def choose(gallery: Gallery, role: Role = "gallery") -> Searcher:
    """Returns a searcher over the rows of one role; it stays usable when the gallery closes."""
    from lmk.index.faiss_search import FlatSearcher  # FAISS takes most of a second to import

    return FlatSearcher.of_gallery(gallery, role)
