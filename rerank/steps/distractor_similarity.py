"""Further rules against non-landmarks, by similarity to distractors.

penalty.py holds the rule that counts the hits of distractors. The rules here use the distractors
that are nearest to a picture. Two come from the Google Landmark Recognition contest of 2020. The
first place subtracts B(g), the mean of the 5 largest cosines of a gallery picture g to the
distractors, from every cosine with g before neighbours are chosen, and C(q), the mean of the
query's 10 largest, from the confidence. The second place uses the third largest cosine. The third
place of 2019 demotes labels that are predicted too often.

All rules are functions over arrays; without distractors they subtract nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.penalty import rescaled, with_penalty
from lmk.rerank.steps.ranking import MOST
from lmk.rerank.steps.state import RankingState
from lmk.rerank.steps.step import Place, Step


class DistractorSimilarityStep(Step):
    """Subtracts each gallery picture's own similarity to the distractors.

    The similarity is B(g), the mean of the m largest cosines of the picture to distractors. The
    first place of the Google Landmark Recognition contest of 2020 had m 5 and factor 1.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"distractor_similarity"})
    place: ClassVar[Place] = Place.SCORES

    step: Literal["distractor_similarity"] = "distractor_similarity"
    m: int = Field(default=5, ge=1, le=MOST)
    factor: float = Field(default=1.0, ge=0)

    def table_size(self) -> int:
        """Returns the number of distractors of each mean."""
        return self.m

    def context_values(self, table: Any, background: float) -> dict[str, Any]:
        """Returns the mean of each row of cosines float32 [rows, m]."""
        return {"distractor_similarity": mean_of(table, self.m)}

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Lowers `scores` and adds to `penalty`; does nothing without distractors."""
        if context.distractor_similarity is None:
            return state
        penalty = np.float32(self.factor) * rescaled(
            context.distractor_similarity, state.background
        )
        return with_penalty(state, penalty)


class QueryPenaltyStep(Step):
    """Subtracts factor * C(q), the query's own similarity to distractors, from the confidence.

    C(q) is the mean of the m largest cosines of the query to distractors. The first place of the
    Google Landmark Recognition contest of 2020 had m 10.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"distractors"})
    place: ClassVar[Place] = Place.CONFIDENCE

    step: Literal["query_penalty"] = "query_penalty"
    m: int = Field(default=10, ge=1, le=MOST)
    factor: float = Field(default=0.5, ge=0)

    def distractor_depth(self) -> int:
        """Returns how many cosines of a query to distractors the step needs."""
        return self.m

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Lowers `confidence`; does nothing without distractors."""
        if state.distractor_cosines is None:
            return state
        similarity = rescaled(mean_of(state.distractor_cosines, self.m), state.background)
        return _with_query_penalty(state, np.float32(self.factor) * similarity)


class DemoteStep(Step):
    """Subtracts factor * t from the confidence where t is at least `at`.

    t is the query's nth largest cosine to distractors. The rule comes from the second place of the
    Google Landmark Recognition contest of 2020.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"distractors"})
    place: ClassVar[Place] = Place.CONFIDENCE

    step: Literal["demote"] = "demote"
    nth: int = Field(default=3, ge=1, le=MOST)
    at: float = Field(default=0.3, ge=0)
    factor: float = Field(default=1.5, ge=0)

    def distractor_depth(self) -> int:
        """Returns how many cosines of a query to distractors the step needs."""
        return self.nth

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Lowers `confidence`; does nothing without distractors."""
        if state.distractor_cosines is None:
            return state
        similarity = rescaled(state.distractor_cosines, state.background)
        penalty = thresholded_demotion(similarity, nth=self.nth, at=self.at, factor=self.factor)
        return _with_query_penalty(state, penalty)


class OverpredictedStep(Step):
    """Gives answers whose label more than `limit` queries got the confidence -count.

    The step is for contests only, because an answer depends on the other queries. It comes from the
    third place of the Google Landmark Recognition contest of 2019. Code that answers in batches
    leaves the step out (Pipeline.per_query) and calls `revise` in the end.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"all_queries"})
    place: ClassVar[Place] = Place.ALL_ANSWERS

    step: Literal["overpredicted"] = "overpredicted"
    limit: int = Field(default=30, ge=1)

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Replaces `confidence`."""
        confidence = demote_overpredicted(state.winner, state.confidence, limit=self.limit)
        return replace(state, confidence=confidence)

    def revise(
        self, labels: Sequence[str | None], confidence: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Returns the confidences float32 [q] of the answers to all queries."""
        code = {label: i for i, label in enumerate(dict.fromkeys(labels)) if label is not None}
        winner = np.array([-1 if label is None else code[label] for label in labels], np.int64)
        given = confidence.astype(np.float32)
        return demote_overpredicted(winner, given, limit=self.limit)


def _with_query_penalty(state: RankingState, penalty: NDArray[np.float32]) -> RankingState:
    """Returns the state with the penalty of each query, float32 [q], subtracted."""
    return replace(
        state,
        confidence=(state.confidence - penalty).astype(np.float32),
        query_penalty=(state.query_penalty + penalty).astype(np.float32),
    )


def mean_of(cosines: NDArray[np.float32], m: int) -> NDArray[np.float32]:
    """Returns the mean of the m largest cosines, or of all if there are fewer: float32 [n].

    The mean of no cosine is 0.

    Args:
        cosines: [n, at least m], falling; -inf for a missing one (Neighbours.scores).
        m: number of cosines.

    Raises:
        ValueError: there are fewer than m columns, or m is below 1.
    """
    if not 1 <= m <= cosines.shape[1]:
        raise ValueError(f"the mean of {m} largest of {cosines.shape[1]} cosines")
    first = cosines[:, :m]
    there = ~np.isneginf(first)
    sums = np.where(there, first, 0).sum(axis=1, dtype=np.float64)
    return np.asarray(sums / np.maximum(there.sum(axis=1), 1), np.float32)


def thresholded_demotion(
    cosines: NDArray[np.float32], *, nth: int = 3, at: float = 0.3, factor: float = 1.5
) -> NDArray[np.float32]:
    """Returns factor * t where t, the nth largest cosine to distractors, is at least `at`; else 0.

    The second place of 2020 subtracted it from a confidence (float32 [n], never negative).

    Args:
        cosines: [n, at least nth], cosines of the queries to distractors, falling.
        nth: the rank of the cosine, from 1.
        at: the cosine from which the demotion begins.
        factor: the factor of the cosine.

    Raises:
        ValueError: there are fewer than nth columns.
    """
    if not 1 <= nth <= cosines.shape[1]:
        raise ValueError(f"the {nth}. largest of {cosines.shape[1]} cosines")
    t = cosines[:, nth - 1]
    return np.where(t >= at, factor * np.maximum(t, 0), 0).astype(np.float32)


def demote_overpredicted(
    winner: NDArray[np.int64], confidence: NDArray[np.float32], *, limit: int = 30
) -> NDArray[np.float32]:
    """Returns confidences in which labels of more than `limit` queries have -count.

    An answer then depends on the other queries, so this rule is for contests only.

    Args:
        winner: int64 [q], label codes; -1 for none, which is never demoted.
        confidence: float32 [q].
        limit: largest number of answers with one label.
    """
    known = winner >= 0
    counts = np.bincount(winner[known])
    times = np.zeros(len(winner), np.int64)
    times[known] = counts[winner[known]]
    return np.where(times > limit, -times, confidence).astype(np.float32)
