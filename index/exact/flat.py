"""Exact search with FAISS: every query against every vector, in float32 blocks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.exact import gpu, numpy_scan
from lmk.index.vectors.memory import free_memory
from lmk.index.vectors.neighbours import NO_ROW, Neighbours, RowScores
from lmk.index.vectors.rescoring import best, score_pairs
from lmk.index.vectors.vectors import row_blocks
from lmk.index.vectors.view import Allow, View

_BLOCK_ROWS = 65_536  # vectors compared with the queries at a time
_BLOCK_QUERIES = 1024
_MARGIN = 32  # candidates beyond k, which nearly always contain the near ties of the k-th place
_HELD_SHARE = 0.5  # largest part of the free memory for a copy of the vectors
_HELD_ANYHOW = 64 * 2**20  # a copy of at most this number of bytes is always made
_BLAS_QUERIES = 16  # for fewer queries the loop of FAISS is faster
_threshold_lock = threading.Lock()


class FlatSearcher:
    """Exact search: every query against every vector.

    FAISS proposes candidates by float32 sums, which differ in the last bits with the number of
    queries and the position of a vector. The candidates that can belong to the answer are scored
    again in float64, so a query gets the same answer alone and in a batch, and equal vectors get
    equal scores. Any float32 sum of d products of unit vectors is within d 2^-24 / (1 - d 2^-24) of
    the true sum (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). If by this
    bound other rows could belong to the answer, numpy_scan compares all rows.

    Large galleries are searched on GPUs that can hold them, unless only some rows are allowed.
    Otherwise the first search makes a float32 copy of the vectors if it takes at most half of the
    free memory. Without a copy, each batch of queries reads the vectors in blocks.

    Args:
        view: the view to search.
        hold: whether to make the copy. Default: make it if it fits into the free memory.
    """

    def __init__(self, view: View, *, hold: bool | None = None) -> None:
        self._view = view
        self._rows = np.flatnonzero(view.mask)
        size = len(self._rows) * view.dim * 4
        fits = size <= _HELD_ANYHOW or size <= _HELD_SHARE * free_memory()
        self._hold = fits if hold is None else hold
        self._held: list[NDArray[np.float32]] | None = None
        self._gpus: list[gpu.Shard] | None = None
        self._lock = threading.Lock()
        self._error = 1.05 * (view.dim + 4) * 2.0**-24  # queries may be .1 % too long; sums round

    @classmethod
    def of_embeddings(cls, embeddings: Embeddings) -> FlatSearcher:
        """Returns a searcher over embeddings; their positions are the row numbers."""
        return cls(View.of_embeddings(embeddings))

    @property
    def reason(self) -> str:
        """A description of the search for a user."""
        where = f", on GPUs ({len(self._gpus)})" if self._gpus else ""
        return f"exact search: {len(self._rows)} vectors are compared with each query{where}"

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        """Returns the k nearest rows of each query; see Searcher.search."""
        k = self._view.check(queries, k)
        mask = self._view.allowed(allow)
        allowed = self._rows if mask is self._view.mask else np.flatnonzero(mask)
        rows = np.full((len(queries), k), NO_ROW, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        width = min(k, len(allowed))
        if width:
            for start in range(0, len(queries), _BLOCK_QUERIES):
                block = np.ascontiguousarray(queries.vectors[start : start + _BLOCK_QUERIES])
                piece = slice(start, start + len(block))
                rows[piece, :width], scores[piece, :width] = self._nearest(block, width, allowed)
        return Neighbours(rows, scores, queries.ids)

    def _nearest(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.int64]
    ) -> RowScores:
        """Returns rows and scores [q, k]; at least k rows must be allowed, in ascending order."""
        depth = min(k + _MARGIN, len(allowed))
        if len(allowed) == len(self._rows) and depth <= gpu.MOST_NEIGHBOURS:
            shards = self._on_gpus()
            if shards:
                with self._lock:  # FAISS lets one thread at a time use a GPU
                    proposed = gpu.search(shards, queries, depth)
                if self._as_exact_as_float32(queries, *proposed):
                    return self._refined(queries, k, allowed, *proposed)
                self._gpus = []
        return self._refined(queries, k, allowed, *self._propose(queries, depth, allowed))

    def _as_exact_as_float32(
        self,
        queries: NDArray[np.float32],
        candidates: NDArray[np.int64],
        proposed: NDArray[np.float32],
    ) -> bool:
        """Returns whether a GPU multiplied in float32; some drivers round the factors."""
        every = np.arange(len(queries))
        for place in (0, -1):
            scores = score_pairs(self._view.stored, queries, every, candidates[:, place])
            if (np.abs(scores - proposed[:, place]) > self._error).any():
                return False
        return True

    def _refined(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.int64],
        candidates: NDArray[np.int64],
        proposed: NDArray[np.float32],
    ) -> RowScores:
        """Returns the k best candidates, or the k best of all rows if other rows may be better."""
        least = proposed[:, k - 1] - 2 * self._error  # a row below it is not among the k best
        query, place = np.nonzero(~(proposed < least[:, None]))
        chosen = candidates[query, place]
        scores = score_pairs(self._view.stored, queries, query, chosen)
        rows, values = best(query, chosen, scores, len(queries), k)
        if candidates.shape[1] < len(allowed):
            tied = np.flatnonzero(~(proposed[:, -1] < least))
            if tied.size:
                rows[tied], values[tied] = numpy_scan.nearest(
                    self._view.stored, allowed, queries[tied], k
                )
        return rows, values

    def _propose(
        self, queries: NDArray[np.float32], depth: int, allowed: NDArray[np.int64]
    ) -> RowScores:
        """Returns the rows of highest float32 score with descending scores, [q, depth]."""
        rows = np.full((len(queries), 0), NO_ROW, np.int64)
        scores = np.full((len(queries), 0), -np.inf, np.float32)
        for block, vectors in self._blocks(allowed):
            with blas(len(queries)):
                got, places = faiss.knn(
                    queries, vectors, min(depth, len(block)), faiss.METRIC_INNER_PRODUCT
                )
            rows = np.concatenate([rows, block[places]], axis=1)
            scores = np.concatenate([scores, got], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
            rows = np.take_along_axis(rows, order, axis=1)
            scores = np.take_along_axis(scores, order, axis=1)
        return rows, scores

    def _blocks(self, allowed: NDArray[np.int64]) -> Iterator[RowScores]:
        """Yields blocks of allowed rows: row numbers [n] and vectors [n, dim]."""
        few = len(allowed) * 4 < len(self._rows)  # too few for a copy of all vectors
        held = None if few and self._held is None else self._vectors()
        if held is None:
            for block in row_blocks(allowed, _BLOCK_ROWS):
                yield block, self._view.stored.read(block)
            return
        for number, vectors in enumerate(held):
            rows = self._rows[number * _BLOCK_ROWS : (number + 1) * _BLOCK_ROWS]
            low, high = np.searchsorted(allowed, [rows[0], rows[-1] + 1])
            if high - low == len(rows):
                yield rows, vectors
            elif high > low:
                chosen = allowed[low:high]
                yield chosen, vectors[np.searchsorted(rows, chosen)]

    def _on_gpus(self) -> list[gpu.Shard]:
        """Returns the vectors on GPUs; none if there are no GPUs, or few vectors."""
        with self._lock:
            if self._gpus is None:
                blocks = row_blocks(self._rows, _BLOCK_ROWS)
                pairs = ((block, self._view.stored.read(block)) for block in blocks)
                self._gpus = gpu.load(pairs, len(self._rows), self._view.dim)
            return self._gpus

    def _vectors(self) -> list[NDArray[np.float32]] | None:
        """Returns the copy of the vectors in blocks, or None if no copy is held."""
        with self._lock:
            if self._hold and self._held is None:
                blocks = row_blocks(self._rows, _BLOCK_ROWS)
                self._held = [self._view.stored.read(block) for block in blocks]
            return self._held


@contextmanager
def blas(queries: int) -> Iterator[None]:
    """Context manager in which FAISS multiplies matrices for a batch of queries.

    By default FAISS multiplies matrices only for some hundred queries or more. For fewer queries it
    runs a loop, which takes three times as long for 32 queries. The setting applies to the whole
    process; the previous value is restored at the end.
    """
    if queries < _BLAS_QUERIES:
        yield
        return
    with _threshold_lock:
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1
        try:
            yield
        finally:
            faiss.cvar.distance_compute_blas_threshold = before
