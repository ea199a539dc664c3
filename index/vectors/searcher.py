"""The protocol that every search follows."""

from __future__ import annotations

from typing import Protocol

from lmk.embed.embeddings import Embeddings
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.view import Allow


class Searcher(Protocol):
    """Searches the rows of a View that are nearest to queries."""

    @property
    def reason(self) -> str:
        """Description of the search and the reason for its choice, for a user."""
        ...

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        """Returns the k nearest rows of each query, by descending score, then ascending row.

        A score is the float64 dot product of the query and the result of Vectors.read for the row,
        rounded to float32. All searchers return the same score. If there are fewer than k rows,
        NO_ROW and -inf fill the end, up to a width that View.check limits.

        Args:
            queries: vectors of the gallery's embedder.
            k: number of neighbours.
            allow: the rows of the view that may be returned. Default: all.

        Raises:
            UsageError, EmbedderMismatch, ValueError, GalleryDamaged: see View.check, View.allowed.
        """
        ...
