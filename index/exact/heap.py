"""TopK: heaps of the best rows of each query during a scan, and buffers of candidate rows.

A scan gathers the rows that reach the limit of a query. A full buffer is reduced: its best rows are
scored in float64, and the k-th best score raises the limit. Every row that could belong to the
answer is scored, although most vectors are not. The functions are compiled and release the
interpreter's lock (GIL). Each worker has its own TopK.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lmk.index.exact.tiles import FLOAT_QUERIES, INT8_QUERIES, PANEL, score_tile

_half_score, _single_score = score_tile(half=True), score_tile(half=False)
SPARE = max(INT8_QUERIES[0], FLOAT_QUERIES)  # largest number of padding queries in the last tile
_LENGTH_TOLERANCE = 2e-2  # of the squared length of a normalised vector


class Stored(NamedTuple):
    """The stored vectors by address, for the compiled functions.

    Attributes:
        parts: int64 [parts, 4]: the first row, the address of the vectors, the address of their
            lengths (float32), and 1 for float16 or 0 for float32 vectors.
        dim: the number of components of a vector.
    """

    parts: NDArray[np.int64]
    dim: int


class ScanQueries(NamedTuple):
    """The queries of a scan, shared by all workers.

    Attributes:
        vectors: float32 [q + padding queries of the last tile, dim + zeros up to a multiple of
            SUMS].
        units: float64 [q], the factor from a value of the scan to a score.
        slacks: float64 [q], the bounds of the error: a score is at most unit * value + slack.
        floors: float32 [q], lower bounds of the scores in the answer, which the workers raise.
    """

    vectors: NDArray[np.float32]
    units: NDArray[np.float64]
    slacks: NDArray[np.float64]
    floors: NDArray[np.float32]


class TopK(NamedTuple):
    """The best rows and the gathered candidates of one worker.

    Attributes:
        values, rows: float32 and int64 [q, room], the gathered rows, which are not scored yet.
        gathered: int64 [q], the number of gathered rows.
        scores, best: float32 and int64 [q, k], heaps of the best scored rows, the worst first.
        filled: int64 [q], the number of rows in the heap.
        limits: float32 [q + SPARE]; rows with a value below the limit are not gathered.
        damaged: int64 [1], a row whose vector does not have its stored length, or -1.
        out, masks: float32 and uint32, the output buffers of a tile.
        score: float64 [2], the output buffer of the tile that computes a score.
    """

    values: NDArray[np.float32]
    rows: NDArray[np.int64]
    gathered: NDArray[np.int64]
    scores: NDArray[np.float32]
    best: NDArray[np.int64]
    filled: NDArray[np.int64]
    limits: NDArray[np.float32]
    damaged: NDArray[np.int64]
    out: NDArray[np.float32]
    masks: NDArray[np.uint32]
    score: NDArray[np.float64]

    @classmethod
    def of(cls, queries: int, k: int, room: int) -> TopK:
        """Returns an empty TopK with buffers for `room` (at least 2 k) gathered rows."""
        padded = queries + SPARE
        limits = np.full(padded, np.inf, np.float32)
        limits[:queries] = -np.inf
        return cls(
            np.empty((queries, room), np.float32),
            np.empty((queries, room), np.int64),
            np.zeros(queries, np.int64),
            np.empty((queries, k), np.float32),
            np.empty((queries, k), np.int64),
            np.zeros(queries, np.int64),
            limits,
            np.full(1, -1, np.int64),
            np.empty(PANEL * SPARE, np.float32),
            np.empty(SPARE, np.uint32),
            np.empty(2, np.float64),
        )


@njit(nogil=True, cache=True)
def address_of(array: NDArray[Any]) -> np.int64:  # pragma: no cover (compiled)
    """Returns the address of an array as an integer, for address arithmetic."""
    return np.int64(array.ctypes.data)


@njit(nogil=True, cache=True, inline="always")
def _worse(
    score: np.float32, row: np.int64, other: np.float32, other_row: np.int64
) -> bool | np.bool_:  # pragma: no cover (compiled)
    """Returns whether the first row comes after the other row in an answer."""
    return score < other or (score == other and row > other_row)


@njit(nogil=True, cache=True, inline="always")
def _keep(
    top: TopK, q: int, score: np.float32, row: np.int64
) -> None:  # pragma: no cover (compiled)
    """Inserts a scored row into the heap if the row is among the k best so far."""
    scores, best = top.scores[q], top.best[q]
    k = scores.shape[0]
    n = top.filled[q]
    if n < k:
        at = n
        top.filled[q] = n + 1
        while at > 0:
            up = (at - 1) // 2
            if not _worse(score, row, scores[up], best[up]):
                break
            scores[at], best[at] = scores[up], best[up]
            at = up
    else:
        if not _worse(scores[0], best[0], score, row):
            return
        at = 0
        while True:
            down = 2 * at + 1
            if down >= k:
                break
            if down + 1 < k and _worse(scores[down + 1], best[down + 1], scores[down], best[down]):
                down += 1
            if not _worse(scores[down], best[down], score, row):
                break
            scores[at], best[at] = scores[down], best[down]
            at = down
    scores[at], best[at] = score, row


@njit(nogil=True, cache=True, inline="always")
def _score(
    stored: Stored, scan_queries: ScanQueries, top: TopK, q: int, row: np.int64
) -> np.float32:  # pragma: no cover (compiled)
    """Returns the score of a row, rounded to float32."""
    low, high = 0, stored.parts.shape[0]
    while high - low > 1:
        middle = (low + high) // 2
        if stored.parts[middle, 0] <= row:
            low = middle
        else:
            high = middle
    at = row - stored.parts[low, 0]
    length = stored.parts[low, 2] + 4 * at
    query = address_of(scan_queries.vectors) + 4 * q * scan_queries.vectors.shape[1]
    steps, rest = stored.dim // 16, stored.dim % 16
    if stored.parts[low, 3] == 1:
        vector = stored.parts[low, 1] + 2 * at * stored.dim
        _half_score((vector, length, query, steps, rest, address_of(top.score)))
    else:
        vector = stored.parts[low, 1] + 4 * at * stored.dim
        _single_score((vector, length, query, steps, rest, address_of(top.score)))
    if not abs(top.score[1] - 1.0) <= _LENGTH_TOLERANCE:
        top.damaged[0] = row
    return np.float32(top.score[0])


@njit(nogil=True, cache=True, inline="always")
def raise_limit(
    scan_queries: ScanQueries, top: TopK, q: int
) -> None:  # pragma: no cover (compiled)
    """Raises the limit of a query to the k-th best score of any worker."""
    if top.filled[q] == top.scores.shape[1] and top.scores[q, 0] > scan_queries.floors[q]:
        scan_queries.floors[q] = top.scores[q, 0]
    floor = np.float64(scan_queries.floors[q])
    top.limits[q] = np.float32((floor - scan_queries.slacks[q]) / scan_queries.units[q])


@njit(nogil=True, cache=True)
def _best_first(
    values: NDArray[np.float32], rows: NDArray[np.int64], n: int, k: int
) -> None:  # pragma: no cover (compiled)
    """Moves the k largest of the first n values, with their rows, to the front."""
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                rows[i], rows[j] = rows[j], rows[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            return


@njit(nogil=True, cache=True)
def rescore(
    stored: Stored, scan_queries: ScanQueries, top: TopK, q: int, everything: bool
) -> None:  # pragma: no cover (compiled)
    """Scores the best gathered rows of a query and removes the rows below the new limit.

    The other candidates stay in the buffer. These are scored too if they fill half of the buffer,
    or if `everything` is true.
    """
    values, rows = top.values[q], top.rows[q]
    n = top.gathered[q]
    first = min(n, top.scores.shape[1])
    if n > first:
        _best_first(values, rows, n, first)
    for i in range(first):
        if values[i] >= top.limits[q]:
            _keep(top, q, _score(stored, scan_queries, top, q, rows[i]), rows[i])
            raise_limit(scan_queries, top, q)
    left = 0
    for i in range(first, n):
        if values[i] >= top.limits[q]:
            values[left], rows[left] = values[i], rows[i]
            left += 1
    if everything or 2 * left > values.shape[0]:
        for i in range(left):
            if values[i] >= top.limits[q]:
                _keep(top, q, _score(stored, scan_queries, top, q, rows[i]), rows[i])
                raise_limit(scan_queries, top, q)
        left = 0
    top.gathered[q] = left


@njit(nogil=True, cache=True)
def rescore_all(
    stored: Stored, scan_queries: ScanQueries, top: TopK
) -> None:  # pragma: no cover (compiled)
    """Scores every gathered row that may belong to an answer."""
    for q in range(top.gathered.shape[0]):
        raise_limit(scan_queries, top, q)
        rescore(stored, scan_queries, top, q, True)
