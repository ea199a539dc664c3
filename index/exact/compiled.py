"""Exact search by the compiled scans, with several workers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import GalleryDamaged
from lmk.index.exact import scan
from lmk.index.exact.codes import PartCodes, QueryCodes, codes_of, float_slacks, release
from lmk.index.exact.heap import SPARE, ScanQueries, Stored, TopK, rescore_all
from lmk.index.exact.tiles import HALVES, INT8_LANES, PANEL
from lmk.index.vectors.neighbours import NO_ROW, RowScores
from lmk.index.vectors.scores import padded
from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import View

_GATHERED = 256  # rows gathered for a query before the best of them are scored
_MEMORY = 128 << 20  # bytes that all workers of a search may gather
_QUERY_BYTES = 1 << 20  # codes of queries compared in one pass, which fit a core's cache
_TASKS = 8  # tasks per worker, so that no worker waits long for another worker
_LEAST_TASK, _LARGEST_TASK = 32, 2048  # panels
_RELEASE_AFTER = 16  # queries after which the memory of mapped vectors is released


class CompiledScan:
    """Exact search by the compiled scans.

    Args:
        view: the view to search.
        int8: compare bytes if the processor has a multiply-add of bytes; otherwise float32.
        threads: largest number of workers.

    Attributes:
        reason: description of the method for a user.
    """

    def __init__(self, view: View, *, int8: bool, threads: int) -> None:
        self._view = view
        self._threads = threads
        self._derived = view.derived
        self._whole = self._bits(view.mask)
        self._codes: list[PartCodes] = []
        self._loading = threading.Lock()
        self._asked = 0  # queries since the memory of mapped vectors was released
        self._int8 = int8 and bool(INT8_LANES)
        self.reason = "in bytes, a bound proves the answer" if self._int8 else "in float32"

    @staticmethod
    def possible(stored: Vectors) -> bool:
        """Returns whether the processor can read these vectors."""
        return HALVES or all(part.array.dtype == np.float32 for part in stored.parts)

    def nearest(
        self, allowed: NDArray[np.bool_], queries: NDArray[np.float32], k: int
    ) -> RowScores:
        """Returns the k nearest of the allowed rows for each query, best first.

        Args:
            allowed: bool [rows], True for at least k rows.
            queries: float32 [q, dim].
            k: number of neighbours, at least 1.

        Returns:
            rows int64 [q, k] and scores float32 [q, k].

        Raises:
            GalleryDamaged: a vector does not have the length of a stored vector.
        """
        with self._loading:
            self._load()
        bits = self._whole if allowed is self._view.mask else self._bits(allowed)
        tasks = _tasks(bits, _TASKS * self._threads)
        workers = min(self._threads, len(tasks))
        room = max(_GATHERED, 2 * k)
        block = min(_MEMORY // (12 * (room + k) * workers), _QUERY_BYTES // self._view.dim)
        block = max(block, 1)
        rows = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(queries), block):
                some = queries[start : start + block]
                tops = [TopK.of(len(some), k, room) for _ in range(workers)]
                self._scan(some, bits, tasks, tops, pool)
                check_damage(tops, self._view.stored)
                piece = slice(start, start + block)
                rows[piece], scores[piece] = merge(tops, k)
        return rows, scores

    def _load(self) -> None:
        """Loads the codes (or lengths) unless they are loaded and intact."""
        stored = self._view.stored
        if self._codes and all(codes.whole for codes in self._codes):
            return
        with ThreadPoolExecutor(self._threads) as workers:
            self._codes = [
                codes_of(stored, part, self._derived, workers, int8=self._int8)
                for part in stored.parts
            ]
        self._stored = addresses(stored, self._codes)
        if not self._int8:
            one = np.float32(1)
            self._inverse = [np.divide(one, c.lengths.reshape(-1)) for c in self._codes]

    def _scan(
        self,
        queries: NDArray[np.float32],
        bits: list[NDArray[np.uint32]],
        tasks: list[tuple[int, int, int]],
        tops: list[TopK],
        pool: ThreadPoolExecutor,
    ) -> None:
        """Compares all allowed vectors with the queries; the workers share the tasks."""
        coded = QueryCodes.of(queries) if self._int8 else None
        scan_queries = ScanQueries(
            padded(queries, len(queries) + SPARE),
            coded.units if coded else np.ones(len(queries)),
            coded.slacks if coded else float_slacks(queries),
            np.full(len(queries), -np.inf, np.float32),
        )
        self._asked = len(queries) + self._asked % _RELEASE_AFTER
        left = iter(tasks)

        def work(top: TopK) -> None:
            packed = scan.Codes.one_panel(self._view.dim)
            for part, start, stop in left:
                vectors = self._view.stored.parts[part]
                if coded:
                    codes = self._codes[part]
                    panels = scan.Codes(
                        *(codes.fours, codes.scales, codes.errors, bits[part]),
                        *(coded.codes, coded.starts, coded.factors),
                    )
                    row = vectors.first_row
                    scan.scan_codes(
                        self._stored, scan_queries, top, panels, packed, row, start, stop
                    )
                else:
                    inverse, allowed = self._inverse[part], bits[part]
                    scan.scan_floats(
                        self._stored, scan_queries, top, part, inverse, allowed, start, stop
                    )
                if self._asked >= _RELEASE_AFTER:
                    release(vectors.array)
            rescore_all(self._stored, scan_queries, top)

        others = [pool.submit(work, top) for top in tops[1:]]
        work(tops[0])
        for other in others:
            other.result()
        if self._asked >= _RELEASE_AFTER:
            for part in self._view.stored.parts:
                release(part.array)

    def _bits(self, allowed: NDArray[np.bool_]) -> list[NDArray[np.uint32]]:
        """Returns the allowed rows of each part as bits, uint32 [panels]."""
        return [bits_of(allowed[p.first_row :][: p.rows]) for p in self._view.stored.parts]


def addresses(stored: Vectors, codes: list[PartCodes]) -> Stored:
    """Returns the addresses of the vectors and of their lengths, for the compiled functions.

    Args:
        stored: the vectors.
        codes: the codes of each part, with the lengths of the vectors.
    """
    table = [
        (p.first_row, p.array.ctypes.data, c.lengths.ctypes.data, p.array.dtype == np.float16)
        for p, c in zip(stored.parts, codes, strict=True)
    ]
    return Stored(np.array(table, np.int64).reshape(-1, 4), stored.dim)


def check_damage(tops: list[TopK], stored: Vectors) -> None:
    """Checks that each scored vector has the length of a stored vector.

    Raises:
        GalleryDamaged: a vector has another length.
    """
    damaged = max(int(top.damaged[0]) for top in tops)
    if damaged >= 0:
        stored.read(np.array([damaged]))
        what = "what the cache/ folder holds is not of these vectors"
        remedy = "remove the folder cache/, it is made again"
        raise GalleryDamaged(what, where=stored.where, remedy=remedy)


def bits_of(allowed: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Returns a bit for each allowed row of a part, uint32 [panels]."""
    whole = np.zeros(-(-len(allowed) // PANEL) * PANEL, np.bool_)
    whole[: len(allowed)] = allowed
    return np.packbits(whole, bitorder="little").view("<u4").astype(np.uint32)


def _tasks(bits: list[NDArray[np.uint32]], wanted: int) -> list[tuple[int, int, int]]:
    """Returns (part, first panel, last panel + 1) of tasks that together cover all allowed rows."""
    panels = sum(len(part) for part in bits)
    size = min(max(panels // wanted, _LEAST_TASK), _LARGEST_TASK)
    return [
        (number, start, min(start + size, len(part)))
        for number, part in enumerate(bits)
        for start in range(0, len(part), size)
        if part[start : start + size].any()
    ]


def merge(tops: list[TopK], k: int) -> RowScores:
    """Returns the k best rows of all workers, by descending score, then ascending row."""
    for top in tops:
        empty = np.arange(k) >= top.filled[:, None]
        top.best[empty], top.scores[empty] = NO_ROW, -np.inf
    rows = np.concatenate([top.best for top in tops], axis=1)
    scores = np.concatenate([top.scores for top in tops], axis=1)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
