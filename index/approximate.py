"""Approximate search with FAISS indexes: what they propose is scored again from the vectors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.faiss_files import Tell, load_or_build
from lmk.index.faiss_recipes import effort_words, efforts, search_parameters
from lmk.index.faiss_search import FlatSearcher, blas
from lmk.index.neighbours import NO_ROW, Neighbours
from lmk.index.rescoring import best, rescore
from lmk.index.tuning import Tuned, tune
from lmk.index.view import Allow, View

FEW_ROWS = 10_000  # of those allowed are compared one by one rather than looked for
_BLOCK_QUERIES = 1024
_REFUSAL = "params"  # in what FAISS says where an index cannot search among chosen positions


@dataclass(frozen=True, eq=False)
class _Among:
    """What may be found in the index.

    Attributes:
        inside: bool [rows], the rows.
        positions: bool [ntotal], their positions in the index; None if that is all of them.
        count: how many there are.
    """

    inside: NDArray[np.bool_]
    positions: NDArray[np.bool_] | None
    count: int


class ApproximateSearcher:
    """Search in a FAISS index, tuned to a recall that it was measured to have.

    The index proposes candidates, and the vectors of the gallery give their scores, as in every
    other search, so an index keeps no vectors of its own. Rows added since it was built are
    searched exactly beside it, removed ones left out, and few allowed rows compared one by one.
    As many rows as are wanted and allowed are always found: where the index gives fewer, exact
    search answers the query.

    The index is loaded from the gallery's derived files, or built and kept there, which takes
    minutes for a million vectors. Built twice, an index may differ in the last bits of its centres,
    and a graph in its links; a kept one gives the same answers always.

    Args:
        view: what is searched; at least 100 rows.
        kind: "ivfpq", "hnsw" or a FAISS factory string.
        recall: the recall@10 (and @100) wanted, from 0 to 1.
        tell: is told what is going on while an index is built.

    Attributes:
        reason: which search this is, and the recall it has, in words for a user.
        factory: the FAISS factory string.
        tuned: how it searches, with the recall measured.

    Raises:
        UsageError: for a factory string that FAISS cannot build for this gallery.
    """

    def __init__(
        self, view: View, kind: str, *, recall: float = 0.99, tell: Tell = lambda _: None
    ) -> None:
        self._view = view
        self._built = load_or_build(view, kind, tell)
        self.factory = self._built.factory
        self._ready = self._among(view.mask)
        self._exact = FlatSearcher(view, hold=False)
        missing = view.mask & ~self._built.covered
        self._beside = FlatSearcher(replace(view, mask=missing)) if missing.any() else None
        self._filters = True  # the index can search among chosen positions
        self.tuned = self._tuning(recall, tell)
        self.reason = self._words(kind, recall)

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        """Returns near rows of each query, with their exact scores; see Searcher.search."""
        self._view.check(queries, k)
        allowed = self._view.allowed(allow)
        among = self._ready if allow is None else self._among(allowed)
        if allow is not None and among.count <= FEW_ROWS:
            return self._exact.search(queries, k, allowed)
        rows = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        for start in range(0, len(queries), _BLOCK_QUERIES):
            piece = slice(start, start + _BLOCK_QUERIES)
            block = np.ascontiguousarray(queries.vectors[piece])
            rows[piece], scores[piece] = self._nearest(block, k, among)
        found = Neighbours(rows, scores, queries.ids)
        found = self._completed(found, queries, among)
        return found if self._beside is None else self._with_others(found, queries, allowed)

    def _among(self, allowed: NDArray[np.bool_]) -> _Among:
        inside = allowed & self._built.covered
        positions = inside[self._built.rows]
        count = int(np.count_nonzero(positions))
        return _Among(inside, None if count == len(positions) else positions, count)

    def _nearest(
        self, queries: NDArray[np.float32], k: int, among: _Among
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns rows and scores [q, k] of what the index finds."""
        setting = next((one for one in self.tuned if one.k >= k), self.tuned[-1])
        depth = max(k, setting.k) * setting.factor
        rows, scores = self._found(queries, k, depth, setting.effort, among)
        last = min(k, setting.k) - 1
        again = np.flatnonzero(scores[:, last] < setting.sure)
        if again.size:
            rows[again], scores[again] = self._found(queries[again], k, depth, setting.more, among)
        return rows, scores

    def _found(
        self, queries: NDArray[np.float32], k: int, depth: int, effort: int, among: _Among
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        proposed = self._propose(queries, depth, effort, among)
        query, place = np.nonzero(proposed != NO_ROW)
        return rescore(self._view.stored, queries, query, proposed[query, place], k)

    def _propose(
        self, queries: NDArray[np.float32], depth: int, effort: int, among: _Among
    ) -> NDArray[np.int64]:
        """Returns the rows proposed, best first, int64 [q, depth]; NO_ROW fills the end."""
        index, rows = self._built.index, self._built.rows
        depth = min(depth, len(rows))
        if among.positions is None:
            found = self._ask(queries, depth, effort, None)
        else:  # those that may be found lie further apart
            share = among.count / len(rows)
            last = efforts(index, len(rows))[-1]
            effort = max(1, min(last, round(effort / share)))
            found = self._ask(queries, depth, effort, among.positions)
            if found is None:
                found = self._ask(queries, min(len(rows), round(depth / share)), effort, None)
        assert found is not None
        known = found >= 0
        chosen = np.where(known, rows[found], NO_ROW)
        return np.where(known & among.inside[chosen], chosen, NO_ROW)

    def _ask(
        self,
        queries: NDArray[np.float32],
        depth: int,
        effort: int,
        positions: NDArray[np.bool_] | None,
    ) -> NDArray[np.int64] | None:
        """Returns the positions the index finds; None if it cannot search among chosen ones."""
        if positions is not None and not self._filters:
            return None
        index = self._built.index
        parameters = search_parameters(index, effort, positions)
        with blas(len(queries)):
            try:
                found: NDArray[np.int64] = index.search(queries, depth, params=parameters)[1]
            except RuntimeError as error:
                if positions is None or _REFUSAL not in str(error):
                    raise
                self._filters = False
                return None
        return found

    def _completed(self, found: Neighbours, queries: Embeddings, among: _Among) -> Neighbours:
        """Has exact search answer the queries for which the index found too few rows."""
        least = min(found.k, among.count)
        short = np.flatnonzero((found.rows != NO_ROW).sum(axis=1) < least)
        if not short.size:
            return found
        some = Embeddings(
            queries.vectors[short], tuple(queries.ids[i] for i in short), queries.fingerprint
        )
        exact = self._exact.search(some, found.k, among.inside)
        rows, scores = found.rows.copy(), found.scores.copy()
        rows[short], scores[short] = exact.rows, exact.scores
        return Neighbours(rows, scores, found.query_ids)

    def _with_others(
        self, found: Neighbours, queries: Embeddings, allowed: NDArray[np.bool_]
    ) -> Neighbours:
        """Adds the rows that the index does not hold."""
        assert self._beside is not None
        others = self._beside.search(queries, found.k, allowed)
        rows = np.concatenate([found.rows, others.rows], axis=1)
        scores = np.concatenate([found.scores, others.scores], axis=1)
        query, place = np.nonzero(rows != NO_ROW)
        merged = best(query, rows[query, place], scores[query, place], len(queries), found.k)
        return Neighbours(*merged, found.query_ids)

    def _tuning(self, goal: float, tell: Tell) -> tuple[Tuned, ...]:
        """Returns how to search, from the file that says it or by trying."""
        name = f"{self._built.stem}.{goal:g}.json"
        path = self._view.derived.load(name)
        if path is not None:
            try:
                if kept := tuple(Tuned(**one) for one in json.loads(path.read_bytes())):
                    return kept
            except (OSError, ValueError, TypeError):
                pass  # removed meanwhile, or not written by this program
        tell(f"measuring the recall of {self.factory}")
        index, total = self._built.index, len(self._built.rows)
        view = replace(self._view, mask=self._ready.inside)
        tuned = tune(view, self._propose_ready, efforts(index, total), goal)
        text = json.dumps([asdict(one) for one in tuned]).encode()
        self._view.derived.save(name, lambda path: _write(path, text))
        return tuned

    def _propose_ready(
        self, queries: NDArray[np.float32], depth: int, effort: int
    ) -> NDArray[np.int64]:
        return self._propose(queries, depth, effort, self._ready)

    def _words(self, kind: str, goal: float) -> str:
        one = self.tuned[0]
        name = kind if kind == self.factory else f"{kind} ({self.factory})"
        goal_words = f"below the {goal:g} asked for" if one.recall < goal else f"{goal:g} asked for"
        index = self._built.index
        more = f" ({effort_words(index, one.more)} by {one.again:.0%} of queries)"
        return (
            f"{name}: {effort_words(index, one.effort)}{more if one.again else ''},"
            f" {one.k * one.factor} candidates are scored again;"
            f" recall@{one.k} {one.recall:.3f} measured, {goal_words}"
        )


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
