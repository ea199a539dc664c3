"""A FAISS index that proposes candidates, which are scored from the vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.embed.progress import Message
from lmk.index.ann.faiss_build import load_or_build
from lmk.index.ann.faiss_factory import describe_effort, efforts, search_parameters
from lmk.index.ann.index_files import PreviousResult, SearchFilter
from lmk.index.exact.flat import blas
from lmk.index.vectors.neighbours import NO_ROW, RowScores
from lmk.index.vectors.rescoring import rescore
from lmk.index.vectors.view import View

_REFUSAL = "params"  # in FAISS's message if an index cannot search among chosen positions


class FaissIndex:
    """A FAISS index of the rows of a view; see searcher.Index.

    Args:
        view: the view to search.
        kind: "ivfpq", "hnsw" or a FAISS factory string.
        on_message: called with a line of text while the index is built.

    Raises:
        UsageError: FAISS cannot build the factory string for this gallery.
    """

    scored = False  # scores by codes are approximate

    def __init__(self, view: View, kind: str, on_message: Message) -> None:
        self._stored = view.stored
        self.built = load_or_build(view, kind, on_message)
        self.efforts = efforts(self.built.index, len(self.built.rows))
        self._filters = True  # the index can search among chosen positions

    def describe(self, effort: int) -> str:
        """Returns a description of an effort."""
        return describe_effort(self.built.index, effort)

    def nearest(
        self,
        queries: NDArray[np.float32],
        k: int,
        depth: int,
        effort: int,
        search_filter: SearchFilter,
        previous: PreviousResult | None = None,
    ) -> RowScores:
        """Returns the best k of `depth` candidates, with their scores; see searcher.Index."""
        proposed = self.propose(queries, depth, effort, search_filter)
        query, place = np.nonzero(proposed != NO_ROW)
        return rescore(self._stored, queries, query, proposed[query, place], k)

    def propose(
        self, queries: NDArray[np.float32], depth: int, effort: int, search_filter: SearchFilter
    ) -> NDArray[np.int64]:
        """Returns the rows proposed, best first, int64 [q, depth]; NO_ROW fills the end."""
        rows = self.built.rows
        depth = min(depth, len(rows))
        if search_filter.positions is None:
            positions = self._query(queries, depth, effort, None)
        else:  # fewer allowed rows lie further apart
            share = search_filter.count / len(rows)
            last = self.efforts[-1]
            effort = max(1, min(last, round(effort / share)))
            positions = self._query(queries, depth, effort, search_filter.positions)
            if positions is None:
                positions = self._query(queries, min(len(rows), round(depth / share)), effort, None)
        assert positions is not None
        present = positions >= 0
        chosen = np.where(present, rows[positions], NO_ROW)
        return np.where(present & search_filter.inside[chosen], chosen, NO_ROW)

    def _query(
        self,
        queries: NDArray[np.float32],
        depth: int,
        effort: int,
        positions: NDArray[np.bool_] | None,
    ) -> NDArray[np.int64] | None:
        """Returns the nearest positions; None if the index cannot search among chosen ones."""
        if positions is not None and not self._filters:
            return None
        index = self.built.index
        parameters = search_parameters(index, effort, positions)
        with blas(len(queries)):
            try:
                nearest: NDArray[np.int64] = index.search(queries, depth, params=parameters)[1]
            except RuntimeError as error:
                if positions is None or _REFUSAL not in str(error):
                    raise
                self._filters = False
                return None
        return nearest
