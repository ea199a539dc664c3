"""Scan of cells: the compiled pass over the cells that each query visits.

As in exact search (scan.py), the comparison of a panel of codes with a tile of queries computes
numbers that are at least the scores less a known slack. The rows that reach a query's limit are
gathered and scored (heap.py), so no visited row that belongs to the answer is missed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lmk.index.exact.heap import ScanQueries, Stored, TopK, address_of, raise_limit, rescore
from lmk.index.exact.tiles import INT8_QUERIES, PANEL, int8_tile, lowest_bit

# Increment when tiles.py or heap.py changes: numba recompiles only after changes of this file.
EDITION = 2

_WIDTH, _MIDDLE, _LEAST = INT8_QUERIES
_wide_tile, _middle_tile, _least_tile = (int8_tile(width) for width in INT8_QUERIES)
_lowest = lowest_bit()
_TOGETHER = 20 * _WIDTH  # queries compared with a cell at a time; their codes fit a core's cache


class Panels(NamedTuple):
    """The codes of all cells.

    Attributes:
        codes: uint32 [panels, steps, PANEL], four codes each.
        scales, errors: float32 [panels, PANEL].
        rows: int64 [panels, PANEL], the row of each vector.
        allowed: uint32 [panels], a bit for each vector that may be returned.
        firsts: int64 [cells + 1], the first panel of each cell, then the number of panels.
    """

    codes: NDArray[np.uint32]
    scales: NDArray[np.float32]
    errors: NDArray[np.float32]
    rows: NDArray[np.int64]
    allowed: NDArray[np.uint32]
    firsts: NDArray[np.int64]


class Visits(NamedTuple):
    """The visited cells with the queries that visit each, and their codes (see QueryCodes).

    Attributes:
        cells: int64 [n], the visited cells.
        firsts: int64 [n + 1], the first position of each cell's queries in `queries`.
        queries: int64 [visits], the query of each visit.
        codes: uint32 [q, steps], four codes each.
        starts: int32 [q].
        factors: float32 [q].
    """

    cells: NDArray[np.int64]
    firsts: NDArray[np.int64]
    queries: NDArray[np.int64]
    codes: NDArray[np.uint32]
    starts: NDArray[np.int32]
    factors: NDArray[np.float32]


class Group(NamedTuple):
    """Queries that visit a cell together, in the layout of int8_tile.

    Attributes:
        codes: uint32, for each tile [steps, width].
        starts: int32 [_TOGETHER].
        factors, limits: float32 [_TOGETHER].
    """

    codes: NDArray[np.uint32]
    starts: NDArray[np.int32]
    factors: NDArray[np.float32]
    limits: NDArray[np.float32]

    @classmethod
    def of(cls, steps: int) -> Group:
        """Returns an empty group."""
        return cls(
            np.zeros(steps * _TOGETHER, np.uint32),
            np.zeros(_TOGETHER, np.int32),
            np.zeros(_TOGETHER, np.float32),
            np.full(_TOGETHER, np.inf, np.float32),
        )


@njit(nogil=True, cache=True, inline="always")
def _width(left: int) -> int:  # pragma: no cover (compiled)
    """Returns the number of queries in the next tile if `left` queries remain."""
    return _LEAST if left <= _LEAST else _MIDDLE if left <= _MIDDLE else _WIDTH


@njit(nogil=True, cache=True)
def _gather(
    scan_queries: ScanQueries, top: TopK, visits: Visits, group: Group, first: int, count: int
) -> None:  # pragma: no cover (compiled)
    """Copies `count` queries, from position `first` of the visits, into the tiles of a group."""
    steps = visits.codes.shape[1]
    at = 0
    while at < count:
        width = _width(count - at)
        tile = group.codes[at * steps :]
        for j in range(width):
            place = at + j
            if place >= count:  # no value reaches the limit of an unused place
                group.limits[place] = np.inf
                group.starts[place], group.factors[place] = 0, 0
                continue
            q = visits.queries[first + place]
            raise_limit(scan_queries, top, q)
            group.limits[place] = top.limits[q]
            group.starts[place], group.factors[place] = visits.starts[q], visits.factors[q]
            codes = visits.codes[q]
            for step in range(steps):
                tile[step * width + j] = codes[step]
        at += width


@njit(nogil=True, cache=True)
def scan_cells(
    stored: Stored,
    scan_queries: ScanQueries,
    top: TopK,
    given: Panels,
    visits: Visits,
    group: Group,
    start: int,
    stop: int,
) -> None:  # pragma: no cover (compiled)
    """Compares the visited cells start to stop - 1 with their queries; gathers rows in `top`."""
    steps = given.codes.shape[1]
    codes, query_codes = address_of(given.codes), address_of(group.codes)
    scales, errors = address_of(given.scales), address_of(given.errors)
    starts, factors = address_of(group.starts), address_of(group.factors)
    limits = address_of(group.limits)
    out, masks = address_of(top.out), address_of(top.masks)
    for i in range(start, stop):
        cell, end = visits.cells[i], visits.firsts[i + 1]
        for first in range(visits.firsts[i], end, _TOGETHER):
            count = min(end - first, _TOGETHER)
            _gather(scan_queries, top, visits, group, first, count)
            for panel in range(given.firsts[cell], given.firsts[cell + 1]):
                allowed = np.int64(given.allowed[panel])
                at = 0
                while at < count and allowed != 0:
                    width = _width(count - at)
                    arguments = (
                        codes + panel * steps * PANEL * 4,
                        query_codes + at * steps * 4,
                        steps,
                        starts + 4 * at,
                        factors + 4 * at,
                        limits + 4 * at,
                        scales + panel * PANEL * 4,
                        errors + panel * PANEL * 4,
                        out,
                        masks,
                    )
                    if width == _WIDTH:
                        reached = _wide_tile(arguments)
                    elif width == _MIDDLE:
                        reached = _middle_tile(arguments)
                    else:
                        reached = _least_tile(arguments)
                    while reached:
                        j = _lowest((reached,))
                        reached &= reached - 1
                        mask = np.int64(top.masks[j]) & allowed
                        q = visits.queries[first + at + j]
                        while mask:
                            lane = _lowest((mask,))
                            mask &= mask - 1
                            value = top.out[j * PANEL + lane]
                            if value >= top.limits[q]:
                                m = top.gathered[q]
                                top.values[q, m] = value
                                top.rows[q, m] = given.rows[panel, lane]
                                top.gathered[q] = m + 1
                                if m + 1 == top.values.shape[1]:
                                    rescore(stored, scan_queries, top, q, False)
                        group.limits[at + j] = top.limits[q]
                    at += width
