"""The vote of voting.vote_best, compiled: for many queries, where it takes a tenth of the time.

A block of queries is turned so that its queries lie side by side: then every comparison of two
neighbours is done for a whole block at once, by the processor's vector instructions.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_BLOCK = 256  # queries side by side: what is kept of them stays in the processor's cache


@njit(nogil=True, cache=True, error_model="numpy")
def single_codes(
    label_offsets: NDArray[np.int64], label_codes: NDArray[np.int32], codes: NDArray[np.int32]
) -> bool:  # pragma: no cover (compiled)
    """Writes the label of each row, -1 for none; false where a row has several."""
    for row in range(len(codes)):
        first, count = label_offsets[row], label_offsets[row + 1] - label_offsets[row]
        if count > 1:
            return False
        codes[row] = label_codes[first] if count else -1
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _pick(
    rows: NDArray[np.int64], scores: NDArray[np.float32], places: NDArray[np.int64]
) -> int:  # pragma: no cover (compiled)
    """Writes where the best are, by score falling, then row rising; returns how many there are."""
    n = 0
    for j in range(len(rows)):
        row, score = rows[j], scores[j]
        if row < 0 or score == -np.inf:
            continue
        if n == len(places):
            last = places[n - 1]
            if scores[last] > score or (scores[last] == score and rows[last] < row):
                continue
            n -= 1
        at = n
        while at > 0:
            other = places[at - 1]
            if scores[other] > score or (scores[other] == score and rows[other] < row):
                break
            places[at] = other
            at -= 1
        places[at] = j
        n += 1
    return n


@njit(nogil=True, cache=True, error_model="numpy")
def _voters(
    rows: NDArray[np.int64], scores: NDArray[np.float32], places: NDArray[np.int64]
) -> None:  # pragma: no cover (compiled)
    """Writes where the best are, rising; -1 for what is left."""
    n = _pick(rows, scores, places)
    places[n:] = -1
    for a in range(1, n):
        place, at = places[a], a
        while at > 0 and places[at - 1] > place:
            places[at] = places[at - 1]
            at -= 1
        places[at] = place


@njit(nogil=True, cache=True, error_model="numpy")
def _weigh(
    weights: NDArray[np.float64], square: NDArray[np.float64], power: int
) -> None:  # pragma: no cover (compiled)
    """weights ** power, as voting.whole_power multiplies; `square` is overwritten."""
    square[:] = weights
    if not power & 1:
        weights[:] = 1
    power >>= 1
    while power:
        for b in range(_BLOCK):
            square[b] *= square[b]
        if power & 1:
            for b in range(_BLOCK):
                weights[b] *= square[b]
        power >>= 1


@njit(nogil=True, cache=True, error_model="numpy")
def _add(
    sums: NDArray[np.float64],
    weights: NDArray[np.float64],
    codes: NDArray[np.int32],
    code: NDArray[np.int32],
) -> None:  # pragma: no cover (compiled)
    """Adds the weights of neighbours with that label."""
    for b in range(_BLOCK):
        sums[b] += weights[b] if codes[b] == code[b] else 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def _prefer(
    sums: NDArray[np.float64],
    code: NDArray[np.int32],
    best: NDArray[np.float64],
    won: NDArray[np.int32],
) -> None:  # pragma: no cover (compiled)
    """Keeps the larger sum, the smaller label of equal ones."""
    for b in range(_BLOCK):
        equal = (sums[b] == best[b]) & (code[b] < won[b])
        better = (code[b] >= 0) & ((sums[b] > best[b]) | equal)
        best[b] = sums[b] if better else best[b]
        won[b] = code[b] if better else won[b]


@njit(nogil=True, cache=True, error_model="numpy")
def _first(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    places: NDArray[np.int64],
    codes: NDArray[np.int32],
) -> int:  # pragma: no cover (compiled)
    """Which of the voters is the best that has a label; -1 where there is none."""
    best = -1
    for a in range(len(places)):
        j = places[a]
        if codes[a] < 0:  # as where there is no neighbour
            continue
        if best >= 0:
            i = places[best]
            if scores[i] > scores[j] or (scores[i] == scores[j] and rows[i] < rows[j]):
                continue
        best = a
    return best


@njit(nogil=True, cache=True, error_model="numpy")
def vote_rows(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    k: int,
    power: int,
    row_codes: NDArray[np.int32],
    scale: NDArray[np.float64],
    winner: NDArray[np.int64],
    total: NDArray[np.float64],
    shares: NDArray[np.float32],
) -> None:  # pragma: no cover (compiled)
    """Writes what voting.vote_best returns for weights max(score, 0) ** power.

    Args:
        rows, scores: [q, n], at least one column.
        k: neighbours that vote, 1 to n.
        power: at least 1.
        row_codes: of each gallery row (single_codes).
        scale: of each label; empty where votes are not multiplied.
        winner, total, shares: [q], [q] and [q, n]; shares hold zeros.
    """
    places = np.empty((_BLOCK, k), np.int64)
    codes, weights = np.empty((k, _BLOCK), np.int32), np.empty((k, _BLOCK), np.float64)
    sums, best = np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.float64)
    won, silent = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.bool_)
    all_vote = k == rows.shape[1]
    places[:] = np.arange(k)
    for start in range(0, len(rows), _BLOCK):
        n = min(_BLOCK, len(rows) - start)
        codes[:] = -1
        weights[:] = 0
        for b in range(n):
            q = start + b
            if not all_vote:
                _voters(rows[q], scores[q], places[b])
            for a in range(k):
                j = a if all_vote else places[b, a]
                if j >= 0 and rows[q, j] >= 0 and scores[q, j] != -np.inf:
                    codes[a, b] = row_codes[rows[q, j]]
                    weights[a, b] = max(scores[q, j], np.float32(0))
        silent[:] = True
        for a in range(k):
            _weigh(weights[a], sums, power)
            for b in range(_BLOCK):
                silent[b] &= (weights[a, b] == 0) | (codes[a, b] < 0)
        for b in range(n):
            if not silent[b]:
                continue
            speaker = _first(rows[start + b], scores[start + b], places[b], codes[:, b])
            if speaker >= 0:
                weights[speaker, b] = 1
        if len(scale):  # after it is known who is silent: that is said of the scores
            for a in range(k):
                for b in range(n):
                    if codes[a, b] >= 0:
                        weights[a, b] *= scale[codes[a, b]]
        best[:] = -1
        won[:] = -1
        for i in range(k):
            sums[:] = 0
            for j in range(i, k):  # the first of a label has the whole sum, and none has more
                _add(sums, weights[j], codes[j], codes[i])
            _prefer(sums, codes[i], best, won)
        for b in range(n):
            winner[start + b] = won[b]
            if silent[b] or won[b] < 0:
                total[start + b] = 0
                continue
            total[start + b] = best[b]
            for a in range(k):
                share = weights[a, b] if codes[a, b] == won[b] else 0.0
                if all_vote:
                    shares[start + b, a] = share
                elif places[b, a] >= 0:
                    shares[start + b, places[b, a]] = share
