"""kNN voting: the labels of the nearest gallery pictures, weighted by similarity.

Known rules and how to call them:

    top-1             the first column alone
    sum of cosines    power_weights(scores, 1)
    powers            power_weights(scores, p): p = 9 in the third place of the Google Landmark
                      Recognition contest of 2020
    class prior       scale = class_prior(...)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator

from lmk.index.vectors.neighbours import NO_ROW
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.ranking import order_of
from lmk.rerank.steps.state import RankingState
from lmk.rerank.steps.step import Place, Step, without_removed

_WHOLE = 64  # whole powers up to here are multiplied


@dataclass(frozen=True, eq=False)
class Votes:
    """The result of a vote over q queries.

    Attributes:
        winner: int64 [q], the label code with the largest sum, the smaller code on a tie; -1 if no
            neighbour has a label.
        total: float64 [q], the sum of weights of the winner; 0 without a winner.
        shares: float32 [q, k], the weight of each neighbour's vote for the winner.
    """

    winner: NDArray[np.int64]
    total: NDArray[np.float64]
    shares: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LabelSums:
    """The sum of weights of each label of each query, without labels that have no neighbour.

    Attributes:
        query, code: int64 [n], sorted by query, then label code.
        total: float64 [n].
    """

    query: NDArray[np.int64]
    code: NDArray[np.int64]
    total: NDArray[np.float64]


class VoteStep(Step):
    """Lets the k best candidates vote for their labels.

    A candidate votes with max(score, 0) ** power. The confidence is (sum of the winner's votes / k)
    ** (1 / power), which ranks as the sum does and reads like a score. Where every neighbour that
    has a label scores at or below 0, the label of the first of them is the answer, and its score
    is the confidence.

    Attributes:
        k: number of candidates that vote.
        power: the exponent of the score.
        prior: votes for a label of n gallery pictures are multiplied by n ** prior.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    place: ClassVar[Place] = Place.VOTE

    step: Literal["vote"] = "vote"
    k: int = Field(default=5, ge=1)
    power: float = Field(default=9.0, gt=0)
    prior: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, settings: Any) -> Any:
        return without_removed(settings, ("temperature", "most"))

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Fills `winner`, `confidence` and `votes`."""
        rows = state.neighbours.rows
        candidates = rows[:, : state.candidates]
        scores = state.scores[:, : state.candidates]
        result = vote_best(
            candidates,
            scores,
            self.k,
            context.label_offsets,
            context.label_codes,
            power=self.power,
            scale=class_prior(context.label_pictures, self.prior) if self.prior else None,
        )
        confidence = (result.total / self.k) ** (1 / self.power)
        silent = result.total <= 0
        known = labelled(candidates[silent], context.label_offsets)
        best = np.where(known, scores[silent], -np.inf).max(axis=1, initial=-np.inf)
        confidence[silent] = np.minimum(best, 0)
        confidence[result.winner < 0] = -np.inf
        beyond = np.zeros((len(rows), rows.shape[1] - scores.shape[1]), np.float32)
        votes = np.concatenate([result.shares, beyond], axis=1) if beyond.size else result.shares
        return replace(
            state, winner=result.winner, confidence=confidence.astype(np.float32), votes=votes
        )


class ThresholdStep(Step):
    """Turns answers with a confidence below `value` into "none of these"; the ranking stays."""

    place: ClassVar[Place] = Place.THRESHOLD

    step: Literal["threshold"] = "threshold"
    value: float

    def answer_threshold(self) -> float:
        """Returns the threshold."""
        return self.value

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Sets `threshold`."""
        return replace(state, threshold=self.value)


def power_weights(scores: NDArray[np.floating], power: float = 1.0) -> NDArray[np.float64]:
    """Returns max(score, 0) ** power, float64 [q, k]; 0 where there is no neighbour.

    Args:
        scores: float [q, k]; -inf where there is no neighbour.
        power: above 0.
    """
    weights = np.maximum(scores, 0).astype(np.float64)
    if power == int(power) <= _WHOLE:
        return whole_power(weights, int(power))
    return np.asarray(weights**power, np.float64)


def whole_power(base: NDArray[np.float64], power: int) -> NDArray[np.float64]:
    """Returns base ** power by squaring, for a whole power from 1: ten times faster than by log."""
    result, square = np.ones_like(base), base.copy()
    while True:
        if power & 1:
            result *= square
        power >>= 1
        if not power:
            return result
        square *= square


def class_prior(pictures: NDArray[np.integer], strength: float) -> NDArray[np.float64]:
    """Returns pictures ** strength for each label, by which the sum of its votes is multiplied.

    1 makes landmarks that are photographed often more probable, as they are among the queries of a
    contest. -1 makes a sum over all pictures of a label their mean. 0 does nothing.

    Args:
        pictures: int [labels], number of gallery pictures; a label without pictures counts as 1.
        strength: the exponent.
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
    scale: NDArray[np.float64] | None = None,
) -> Votes:
    """Returns the votes of the k best neighbours, each with max(score, 0) ** power.

    The best are those by score falling, then row rising. Their weights are summed in the order of
    `rows`. Where no labelled neighbour scores above 0, the label of the best labelled one wins with
    a total of 0 (the smaller code where it has several).

    Args:
        rows: int64 [q, n], gallery rows; -1 for no neighbour.
        scores: float32 [q, n], in any order; one of -inf does not vote.
        k: number of neighbours that vote.
        label_offsets, label_codes, scale: see `vote`.
        power: see power_weights.
    """
    k = min(k, rows.shape[1])
    voters, of_voters, places = np.where(np.isneginf(scores), NO_ROW, rows), scores, None
    if k < rows.shape[1]:
        places = np.sort(order_of(voters, scores)[:, :k], axis=1)
        voters, of_voters = (np.take_along_axis(a, places, axis=1) for a in (voters, scores))
    weights = power_weights(of_voters, power)
    # The power of a small score may be 0. Then only the best labelled neighbour votes, too.
    known = labelled(voters, label_offsets)
    silent = np.flatnonzero(~((weights > 0) & (of_voters > 0) & known).any(axis=1))
    weights[silent] = 0
    speakers = np.where(known[silent], of_voters[silent], np.float32(-np.inf))
    first = order_of(voters[silent], speakers)[:, :1]
    weights[silent[:, None], first] = 1
    result = vote(voters, weights, label_offsets, label_codes, scale=scale)
    result.total[silent] = 0
    result.shares[silent] = 0
    shares = result.shares
    if places is not None:
        shares = np.zeros(rows.shape, np.float32)
        np.put_along_axis(shares, places, result.shares, axis=1)
    return Votes(result.winner, result.total, shares)


def labelled(rows: NDArray[np.int64], label_offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns which gallery rows have a label, bool of the shape of `rows`; -1 has none."""
    # -1 compares the first offset with the last
    return np.asarray(label_offsets[rows + 1] > label_offsets[rows], np.bool_)


def vote(
    rows: NDArray[np.int64],
    weights: NDArray[np.floating],
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    *,
    scale: NDArray[np.float64] | None = None,
) -> Votes:
    """Returns the label with the largest sum of weights of each query.

    Args:
        rows: int64 [q, k], gallery rows; -1 for no neighbour.
        weights: float [q, k], not negative.
        label_offsets: int64 [gallery rows + 1]; row r has the labels
            label_codes[label_offsets[r]:label_offsets[r + 1]] and votes for each of them.
        label_codes: int32, codes from 0.
        scale: float [labels], not negative, the factor of the votes for each label (class_prior).
    """
    q, k = rows.shape
    place, codes, weight = _ballots(rows, weights, label_offsets, label_codes, scale)
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


def label_sums(
    rows: NDArray[np.int64],
    weights: NDArray[np.floating],
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
) -> LabelSums:
    """Returns the sums of all labels; the arguments are those of `vote`."""
    place, codes, weight = _ballots(rows, weights, label_offsets, label_codes, None)
    return _sum(place // max(rows.shape[1], 1), codes, weight)


def _ballots(
    rows: NDArray[np.int64],
    weights: NDArray[np.floating],
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    scale: NDArray[np.float64] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Returns place in rows.ravel(), label code and weight of each neighbour and label."""
    flat = rows.ravel()
    safe = np.where(flat < 0, 0, flat)
    starts = label_offsets[safe] if len(label_offsets) > 1 else np.zeros_like(safe)
    counts = label_offsets[safe + 1] - starts if len(label_offsets) > 1 else np.zeros_like(safe)
    counts = np.where(flat < 0, 0, counts)
    place = np.repeat(np.arange(flat.size), counts)  # the neighbour each single vote comes from
    within = np.arange(place.size) - np.repeat(np.cumsum(counts) - counts, counts)
    codes = label_codes[starts[place] + within].astype(np.int64)
    weight = weights.ravel()[place].astype(np.float64)
    if scale is not None:
        weight *= scale[codes]
    return place, codes, weight


def _sum(
    query: NDArray[np.int64], codes: NDArray[np.int64], weight: NDArray[np.float64]
) -> LabelSums:
    labels = int(codes.max(initial=0)) + 1
    keys, inverse = np.unique(query * labels + codes, return_inverse=True)
    total = np.bincount(inverse, weight, len(keys)).astype(np.float64, copy=False)
    return LabelSums(keys // labels, keys % labels, total)
