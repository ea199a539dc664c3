"""Search on a Milvus server, for galleries that exceed the memory of one machine.

The server proposes rows. Their scores are computed from the vectors in the gallery folder, so ids,
scores and ties are the same as without a server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import GalleryError
from lmk.embed.shell_words import shell_word
from lmk.index.gallery.gallery import Gallery
from lmk.index.milvus.collection import (
    MOST,
    Mark,
    check_belongs,
    collection_name,
    count_rows,
    read_mark,
    search_effort,
)
from lmk.index.milvus.push import PushReport, push, text
from lmk.index.milvus.server import Server
from lmk.index.vectors.labels import Role
from lmk.index.vectors.neighbours import NO_ROW, Neighbours, RowScores
from lmk.index.vectors.rescoring import score_pairs
from lmk.index.vectors.view import Allow

__all__ = ["MilvusSearcher", "PushReport", "push"]

_MARGIN = 32  # candidates beyond k, which nearly always contain the near ties of the k-th place
_BLOCK_QUERIES = 256
_BLOCK_HITS = 1 << 18  # in one answer of the server
_NAMED_ROWS = 8192  # rows that a filter can name
_LOCAL_ROWS = 2048  # up to this number, rows that the server cannot separate are compared here


@dataclass(frozen=True, eq=False)
class _Allowed:
    """The rows that a search may return, bool [rows], and a filter of the server.

    The filter passes these rows, and possibly others.
    """

    mask: NDArray[np.bool_]
    filter: str

    def between(self, low: int, high: int) -> _Allowed:
        """Returns the allowed rows from low to high - 1."""
        mask = np.zeros_like(self.mask)
        mask[low:high] = self.mask[low:high]
        return _Allowed(mask, f"({self.filter}) and row >= {low} and row < {high}")


class MilvusSearcher:
    """Search on a Milvus server that holds a copy of the gallery (see `push`).

    With the index "flat" the answer is exact, by the proof of FlatSearcher; other indexes miss some
    neighbours. In both cases the scores are those of a search without a server, and a query gets k
    neighbours if k rows are allowed.

    The searcher stays usable when the gallery closes, and when the server restarts. It returns an
    answer only if the collection had the state of the gallery and was complete before and after.

    Args:
        gallery: the gallery, in the state that was copied.
        uri: address of the server.
        collection: name of the collection. Default: "lmk_" and the gallery's name.
        role: role of the rows to search.
        timeout: longest time in seconds of one request, and of loading after a start of the server.
        connect: see Server.

    Attributes:
        reason: description of the search for a user.

    Raises:
        GalleryError: the collection is missing or incomplete, or belongs to another state or
            gallery.
        EmbedderMismatch: the collection has the vectors of another embedder.
        ServerError: the server cannot be reached, or fails.
        UsageError: the URI or name is invalid, or pymilvus is not installed.
    """

    def __init__(
        self,
        gallery: Gallery,
        uri: str,
        collection: str | None = None,
        *,
        role: Role = "gallery",
        timeout: float = 60.0,
        connect: Callable[..., Any] | None = None,
    ) -> None:
        self._view = gallery.view(role)
        self._name = collection_name(gallery.path, collection)
        push = f"lmk index push {shell_word(gallery.path)} --uri {shell_word(uri)}"
        if collection is not None:
            push += f" --collection {shell_word(collection)}"
        self._push = f"`{push}`"
        self._server = Server(uri, timeout, connect)
        mark = read_mark(self._server, self._name)
        if mark is not None:
            check_belongs(mark, gallery, self._server, self._name)
        self._mark = self._checked(mark, gallery.content)
        self._role = f'role == "{role}"'
        # float32 sums of the server, and the rounding of the score: see FlatSearcher
        self._error = 1.01 * gallery.dim * 2.0**-24 + 2.0**-24
        self._load(int(gallery.alive.sum()))
        exact = "exact" if self._mark.index == "flat" else "approximate"
        self.reason = (
            f"{exact} search on the Milvus server {uri}, collection {self._name}: index"
            f" {self._mark.index} over {int(self._view.mask.sum())} vectors"
        )

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        """Returns the k nearest rows of each query; see Searcher.search.

        Raises:
            ServerError: the server cannot be reached, or fails.
            GalleryError: the collection is being changed.
        """
        k = self._view.check(queries, k)
        allowed = self._allowed(allow)
        rows = np.full((len(queries), k), NO_ROW, np.int64)
        values = np.full((len(queries), k), -np.inf, np.float32)
        width = min(k, int(allowed.mask.sum()))
        if width:
            for start in range(0, len(queries), _BLOCK_QUERIES):
                block = slice(start, start + _BLOCK_QUERIES)
                vectors = np.ascontiguousarray(queries.vectors[block])
                rows[block, :width], values[block, :width] = self._nearest(vectors, width, allowed)
            mark = read_mark(self._server, self._name)
            if mark != self._mark:
                self._checked(mark, self._mark.content)
                raise self._unusable("the collection has been replaced", "open the gallery again")
        return Neighbours(rows, values, queries.ids)

    def _nearest(self, queries: NDArray[np.float32], k: int, allowed: _Allowed) -> RowScores:
        """Returns rows and scores [q, k] of queries; at least k rows must be allowed."""
        rows = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        open_ = np.arange(len(queries))
        depth = k + _MARGIN
        while open_.size and depth < 4 * MOST:
            depth = min(depth, MOST)
            done = np.zeros(len(open_), np.bool_)
            for i, (hits, values) in enumerate(self._propose(queries[open_], depth, allowed)):
                query = open_[i]
                best, exact, error = self._best(queries[query], hits, values, k, allowed)
                if len(best) < k:
                    continue
                rows[query], scores[query] = best, exact
                bound_of_others = values[-1] + error
                whole = self._mark.index != "flat" or len(hits) < depth
                done[i] = whole or bound_of_others < exact[-1]
            open_ = open_[~done]
            depth *= 4
        for query in open_:
            rows[query], scores[query] = self._halves(queries[query], k, allowed)
        return rows, scores

    def _halves(self, query: NDArray[np.float32], k: int, allowed: _Allowed) -> RowScores:
        """Searches each half of the rows for a query without a proven answer at any depth."""
        left = np.flatnonzero(allowed.mask)
        if len(left) <= max(_LOCAL_ROWS, k):
            return _first(left, self._scores(query, left), k)
        middle = len(left) // 2
        results = []
        for part in (left[:middle], left[middle:]):
            half = allowed.between(int(part[0]), int(part[-1]) + 1)
            results.append(self._nearest(query[None], min(k, len(part)), half))
        rows, scores = (np.concatenate(parts, axis=1)[0] for parts in zip(*results, strict=True))
        return _first(rows, scores, k)

    def _propose(
        self, queries: NDArray[np.float32], depth: int, allowed: _Allowed
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Returns the best rows of each query by the server, with its scores."""
        effort = search_effort(self._mark.index, depth)
        proposed = []
        block = max(1, _BLOCK_HITS // depth)
        for start in range(0, len(queries), block):
            # Not strong consistency, which waits 0.2 s each time. _load has waited for all earlier
            # writes, and later writes change the mark first.
            answer = self._server.call(
                "search",
                self._name,
                data=list(queries[start : start + block]),
                anns_field="vector",
                filter=allowed.filter,
                limit=depth,
                search_params={"metric_type": "IP", **effort},
                consistency_level="Eventually",
            )
            proposed += [(np.array(a.ids, np.int64), np.array(a.distances)) for a in answer]
        return proposed

    def _best(
        self,
        query: NDArray[np.float32],
        hits: NDArray[np.int64],
        values: NDArray[np.float64],
        k: int,
        allowed: _Allowed,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
        """Returns the best allowed hits, their scores, and a bound for the error of `values`."""
        known = (hits >= 0) & (hits < len(allowed.mask))
        chosen = np.flatnonzero(known)[allowed.mask[hits[known]]]
        exact = self._scores(query, hits[chosen])
        # If a server computes in less than float32, its largest observed error is the bound.
        observed = 4 * float(np.abs(exact - values[chosen]).max(initial=0))
        best, scores = _first(hits[chosen], exact, k)
        return best, scores, self._error if observed <= 4 * self._error else observed

    def _scores(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return score_pairs(self._view.stored, query[None], np.zeros(len(rows), np.int64), rows)

    def _allowed(self, allow: Allow | None) -> _Allowed:
        """Returns the allowed rows; the server filters by labels or by few rows."""
        mask, passing = self._view.allowed(allow), self._role
        if isinstance(allow, np.ndarray):
            rows = np.flatnonzero(mask)
            if len(rows) <= _NAMED_ROWS:
                passing = f"row in {rows.tolist()}"
        elif allow is not None:
            labels = [allow] if isinstance(allow, str) else list(allow)
            names = json.dumps([text(label) for label in labels], ensure_ascii=False)
            passing += f" and array_contains_any(labels, {names})"
        return _Allowed(mask, passing)

    def _checked(self, mark: Mark | None, content: str) -> Mark:
        """Checks that the collection exists, is complete, and has that state of the gallery."""
        if mark is None:
            raise self._unusable("there is no such collection", f"make it with {self._push}")
        if not mark.complete:
            raise self._unusable("it is not complete", f"complete it with {self._push}")
        if mark.content != content:
            what = "the gallery has changed since it was copied there, or since it was opened"
            raise self._unusable(what, f"bring it up to date with {self._push}, or open it again")
        return mark

    def _unusable(self, what: str, remedy: str) -> GalleryError:
        return GalleryError(what, where=self._server.place(self._name), remedy=remedy)

    def _load(self, rows: int) -> None:
        """Loads the collection on the server, and waits until all written rows are visible."""
        self._server.call("load_collection", self._name, patience=10)
        count = count_rows(self._server, self._name)
        if count != rows:
            what = f"it holds {count} rows, the gallery {rows}"
            raise self._unusable(what, f"mend it with {self._push}")


def _first(rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> RowScores:
    """Returns the first k rows by descending score, then ascending row, with their scores."""
    best = np.lexsort((rows, -scores))[:k]
    return rows[best], scores[best]
