"""The protocol that every search follows."""

from __future__ import annotations

from typing import Protocol

from lmk.embed.embeddings import Embeddings
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.view import Allow


class Searcher(Protocol):
    """Finds the rows of a View nearest to queries."""

    @property
    def reason(self) -> str:
        """Which kind of search this is and why it was chosen, in words for a user."""
        ...

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        """Returns the k nearest rows of each query, by score falling, then row rising.

        A score is the float64 dot product of the query and of what Vectors.read gives for the row,
        rounded to float32: every searcher that is exact or refines gives the same number.
        Where there are fewer than k rows, NO_ROW and -inf fill the end; beyond the rows of the
        gallery and LEAST_WIDTH there is no end to fill (View.check).

        Args:
            queries: of the gallery's embedder.
            k: neighbours wanted.
            allow: the rows of the view that may be found; all unless given.

        Raises:
            UsageError, EmbedderMismatch, ValueError, GalleryDamaged: see View.check, View.allowed.
        """
        ...
