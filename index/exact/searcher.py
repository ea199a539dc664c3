"""Exact search on CPUs: every vector is compared with each query, and the answer is proven.

Three methods give the same answer, bit for bit:

- codes: the processor's multiply-add of bytes compares vectors and queries as bytes, which takes a
  quarter of the memory bandwidth and of the time of float32. A bound on each score's error selects
  the vectors that may belong to the answer, and these are scored (codes.py, scan.py);
- floats: the same method with the stored vectors in float32, on other processors;
- blocks: numpy alone, until its total time exceeds the time to load the compiled methods.

Codes need a multiply-add of bytes (AVX-512 VNNI or AVX-VNNI).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.exact import numpy_scan
from lmk.index.vectors.neighbours import NO_ROW, Neighbours, RowScores
from lmk.index.vectors.view import Allow, View

if TYPE_CHECKING:
    from lmk.index.exact.compiled import CompiledScan

_SECONDS_BEFORE_COMPILED = 0.5
_SECONDS_TO_READ = 3e-9  # time for one component, in numpy
_SECONDS_TO_MULTIPLY = 3e-11  # time for two components, in numpy


class ExactSearcher:
    """Exact search; see Searcher.

    Args:
        view: the view to search.
        int8: compare bytes if the processor has a multiply-add of bytes; otherwise float32.
        threads: number of workers, which does not change answers. Default: the number of processors
            that this process may use.
    """

    def __init__(self, view: View, *, int8: bool = True, threads: int | None = None) -> None:
        self._view = view
        self._int8 = int8
        self._threads = threads or _processors()
        self._seconds = 0.0  # estimated time of numpy so far
        self._scan: CompiledScan | None = None

    @property
    def reason(self) -> str:
        """A description of the search for a user."""
        text = f"exact search: {int(self._view.mask.sum())} vectors are compared with each query"
        if self._scan is None and self._little_work(1):
            return f"{text} in float32, too few for more to pay"
        compiled = self._compiled()
        return f"{text} {compiled.reason if compiled else 'in float32, with numpy alone'}"

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        """Returns the k nearest rows of each query; see Searcher.search."""
        k = self._view.check(queries, k)
        allowed = self._view.allowed(allow)
        width = min(k, int(np.count_nonzero(allowed)))
        rows = np.full((len(queries), k), NO_ROW, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        if width and len(queries):
            vectors = np.ascontiguousarray(queries.vectors, np.float32)
            rows[:, :width], scores[:, :width] = self._nearest(allowed, vectors, width)
        return Neighbours(rows, scores, queries.ids)

    def _nearest(
        self, allowed: NDArray[np.bool_], queries: NDArray[np.float32], k: int
    ) -> RowScores:
        compiled = None
        if self._scan is not None or not self._little_work(len(queries)):
            compiled = self._compiled()
        if compiled is not None:
            return compiled.nearest(allowed, queries, k)
        self._seconds += self._estimate(len(queries))
        return numpy_scan.nearest(self._view.stored, np.flatnonzero(allowed), queries, k)

    def _estimate(self, queries: int) -> float:
        """Returns the seconds that numpy needs for a number of queries."""
        components = self._view.stored.rows * self._view.dim
        return components * (_SECONDS_TO_READ + _SECONDS_TO_MULTIPLY * queries)

    def _little_work(self, queries: int) -> bool:
        """Returns whether numpy is faster than loading the compiled scan."""
        return self._seconds + self._estimate(queries) < _SECONDS_BEFORE_COMPILED

    def _compiled(self) -> CompiledScan | None:
        """Returns the compiled scan, or None if the processor cannot read the vectors."""
        if self._scan is None:
            from lmk.index.exact.compiled import CompiledScan  # numba takes a while to import

            if CompiledScan.possible(self._view.stored):
                self._scan = CompiledScan(self._view, int8=self._int8, threads=self._threads)
        return self._scan


def _processors() -> int:
    """Returns the number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
