"""Scan: compiled passes over the stored vectors that gather the candidates for the nearest rows.

A pass computes for every vector and query a number that is at least the score less a known slack
(tiles.py), and gathers the rows whose number reaches the limit of the query (heap.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lmk.index.exact.heap import ScanQueries, Stored, TopK, address_of, raise_limit, rescore
from lmk.index.exact.tiles import (
    FLOAT_QUERIES,
    INT8_QUERIES,
    PANEL,
    ROWS,
    float_tile,
    int8_tile,
    lowest_bit,
)

# Increment when tiles.py or heap.py changes: numba recompiles only after changes of this file.
EDITION = 2

_WIDTH, _MIDDLE, _LEAST = INT8_QUERIES
_wide_tile, _middle_tile, _least_tile = (int8_tile(width) for width in INT8_QUERIES)
_half_tile, _half_one = float_tile(FLOAT_QUERIES, half=True), float_tile(1, half=True)
_single_tile, _single_one = float_tile(FLOAT_QUERIES, half=False), float_tile(1, half=False)
_lowest = lowest_bit()
_ALL = 2**32 - 1  # the mask of all vectors of a panel, one bit each


class Codes(NamedTuple):
    """The int8 codes of one part, and the codes of the queries (see codes.py).

    Attributes:
        codes: uint32 [panels, steps, PANEL], four codes each.
        scales, errors: float32 [panels, PANEL].
        allowed: uint32 [panels], a bit for each vector that may be returned.
        query_codes: int8, for each tile [steps, width, 4].
        starts, factors: int32 and float32 [q + padding queries of the last tile].
    """

    codes: NDArray[np.uint32]
    scales: NDArray[np.float32]
    errors: NDArray[np.float32]
    allowed: NDArray[np.uint32]
    query_codes: NDArray[np.int8]
    starts: NDArray[np.int32]
    factors: NDArray[np.float32]

    @classmethod
    def one_panel(cls, dim: int) -> Codes:
        """Returns an empty panel of codes, without queries."""
        return cls(
            np.full((1, -(-dim // 4), PANEL), 0x80808080, np.uint32),
            np.zeros((1, PANEL), np.float32),
            np.zeros((1, PANEL), np.float32),
            np.zeros(1, np.uint32),
            np.empty(0, np.int8),
            np.empty(0, np.int32),
            np.empty(0, np.float32),
        )


@njit(nogil=True, cache=True)
def _lanes(allowed: np.int64, lanes: NDArray[np.int64]) -> int:  # pragma: no cover (compiled)
    """Writes the numbers of the set bits to `lanes`, and returns their count."""
    n = 0
    for lane in range(PANEL):
        if allowed & (1 << lane):
            lanes[n] = lane
            n += 1
    return n


@njit(nogil=True, cache=True)
def _pack(
    given: Codes,
    packed: Codes,
    panel: int,
    lanes: NDArray[np.int64],
    rows: NDArray[np.int64],
    n: int,
    filled: int,
    first_row: int,
) -> None:  # pragma: no cover (compiled)
    """Copies n vectors of a panel behind the `filled` vectors that are packed already."""
    for i in range(n):
        lane, to = lanes[i], filled + i
        for step in range(given.codes.shape[1]):
            packed.codes[0, step, to] = given.codes[panel, step, lane]
        packed.scales[0, to] = given.scales[panel, lane]
        packed.errors[0, to] = given.errors[panel, lane]
        rows[to] = first_row + panel * PANEL + lane


@njit(nogil=True, cache=True)
def scan_codes(
    stored: Stored,
    scan_queries: ScanQueries,
    top: TopK,
    given: Codes,
    packed: Codes,
    first_row: int,
    start: int,
    stop: int,
) -> None:  # pragma: no cover (compiled)
    """Compares the panels start to stop - 1 of a part with all queries; gathers rows in `top`.

    Args:
        packed: buffer of one panel. The allowed vectors of panels with few of them are packed
            into this buffer, so that excluded vectors cost no comparison.
        first_row: the first row of the part.
    """
    count = scan_queries.units.shape[0]
    for q in range(count):
        raise_limit(scan_queries, top, q)
    steps = given.codes.shape[1]
    size = steps * PANEL * 4
    out, masks = address_of(top.out), address_of(top.masks)
    lanes, rows = np.empty(PANEL, np.int64), np.empty(PANEL, np.int64)
    next_rows = np.empty(PANEL, np.int64)
    filled = 0
    for panel in range(start, stop + 1):
        allowed, n, few = np.int64(0), 0, False
        if panel < stop:
            allowed = np.int64(given.allowed[panel])
            if allowed == 0:
                continue
            if count > _MIDDLE and allowed != _ALL:
                n = _lanes(allowed, lanes)
                few = n <= PANEL // 2
        if few and filled + n <= PANEL:
            _pack(given, packed, panel, lanes, rows, n, filled, first_row)
            filled += n
            continue
        if few or panel == stop:  # compare the packed vectors
            allowed = (np.int64(1) << filled) - 1
            codes, here = address_of(packed.codes), rows
            scales, errors = address_of(packed.scales), address_of(packed.errors)
        else:
            at_panel = panel * PANEL * 4
            codes = address_of(given.codes) + panel * size
            scales = address_of(given.scales) + at_panel
            errors = address_of(given.errors) + at_panel
            for i in range(PANEL):
                next_rows[i] = first_row + panel * PANEL + i
            here = next_rows
        query = address_of(given.query_codes)
        q = 0
        while q < count and allowed != 0:
            left = count - q
            width = _LEAST if left <= _LEAST else _MIDDLE if left <= _MIDDLE else _WIDTH
            at = (
                codes,
                query,
                steps,
                address_of(given.starts) + 4 * q,
                address_of(given.factors) + 4 * q,
                address_of(top.limits) + 4 * q,
                scales,
                errors,
                out,
                masks,
            )
            if width == _WIDTH:
                reached = _wide_tile(at)
            elif width == _MIDDLE:
                reached = _middle_tile(at)
            else:
                reached = _least_tile(at)
            while reached:
                j = _lowest((reached,))
                reached &= reached - 1
                mask = np.int64(top.masks[j]) & allowed
                while mask:
                    lane = _lowest((mask,))
                    mask &= mask - 1
                    value = top.out[j * PANEL + lane]
                    if value >= top.limits[q + j]:
                        # inlined by hand, since a call that passes TopK costs more than these lines
                        m = top.gathered[q + j]
                        top.values[q + j, m] = value
                        top.rows[q + j, m] = here[lane]
                        top.gathered[q + j] = m + 1
                        if m + 1 == top.values.shape[1]:
                            rescore(stored, scan_queries, top, q + j, False)
            query += 4 * width * steps
            q += width
        if few:
            _pack(given, packed, panel, lanes, rows, n, 0, first_row)
            filled = n


@njit(nogil=True, cache=True)
def scan_floats(
    stored: Stored,
    scan_queries: ScanQueries,
    top: TopK,
    part: int,
    inverse: NDArray[np.float32],
    allowed: NDArray[np.uint32],
    start: int,
    stop: int,
) -> None:  # pragma: no cover (compiled)
    """Compares the panels start to stop - 1 of a part with all queries in float32.

    The candidates for the nearest rows are added to `top`.

    Args:
        inverse: float32 [panels * PANEL], the reciprocals of the vectors' lengths.
        allowed: uint32 [panels], a bit for each vector that may be returned.
    """
    count = scan_queries.units.shape[0]
    for q in range(count):
        raise_limit(scan_queries, top, q)
    first_row, base, _, half = stored.parts[part]
    size = stored.dim * (2 if half == 1 else 4)
    stride = 4 * scan_queries.vectors.shape[1]
    steps, rest = stored.dim // 16, stored.dim % 16
    lanes, factors = np.empty(PANEL + ROWS, np.int64), np.zeros(PANEL + ROWS, np.float32)
    for panel in range(start, stop):
        n = _lanes(np.int64(allowed[panel]), lanes)
        for i in range(n):
            factors[i] = inverse[panel * PANEL + lanes[i]]
        for i in range(n, n + ROWS):  # fill the last tile
            lanes[i] = lanes[max(n - 1, 0)]
        first = panel * PANEL
        q = 0
        while q < count:
            left = count - q
            width = FLOAT_QUERIES if left > 1 else 1
            for i in range(0, n, ROWS):
                at = (
                    base + (first + lanes[i]) * size,
                    base + (first + lanes[i + 1]) * size,
                    base + (first + lanes[i + 2]) * size,
                    base + (first + lanes[i + 3]) * size,
                    address_of(factors) + 4 * i,
                    address_of(scan_queries.vectors) + q * stride,
                    stride,
                    address_of(top.limits) + 4 * q,
                    steps,
                    rest,
                    address_of(top.out),
                    address_of(top.masks),
                )
                if half == 1:
                    reached = _half_tile(at) if width > 1 else _half_one(at)
                else:
                    reached = _single_tile(at) if width > 1 else _single_one(at)
                if reached:
                    for j in range(min(width, left)):
                        for lane in range(min(ROWS, n - i)):
                            value = top.out[j * ROWS + lane]
                            if value >= top.limits[q + j]:
                                m = top.gathered[q + j]
                                top.values[q + j, m] = value
                                top.rows[q + j, m] = first_row + first + lanes[i + lane]
                                top.gathered[q + j] = m + 1
                                if m + 1 == top.values.shape[1]:
                                    rescore(stored, scan_queries, top, q + j, False)
            q += width
