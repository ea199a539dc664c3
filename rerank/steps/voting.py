"""kNN voting: the labels of the nearest gallery pictures, weighed by their similarity.

How the known rules are written:

    top-1             the first column alone
    sum of cosines    power_weights(scores, 1)
    powers            power_weights(scores, p): p = 9 in the third place of the Google Landmark
                      Recognition contest of 2020
    softmax           softmax_weights(scores, temperature)
    class prior       scale = class_prior(...)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.neighbours import NO_ROW
from lmk.rerank.steps.ranking import order_of

_MANY = 16  # queries from which the fast way is taken
_BLOCK = 2048  # queries of the fast way at a time: small enough for the processor's cache
_COMPILED = 1 << 20  # neighbours from which on the compiled vote saves more than it takes to load
_WHOLE = 64  # whole powers up to here are multiplied


@dataclass(frozen=True, eq=False)
class Votes:
    """The outcome of a vote over q queries.

    Attributes:
        winner: int64 [q], label code with the largest sum, the smaller code on a tie; -1 where no
            neighbour has a label.
        total: float64 [q], its sum of weights; 0 where there is no winner.
        shares: float32 [q, k], what each neighbour gave to the winner.
    """

    winner: NDArray[np.int64]
    total: NDArray[np.float64]
    shares: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LabelSums:
    """What each label of each query got, labels without a neighbour left out.

    Attributes:
        query, code: int64 [n], sorted by query, then label code.
        total: float64 [n].
    """

    query: NDArray[np.int64]
    code: NDArray[np.int64]
    total: NDArray[np.float64]


def power_weights(scores: NDArray[np.floating], power: float = 1.0) -> NDArray[np.float64]:
    """max(score, 0) ** power, float64 [q, k]; 0 where there is no neighbour.

    Raises:
        ValueError: when power is not above 0.
    """
    if not power > 0:
        raise ValueError(f"power must be above 0, got {power}")
    weights = np.maximum(scores, 0).astype(np.float64)
    if power == int(power) <= _WHOLE:
        return whole_power(weights, int(power))
    return np.asarray(weights**power, np.float64)


def whole_power(base: NDArray[np.float64], power: int) -> NDArray[np.float64]:
    """base ** power by squaring, for a power of at least 1: a tenth of the time of a logarithm."""
    result, square = np.ones_like(base), base.copy()
    while True:
        if power & 1:
            result *= square
        power >>= 1
        if not power:
            return result
        square *= square


def softmax_weights(scores: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """exp(score / temperature), each query's divided by their sum: float64 [q, k].

    0 where there is no neighbour; a query without any has zeros only.

    Raises:
        ValueError: when temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    wide = scores.astype(np.float64)
    best = wide.max(axis=1, keepdims=True, initial=-np.inf)
    best = np.where(np.isneginf(best), 0, best)  # so that the largest is exp(0)
    weights = np.exp((wide - best) / temperature)
    whole = weights.sum(axis=1, keepdims=True)
    return np.asarray(weights / np.where(whole > 0, whole, 1), np.float64)


def class_prior(pictures: NDArray[np.integer], strength: float) -> NDArray[np.float64]:
    """pictures ** strength for each label: log n, `strength` times, added to the log of a sum.

    1 makes what is photographed often more probable, as it is among queries of a contest; -1
    makes a sum over all pictures of a label their mean. 0 does nothing.

    Args:
        pictures: int [labels], gallery pictures of each; a label without any gets 1.
        strength: of the prior.
    """
    counted = np.maximum(pictures, 1).astype(np.float64)
    return np.asarray(counted**strength, np.float64)


def vote_best(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    k: int,
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    *,
    power: float = 1.0,
    temperature: float | None = None,
    most: int | None = None,
    scale: NDArray[np.float64] | None = None,
) -> Votes:
    """The k best neighbours vote with max(score, 0) ** power, or with their softmax.

    The best by score falling, then row rising; their weights are added up in the order in which
    they stand in `rows`. Where no score of one that has a label is above 0, the label of the best
    one that has any wins with a total of 0 (the smaller code where it has several).

    Args:
        rows: int64 [q, n], gallery rows; -1 for no neighbour.
        scores: float32 [q, n], in any order; one of -inf does not vote.
        k: neighbours that vote.
        label_offsets, label_codes, most, scale: see `vote`.
        power: see power_weights.
        temperature: of a softmax over the k best, which then stands for the power.

    Returns:
        winner and total [q], shares [q, n].

    Raises:
        ValueError: for k below 1, or numbers that power_weights, softmax_weights or vote refuse.
    """
    if k < 1:
        raise ValueError(f"at least 1 neighbour must vote, got {k}")
    k = min(k, rows.shape[1])
    plain = temperature is None and most is None
    if rows.size >= _COMPILED and plain and power in range(1, _WHOLE + 1):
        votes = _vote_compiled(rows, scores, k, label_offsets, label_codes, int(power), scale)
        if votes is not None:
            return votes
    voters, of_voters, places = np.where(np.isneginf(scores), NO_ROW, rows), scores, None
    if k < rows.shape[1]:
        places = np.sort(order_of(voters, scores)[:, :k], axis=1)
        voters, of_voters = (np.take_along_axis(a, places, axis=1) for a in (voters, scores))
    weights = (
        power_weights(of_voters, power)
        if temperature is None
        else softmax_weights(of_voters, temperature)
    )
    # A power may leave nothing of a small score: then the best one speaks for all, too.
    known = labelled(voters, label_offsets)
    silent = np.flatnonzero(~((weights > 0) & (of_voters > 0) & known).any(axis=1))
    weights[silent] = 0
    speakers = np.where(known[silent], of_voters[silent], np.float32(-np.inf))
    first = order_of(voters[silent], speakers)[:, :1]
    weights[silent[:, None], first] = 1
    result = vote(voters, weights, label_offsets, label_codes, most=most, scale=scale)
    result.total[silent] = 0
    result.shares[silent] = 0
    shares = result.shares
    if places is not None:
        shares = np.zeros(rows.shape, np.float32)
        np.put_along_axis(shares, places, result.shares, axis=1)
    return Votes(result.winner, result.total, shares)


def labelled(rows: NDArray[np.int64], label_offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the gallery rows have a label, bool of the shape of `rows`; -1 has none."""
    # -1 compares the first offset with the last
    return np.asarray(label_offsets[rows + 1] > label_offsets[rows], np.bool_)


def _vote_compiled(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    k: int,
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    power: int,
    scale: NDArray[np.float64] | None,
) -> Votes | None:
    """vote_best, to the last bit; None where a gallery picture has several labels."""
    from lmk.rerank.steps.voting_compiled import (  # numba takes a while to import
        single_codes,
        vote_rows,
    )

    row_codes = np.empty(len(label_offsets) - 1, np.int32)
    if not single_codes(label_offsets, label_codes, row_codes):
        return None
    votes = Votes(
        np.empty(len(rows), np.int64), np.empty(len(rows)), np.zeros(rows.shape, np.float32)
    )
    given = np.ascontiguousarray(rows), np.ascontiguousarray(scores)
    by_label = np.zeros(0) if scale is None else np.ascontiguousarray(scale, np.float64)
    vote_rows(*given, k, power, row_codes, by_label, votes.winner, votes.total, votes.shares)
    return votes


def vote(
    rows: NDArray[np.int64],
    weights: NDArray[np.floating],
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    *,
    most: int | None = None,
    scale: NDArray[np.float64] | None = None,
) -> Votes:
    """Sums weights by label and takes the label with the largest sum.

    Args:
        rows: int64 [q, k], gallery rows; -1 for no neighbour.
        weights: float [q, k], not negative.
        label_offsets: int64 [gallery rows + 1]; row r has the labels
            label_codes[label_offsets[r]:label_offsets[r + 1]] and votes for each of them.
        label_codes: int32, codes from 0.
        most: votes of a label that count, the largest ones, the earlier of equals; all unless
            given.
        scale: float [labels], not negative, what votes for each label are multiplied by
            (class_prior).

    Raises:
        ValueError: when most is below 1.
    """
    if most is None and scale is None and len(rows) >= _MANY:
        row_codes = _single_codes(rows, label_offsets, label_codes)
        if row_codes is not None:
            return vote_single(row_codes, weights.astype(np.float64, copy=False))
    q, k = rows.shape
    place, codes, weight = _ballots(rows, weights, label_offsets, label_codes, most, scale)
    sums = _sum(place // max(k, 1), codes, weight)
    winner, total = np.full(q, -1, np.int64), np.zeros(q, np.float64)
    # Best last, so that the assignment below leaves it: sum rising, then code falling.
    order = np.lexsort((-sums.code, sums.total))
    winner[sums.query[order]] = sums.code[order]
    total[sums.query[order]] = sums.total[order]
    shares = np.zeros(rows.size, np.float32)
    won = codes == winner[place // max(k, 1)]
    shares[place[won]] = weight[won]
    return Votes(winner, total, shares.reshape(q, k))


def vote_single(codes: NDArray[np.integer], weights: NDArray[np.floating]) -> Votes:
    """The same vote where no gallery picture has more than one label; much faster.

    Args:
        codes: int [q, k], the label code of each neighbour; -1 where it has none, or where there
            is no neighbour.
        weights: float [q, k], not negative. They are added up as float32 if that is what they
            are, which takes two thirds of the time, else as float64.

    Returns:
        What `vote` gives, to the last bit of float64 weights.
    """
    q, k = codes.shape
    precision = np.float32 if weights.dtype == np.float32 else np.float64
    winner, total = np.full(q, -1, np.int64), np.zeros(q, np.float64)
    shares = np.zeros((q, k), np.float32)
    if not k:
        return Votes(winner, total, shares)
    for start in range(0, q, _BLOCK):
        part = slice(start, start + _BLOCK)
        # Neighbours first: then each step below works on a whole block of queries.
        code = np.ascontiguousarray(codes[part].T)
        weight = np.ascontiguousarray(weights[part].T, precision)
        best, label = _largest(code, weight)
        winner[part] = label
        total[part] = np.maximum(best, 0)
        shares[part] = (weight * ((code == label) & (label >= 0))).T
    return Votes(winner, total, shares)


def _largest(
    code: NDArray[np.integer], weight: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.integer]]:
    """The largest sum and its label code, [q], of [k, q]; -1 and -1 where there is no label.

    Each neighbour gathers the weights of its label from itself on. The first one of a label has
    the whole sum and no later one has more, as no weight is negative.
    """
    if code.shape[1] == 1:
        # numpy adds up a single column in another order than each of several.
        best, label = _largest(np.repeat(code, 2, axis=1), np.repeat(weight, 2, axis=1))
        return best[:1], label[:1]
    sums = np.empty_like(weight)
    for i in range(len(code)):
        same = code[i:] == code[i]
        np.add.reduce(same * weight[i:], axis=0, out=sums[i])  # in the order of the neighbours
    sums[code < 0] = -1
    best = sums.max(axis=0)
    label = np.where(sums == best, code, np.iinfo(code.dtype).max).min(axis=0)
    return best, np.where(best < 0, -1, label)


def _single_codes(
    rows: NDArray[np.int64], label_offsets: NDArray[np.int64], label_codes: NDArray[np.int32]
) -> NDArray[np.int32] | None:
    """int32 [q, k], the label of each neighbour, -1 for none; None where one has several."""
    if len(label_offsets) < 2 or not len(label_codes):
        return np.full(rows.shape, -1, np.int32)
    starts = label_offsets[rows]  # -1 takes the last one, as many labels as there are
    counts = np.where(rows < 0, 0, label_offsets[rows + 1] - starts)
    if counts.max(initial=0) > 1:
        return None
    codes = label_codes[np.minimum(starts, len(label_codes) - 1)]
    return np.where(counts == 0, np.int32(-1), codes)


def label_sums(
    rows: NDArray[np.int64],
    weights: NDArray[np.floating],
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
) -> LabelSums:
    """The sums of all labels, where `vote` keeps the largest; arguments as there."""
    place, codes, weight = _ballots(rows, weights, label_offsets, label_codes, None, None)
    return _sum(place // max(rows.shape[1], 1), codes, weight)


def _ballots(
    rows: NDArray[np.int64],
    weights: NDArray[np.floating],
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    most: int | None,
    scale: NDArray[np.float64] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """One entry a neighbour and label: place in rows.ravel(), label code, weight."""
    if most is not None and most < 1:
        raise ValueError(f"at least 1 vote of a label must count, got {most}")
    flat = rows.ravel()
    safe = np.where(flat < 0, 0, flat)
    starts = label_offsets[safe] if len(label_offsets) > 1 else np.zeros_like(safe)
    counts = label_offsets[safe + 1] - starts if len(label_offsets) > 1 else np.zeros_like(safe)
    counts = np.where(flat < 0, 0, counts)
    place = np.repeat(np.arange(flat.size), counts)  # the neighbour each single vote comes from
    within = np.arange(place.size) - np.repeat(np.cumsum(counts) - counts, counts)
    codes = label_codes[starts[place] + within].astype(np.int64)
    weight = weights.ravel()[place].astype(np.float64)
    if most is not None:
        weight[_beyond(place // max(rows.shape[1], 1), codes, weight, most)] = 0
    if scale is not None:
        weight *= scale[codes]
    return place, codes, weight


def _beyond(
    query: NDArray[np.int64], codes: NDArray[np.int64], weight: NDArray[np.float64], most: int
) -> NDArray[np.int64]:
    """The votes that come after the `most` largest of their query and label."""
    order = np.lexsort((-weight, codes, query))
    fresh = np.ones(order.size, np.bool_)
    fresh[1:] = (np.diff(query[order]) != 0) | (np.diff(codes[order]) != 0)
    first = np.maximum.accumulate(np.where(fresh, np.arange(order.size), 0))
    return order[np.arange(order.size) - first >= most]


def _sum(
    query: NDArray[np.int64], codes: NDArray[np.int64], weight: NDArray[np.float64]
) -> LabelSums:
    labels = int(codes.max(initial=0)) + 1
    keys, inverse = np.unique(query * labels + codes, return_inverse=True)
    total = np.bincount(inverse, weight, len(keys)).astype(np.float64, copy=False)
    return LabelSums(keys // labels, keys % labels, total)
