"""Search on a Milvus server, for galleries past the memory of one machine.

The server proposes rows; their scores are computed from the gallery's own vectors, which stay where
they lie, so ids, scores and ties are those of a search without a server.
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

_MARGIN = 32  # candidates beyond k: enough to hold the near ties at the k-th place, nearly always
_BLOCK_QUERIES = 256
_BLOCK_HITS = 1 << 18  # in one answer of the server
_NAMED_ROWS = 8192  # rows that a filter can name
_LOCAL_ROWS = 2048  # so few are compared here, when the server cannot tell them apart


@dataclass(frozen=True, eq=False)
class _Wanted:
    """The rows that a search may return, bool [rows]."""

    mask: NDArray[np.bool_]
    filter: str  # for the server; leaves these rows, and perhaps others

    def between(self, low: int, high: int) -> _Wanted:
        """Returns the wanted rows from low to high - 1."""
        mask = np.zeros_like(self.mask)
        mask[low:high] = self.mask[low:high]
        return _Wanted(mask, f"({self.filter}) and row >= {low} and row < {high}")


class MilvusSearcher:
    """Search on a Milvus server that holds a copy of the gallery (milvus_push.push).

    With the index "flat" the answer is the exact one, proved as FlatSearcher's is; the others miss
    some neighbours. Either way a score is that of a search without a server, and there are k
    neighbours wherever k rows may be found.

    It stays usable when the gallery closes, and when the server stops and comes back. An answer is
    given only if the collection was complete, and of the gallery's state, before and after.

    Args:
        gallery: as it was copied.
        uri: of the server.
        collection: its name; "lmk_" and the gallery's name unless given.
        role: of the rows to search.
        timeout: seconds that one request, or loading after a start of the server, may take.
        connect: makes the client, as for Server.

    Attributes:
        reason: what this search is, in words for a user.

    Raises:
        GalleryError: for a collection that is missing, incomplete, or of another state or
            gallery.
        EmbedderMismatch: for one with the vectors of another embedder.
        ServerError: when the server cannot be reached, or fails.
        UsageError: for a bad URI or name, or without pymilvus.
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
        self._where = f"{uri}, collection {self._name}"
        again = f"lmk index push {shell_word(gallery.path)} --uri {shell_word(uri)}"
        if collection is not None:
            again += f" --collection {shell_word(collection)}"
        self._again = f"`{again}`"
        self._server = Server(uri, timeout, connect)
        found = read_mark(self._server, self._name)
        if found is not None:
            check_belongs(found, gallery, self._server, self._name)
        self._mark = self._checked(found, gallery.content)
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
            ServerError: when the server cannot be reached, or fails.
            GalleryError: when the collection is being changed.
        """
        k = self._view.check(queries, k)
        wanted = self._wanted(allow)
        rows = np.full((len(queries), k), NO_ROW, np.int64)
        values = np.full((len(queries), k), -np.inf, np.float32)
        kept = min(k, int(wanted.mask.sum()))
        if kept:
            for start in range(0, len(queries), _BLOCK_QUERIES):
                block = slice(start, start + _BLOCK_QUERIES)
                vectors = np.ascontiguousarray(queries.vectors[block])
                rows[block, :kept], values[block, :kept] = self._nearest(vectors, kept, wanted)
            found = read_mark(self._server, self._name)
            if found != self._mark:
                self._checked(found, self._mark.content)
                raise self._unusable("the collection has been replaced", "open the gallery again")
        return Neighbours(rows, values, queries.ids)

    def _nearest(self, queries: NDArray[np.float32], k: int, wanted: _Wanted) -> RowScores:
        """Returns rows and scores, [q, k], of the queries, for k not above the rows wanted."""
        rows = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        open_ = np.arange(len(queries))
        depth = k + _MARGIN
        while open_.size and depth < 4 * MOST:
            depth = min(depth, MOST)
            done = np.zeros(len(open_), np.bool_)
            for i, (hits, values) in enumerate(self._propose(queries[open_], depth, wanted)):
                query = open_[i]
                best, exact, error = self._best(queries[query], hits, values, k, wanted)
                if len(best) < k:
                    continue
                rows[query], scores[query] = best, exact
                left_out_at_most = values[-1] + error
                whole = self._mark.index != "flat" or len(hits) < depth
                done[i] = whole or left_out_at_most < exact[-1]
            open_ = open_[~done]
            depth *= 4
        for query in open_:
            rows[query], scores[query] = self._halves(queries[query], k, wanted)
        return rows, scores

    def _halves(self, query: NDArray[np.float32], k: int, wanted: _Wanted) -> RowScores:
        """Searches each half of the rows for a query that the deepest answer leaves open."""
        left = np.flatnonzero(wanted.mask)
        if len(left) <= max(_LOCAL_ROWS, k):
            return _first(left, self._scores(query, left), k)
        middle = len(left) // 2
        found = []
        for part in (left[:middle], left[middle:]):
            half = wanted.between(int(part[0]), int(part[-1]) + 1)
            rows, scores = self._nearest(query[None], min(k, len(part)), half)
            found.append((rows[0], scores[0]))
        rows, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return _first(rows, scores, k)

    def _propose(
        self, queries: NDArray[np.float32], depth: int, wanted: _Wanted
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Returns for each query the rows that the server finds best, with its scores."""
        effort = search_effort(self._mark.index, depth)
        found = []
        block = max(1, _BLOCK_HITS // depth)
        for start in range(0, len(queries), block):
            # Not strong consistency, which waits 0.2 s each time: _load has waited for all that
            # was written, and whatever is written from then on changes the mark before it.
            answer = self._server.call(
                "search",
                self._name,
                data=list(queries[start : start + block]),
                anns_field="vector",
                filter=wanted.filter,
                limit=depth,
                search_params={"metric_type": "IP", **effort},
                consistency_level="Eventually",
            )
            found += [(np.array(a.ids, np.int64), np.array(a.distances)) for a in answer]
        return found

    def _best(
        self,
        query: NDArray[np.float32],
        hits: NDArray[np.int64],
        values: NDArray[np.float64],
        k: int,
        wanted: _Wanted,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
        """Returns the best of the hits that are wanted, their scores, and an error of `values`."""
        known = (hits >= 0) & (hits < len(wanted.mask))
        kept = np.flatnonzero(known)[wanted.mask[hits[known]]]
        exact = self._scores(query, hits[kept])
        # A server may compute in less than float32: then what it was seen to be off by counts.
        seen = 4 * float(np.abs(exact - values[kept]).max(initial=0))
        best, scores = _first(hits[kept], exact, k)
        return best, scores, self._error if seen <= 4 * self._error else seen

    def _scores(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return score_pairs(self._view.stored, query[None], np.zeros(len(rows), np.int64), rows)

    def _wanted(self, allow: Allow | None) -> _Wanted:
        """Returns the rows allowed; the server filters by labels or by few rows."""
        mask = self._view.allowed(allow)
        if allow is None:
            return _Wanted(mask, self._role)
        rows = np.flatnonzero(mask)
        if not isinstance(allow, np.ndarray):
            labels = [allow] if isinstance(allow, str) else list(allow)
            names = json.dumps([text(label) for label in labels], ensure_ascii=False)
            return _Wanted(mask, f"{self._role} and array_contains_any(labels, {names})")
        if len(rows) <= _NAMED_ROWS:
            return _Wanted(mask, f"row in {rows.tolist()}")
        return _Wanted(mask, self._role)

    def _checked(self, found: Mark | None, content: str) -> Mark:
        """Checks that the collection is there, complete, and of that state of the gallery."""
        if found is None:
            raise self._unusable("there is no such collection", f"make it with {self._again}")
        if not found.complete:
            raise self._unusable("it is not complete", f"complete it with {self._again}")
        if found.content != content:
            what = "the gallery has changed since it was copied there, or since it was opened"
            raise self._unusable(what, f"bring it up to date with {self._again}, or open it again")
        return found

    def _unusable(self, what: str, remedy: str) -> GalleryError:
        return GalleryError(what, where=self._where, remedy=remedy)

    def _load(self, rows: int) -> None:
        """Loads the collection on the server, and waits until all written rows are visible."""
        self._server.call("load_collection", self._name, patience=10)
        found = count_rows(self._server, self._name)
        if found != rows:
            what = f"it holds {found} rows, the gallery {rows}"
            raise self._unusable(what, f"mend it with {self._again}")


def _first(rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> RowScores:
    """The first k by score falling, then row rising."""
    best = np.lexsort((rows, -scores))[:k]
    return rows[best], scores[best]
