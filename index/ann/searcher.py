"""Approximate search: an index proposes candidates, which are scored from their vectors."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.embed.plain_files import parse_json
from lmk.embed.progress import Message, no_message
from lmk.index.ann.faiss_factory import CELLS
from lmk.index.ann.faiss_index import FaissIndex
from lmk.index.ann.index_files import PreviousResult, SearchFilter, StoredIndex
from lmk.index.ann.recall import Tuned, tune
from lmk.index.exact.flat import FlatSearcher
from lmk.index.vectors.neighbours import NO_ROW, Neighbours, RowScores
from lmk.index.vectors.rescoring import best_of
from lmk.index.vectors.view import Allow, View

FEW_ROWS = 10_000  # up to this number, allowed rows are compared one by one
_BLOCK_QUERIES = 1024


class Index(Protocol):
    """Interface of an approximate index over the rows of a view: FaissIndex or CellIndex.

    Attributes:
        built: the stored index, with its rows.
        efforts: the efforts that a search can have, ascending.
        scored: whether the index scores every row that it compares; see recall.tune.
    """

    built: StoredIndex
    efforts: tuple[int, ...]
    scored: bool

    def describe(self, effort: int) -> str:
        """Returns a description of an effort."""
        ...

    def nearest(
        self,
        queries: NDArray[np.float32],
        k: int,
        depth: int,
        effort: int,
        search_filter: SearchFilter,
        previous: PreviousResult | None = None,
    ) -> RowScores:
        """Returns near rows of each query, with their scores.

        Args:
            queries: float32 [q, dim].
            k: the number of rows wanted.
            depth: the number of candidates to score, for an index that proposes candidates.
            effort: one of `efforts`.
            search_filter: the rows that may be returned.
            previous: result of the same search with less effort, which an index may continue.

        Returns:
            rows int64 and scores float32 [q, k] by descending score, then ascending row; NO_ROW
            and -inf fill the end.
        """
        ...

    def propose(
        self, queries: NDArray[np.float32], depth: int, effort: int, search_filter: SearchFilter
    ) -> NDArray[np.int64]:
        """Returns the proposed rows, best first, int64 [q, depth]; NO_ROW fills the end."""
        ...


class ApproximateSearcher:
    """Approximate search in an index that is tuned to a wanted recall by measurement.

    The index proposes candidates, and their scores are computed from the vectors of the gallery, as
    in every other search. Exact search covers the rows that were added since the index was built,
    searches with few allowed rows, and queries for which the index returns fewer rows than are
    wanted and allowed. Removed rows are left out.

    The index is loaded from the gallery's derived files, or built and saved there, which takes
    minutes for a million vectors. Two builds may differ in the last bits of their centres or in
    the links of a graph. A saved index always gives the same answers.

    Args:
        view: the view to search; at least 100 rows.
        kind: "ivf", "ivfpq", "hnsw" or a FAISS factory string.
        recall: the recall@10 (and @100) wanted, from 0 to 1.
        on_message: called with a line of text while an index is built.

    Attributes:
        reason: description of the search and its recall.
        factory: the FAISS factory string.
        tuned: settings of the search with the measured recall.

    Raises:
        UsageError: FAISS cannot build an index of this kind for the gallery.
    """

    def __init__(
        self, view: View, kind: str, *, recall: float = 0.99, on_message: Message = no_message
    ) -> None:
        self._view = view
        self._index = _index_of(view, kind, on_message)
        self._built = self._index.built
        self.factory = self._built.factory
        self._ready = SearchFilter.of(self._built, view.mask)
        self._exact = FlatSearcher(view, hold=False)
        missing = view.mask & ~self._built.covered
        self._beside = FlatSearcher(replace(view, mask=missing)) if missing.any() else None
        self.tuned = self._tuning(recall, on_message)
        self.reason = self._description(kind, recall)

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        """Returns near rows of each query, with their exact scores; see Searcher.search."""
        k = self._view.check(queries, k)
        allowed = self._view.allowed(allow)
        search_filter = self._ready if allow is None else SearchFilter.of(self._built, allowed)
        if allow is not None and search_filter.count <= FEW_ROWS:
            return self._exact.search(queries, k, allowed)
        rows = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        for start in range(0, len(queries), _BLOCK_QUERIES):
            piece = slice(start, start + _BLOCK_QUERIES)
            block = np.ascontiguousarray(queries.vectors[piece])
            rows[piece], scores[piece] = self._nearest(block, k, search_filter)
        near = self._completed(Neighbours(rows, scores, queries.ids), queries, search_filter)
        return near if self._beside is None else self._with_others(near, queries, allowed)

    def _nearest(
        self, queries: NDArray[np.float32], k: int, search_filter: SearchFilter
    ) -> RowScores:
        """Returns rows and scores [q, k] of the index."""
        setting = next((one for one in self.tuned if one.k >= k), self.tuned[-1])
        depth = max(k, setting.k) * setting.factor
        rows, scores = self._index.nearest(queries, k, depth, setting.effort, search_filter)
        last = min(k, setting.k) - 1
        again = np.flatnonzero(scores[:, last] < setting.rescore_below)
        if again.size:
            previous = PreviousResult(rows[again], scores[again], setting.effort)
            rows[again], scores[again] = self._index.nearest(
                queries[again], k, depth, setting.second_effort, search_filter, previous
            )
        return rows, scores

    def _completed(
        self, near: Neighbours, queries: Embeddings, search_filter: SearchFilter
    ) -> Neighbours:
        """Replaces answers with too few rows by those of exact search."""
        least = min(near.k, search_filter.count)
        short = np.flatnonzero((near.rows != NO_ROW).sum(axis=1) < least)
        if not short.size:
            return near
        some = Embeddings(
            queries.vectors[short], tuple(queries.ids[i] for i in short), queries.fingerprint
        )
        exact = self._exact.search(some, near.k, search_filter.inside)
        rows, scores = near.rows.copy(), near.scores.copy()
        rows[short], scores[short] = exact.rows, exact.scores
        return Neighbours(rows, scores, near.query_ids)

    def _with_others(
        self, near: Neighbours, queries: Embeddings, allowed: NDArray[np.bool_]
    ) -> Neighbours:
        """Adds the rows that the index does not cover."""
        assert self._beside is not None
        others = self._beside.search(queries, near.k, allowed)
        results = [(near.rows, near.scores), (others.rows, others.scores)]
        return Neighbours(*best_of(results, near.k), near.query_ids)

    def _tuning(self, goal: float, on_message: Message) -> tuple[Tuned, ...]:
        """Returns the settings of the search, read from their file or measured and saved."""
        name = f"{self._built.stem}.{goal:g}.json"
        content = self._view.derived.content(name)
        if content is not None:
            with suppress(ValueError, TypeError):  # not written by this program
                if saved := tuple(Tuned.from_json(one) for one in parse_json(content)):
                    return saved
        on_message(f"measuring the recall of {self.factory}")
        index = self._index
        view = replace(self._view, mask=self._ready.inside)
        propose = partial(index.propose, search_filter=self._ready)
        tuned = tune(view, propose, index.efforts, goal, scored=index.scored)
        text = json.dumps([one.to_json() for one in tuned]).encode()
        self._view.derived.save(name, lambda path: path.write_bytes(text))
        return tuned

    def _description(self, kind: str, goal: float) -> str:
        one = self.tuned[0]
        name = kind if kind == self.factory else f"{kind} ({self.factory})"
        goal_words = f"below the {goal:g} asked for" if one.recall < goal else f"{goal:g} asked for"
        describe = self._index.describe
        second = f" ({describe(one.second_effort)} by {one.second_share:.0%} of queries)"
        candidates = f", {one.k * one.factor} candidates are scored again"
        how = f"{describe(one.effort)}{second if one.second_share else ''}"
        how += "" if self._index.scored else candidates
        return f"{name}: {how}; recall@{one.k} {one.recall:.3f} measured, {goal_words}"


def _index_of(view: View, kind: str, on_message: Message) -> Index:
    if kind == CELLS:
        from lmk.index.ann.cells import CellIndex  # numba takes a while to import

        return CellIndex(view, on_message)
    return FaissIndex(view, kind, on_message)
