"""CellIndex: exact search in the most promising cells of a gallery.

A query visits the cells in which its nearest vectors may lie. The search compares every vector of
these cells (cells_scan.py) and scores by the rule of Searcher. It misses only vectors of cells that
it does not visit.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import UsageError
from lmk.embed.progress import Message, no_message
from lmk.index.ann.cells_build import Cells, build, load_or_build
from lmk.index.ann.cells_scan import Group, Panels, Visits, scan_cells
from lmk.index.ann.faiss_factory import steps_of
from lmk.index.ann.index_files import PreviousResult, SearchFilter
from lmk.index.exact.codes import PartCodes, QueryCodes, codes_of, release
from lmk.index.exact.compiled import CompiledScan, addresses, bits_of, check_damage, merge
from lmk.index.exact.heap import SPARE, ScanQueries, Stored, TopK, rescore_all
from lmk.index.exact.tiles import INT8_LANES
from lmk.index.vectors.neighbours import RowScores
from lmk.index.vectors.rescoring import best_of
from lmk.index.vectors.scores import padded
from lmk.index.vectors.view import View

faiss: Any = typed_faiss  # its stubs do not know all functions

_GATHERED = 256  # rows gathered for a query before the best of them are scored
_MEMORY = 128 << 20  # bytes that all workers of a search may gather
_LEAST_VISITS = 1024  # of a worker: one core can use the memory bandwidth that one query needs
_TASKS = 8  # tasks of a worker, so that no worker waits long for another
_RELEASE_AFTER = 16  # queries after which the memory of mapped vectors is released
# The expected distance of a cell's best vector from the mean towards a query, relative to the
# cell's spread. On vectors clustered like landmarks, .2 to .4 take a fifth to a quarter less work
# than 0 for the same recall.
_REACH = 0.3


class CellIndex:
    """Cells of codes; see searcher.Index.

    Args:
        view: the view to search.
        on_message: called with a line of text while the cells are built.

    Raises:
        UsageError: the processor cannot multiply and add bytes.
        GalleryDamaged: see Vectors.read.
    """

    scored = True

    def __init__(self, view: View, on_message: Message) -> None:
        if not possible(view):
            raise UsageError(
                "the kind ivf needs a processor that multiplies and adds bytes (VNNI)",
                remedy="choose ivfpq, or auto",
            )
        self._view = view
        self._inside: NDArray[np.bool_]  # the rows that self._panels allows
        self._panels: Panels
        self._asked = 0  # queries since the memory of mapped vectors was released
        self._loading = threading.Lock()
        self.built = load_or_build(view, on_message)
        self._load(self.built.index)
        self.efforts = steps_of(1, len(self._cells))

    def describe(self, effort: int) -> str:
        """Returns a description of an effort."""
        return f"{effort} of {len(self._cells)} cells are looked at"

    def nearest(
        self,
        queries: NDArray[np.float32],
        k: int,
        depth: int,
        effort: int,
        search_filter: SearchFilter,
        previous: PreviousResult | None = None,
    ) -> RowScores:
        """Returns the k nearest of all vectors in `effort` cells; see searcher.Index."""
        parts = []
        together = max(1, _MEMORY // (12 * _room(k) * faiss.omp_get_max_threads()))
        for start in range(0, len(queries), together):
            piece = slice(start, start + together)
            floors = None if previous is None else previous.scores[piece, -1]
            done = 0 if previous is None else previous.effort
            parts.append(self._search(queries[piece], k, done, effort, floors, search_filter))
        self._asked += len(queries)
        if self._asked >= _RELEASE_AFTER:
            self._asked = 0
            for part in self._view.stored.parts:
                release(part.array)
        rows, scores = (np.concatenate(some) for some in zip(*parts, strict=True))
        if previous is None:
            return rows, scores
        return best_of([(previous.rows, previous.scores), (rows, scores)], k)

    def propose(
        self, queries: NDArray[np.float32], depth: int, effort: int, search_filter: SearchFilter
    ) -> NDArray[np.int64]:
        """Returns the nearest rows, int64 [q, depth]; see searcher.Index."""
        return self.nearest(queries, depth, depth, effort, search_filter)[0]

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        done: int,
        effort: int,
        floors: NDArray[np.float32] | None,
        search_filter: SearchFilter,
    ) -> RowScores:
        """Returns the nearest vectors in the best `effort` cells without the best `done` cells."""
        panels, stored = self._ready(search_filter)
        # Fewer allowed rows lie further apart.
        further = len(self.built.rows) / max(search_filter.count, 1)
        coded = QueryCodes.of(queries)
        visits = self._visits(queries, coded, round(done * further), round(effort * further))
        if floors is None:
            floors = np.full(len(queries), -np.inf, np.float32)
        wide = padded(queries, len(queries) + SPARE)
        scan_queries = ScanQueries(wide, coded.units, coded.slacks, floors.copy())
        needed = max(1, len(visits.queries) // _LEAST_VISITS)
        workers = min(faiss.omp_get_max_threads(), needed)
        tops = [TopK.of(len(queries), k, _room(k) - k) for _ in range(workers)]
        tasks = iter(_tasks(visits, _TASKS * workers) if workers > 1 else [(0, len(visits.cells))])

        def work(top: TopK) -> None:
            group = Group.of(visits.codes.shape[1])
            for start, stop in tasks:
                scan_cells(stored, scan_queries, top, panels, visits, group, start, stop)
            rescore_all(stored, scan_queries, top)

        if workers == 1:
            work(tops[0])
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(work, tops))
        check_damage(tops, self._view.stored)
        return merge(tops, k)

    def _ready(self, search_filter: SearchFilter) -> tuple[Panels, Stored]:
        """Returns readable panels and vectors; rebuilds those whose files were cut."""
        with self._loading:
            whole = self._cells.whole
            if not (whole and all(codes.whole for codes in self._codes)):
                self._load(self._cells if whole else build(self._view, no_message).index)
            if search_filter.inside is not self._inside:
                self._inside = search_filter.inside
                self._panels = self._panels._replace(allowed=self._bits(search_filter.inside))
            return self._panels, self._stored

    def _load(self, cells: Cells) -> None:
        """Uses these cells, and loads the lengths of the vectors."""
        view = self._view
        self._cells = cells
        with ThreadPoolExecutor(faiss.omp_get_max_threads()) as workers:
            self._codes: list[PartCodes] = [
                codes_of(view.stored, part, view.derived, workers, int8=False)
                for part in view.stored.parts
            ]
        self._stored = addresses(view.stored, self._codes)
        self._reach = _REACH * cells.spreads
        self._inside = view.mask & self.built.covered
        self._panels = Panels(
            cells.codes.view(np.uint32)[..., 0],
            cells.scales,
            cells.errors,
            cells.rows,
            self._bits(self._inside),
            cells.firsts,
        )

    def _bits(self, inside: NDArray[np.bool_]) -> NDArray[np.uint32]:
        """Returns a bit for each vector that may be returned, uint32 [panels]."""
        rows = self._cells.rows.reshape(-1)
        return bits_of((rows >= 0) & inside[rows])

    def _visits(
        self, queries: NDArray[np.float32], coded: QueryCodes, done: int, effort: int
    ) -> Visits:
        """Returns the cells that each query visits: the best `effort` without the best `done`."""
        means = self._cells.means
        if len(queries) == 1:  # BLAS would start all its threads for little work
            products = np.einsum("ij,j->i", means, queries[0])[None]
        else:
            products = queries @ means.T
        promise = products + self._reach
        visited = _best_of(promise, effort)
        if done:
            visited &= ~_best_of(promise, done)
        cell, query = np.nonzero(visited.T)
        cells, firsts = np.unique(cell, return_index=True)
        return Visits(
            cells,
            np.append(firsts, len(cell)),
            np.ascontiguousarray(query),
            coded.plain.view(np.uint32),
            coded.starts,
            coded.factors,
        )


def _room(k: int) -> int:
    """Returns the number of rows that a worker holds for each query."""
    return k + max(_GATHERED, 2 * k)


def _best_of(promise: NDArray[np.float32], effort: int) -> NDArray[np.bool_]:
    """Returns a mask of the `effort` greatest values of each row of [q, cells], with ties."""
    count = promise.shape[1]
    if effort >= count:
        return np.ones(promise.shape, np.bool_)
    least = np.partition(promise, count - effort, axis=1)[:, count - effort]
    return np.asarray(promise >= least[:, None])


def possible(view: View) -> bool:
    """Returns whether the processor can search a view in cells."""
    return bool(INT8_LANES) and CompiledScan.possible(view.stored)


def _tasks(visits: Visits, wanted: int) -> list[tuple[int, int]]:
    """Returns about `wanted` ranges of the visited cells with similar numbers of visits."""
    bounds = np.linspace(0, len(visits.queries), wanted + 1)
    cuts = np.unique(np.searchsorted(visits.firsts, bounds)).tolist()
    return list(pairwise(cuts))
