"""The pipeline: the steps from neighbours to predictions, as data that is saved with the gallery.

    [{"step": "rescale"}, {"step": "penalty", ...}, {"step": "vote", ...}, {"step": "threshold"...}]

Each step takes an Answering and gives the next one; a new kind of step is one class here and its
arrays in the gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lmk.index.neighbours import NO_ROW, Neighbours
from lmk.index.search import Searcher
from lmk.index.view import View
from lmk.rerank.penalty import PenaltySettings, penalty_of, pick, rescaled
from lmk.rerank.picks import Picks
from lmk.rerank.predictions import Predictions
from lmk.rerank.voting import vote


@dataclass(frozen=True, eq=False)
class GalleryFacts:
    """What the steps need to know of a gallery.

    Attributes:
        label_names: by label code.
        label_offsets, label_codes: the labels of each row (see voting.vote).
        penalty: float32 [rows] taken off the scores of each row; None without a bank.
        background: mean cosine of two pictures of different landmarks (see RescaleStep).
    """

    label_names: tuple[str, ...]
    label_offsets: NDArray[np.int64]
    label_codes: NDArray[np.int32]
    penalty: NDArray[np.float32] | None = None
    background: float = 0.0

    @classmethod
    def of_labels(
        cls,
        labels: Sequence[tuple[str, ...]],
        penalty: NDArray[np.float32] | None = None,
        background: float = 0.0,
    ) -> GalleryFacts:
        """Facts of rows numbered from 0, by the labels of each."""
        names = tuple(sorted({name for row in labels for name in row}))
        code = {name: i for i, name in enumerate(names)}
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in labels])]).astype(np.int64)
        codes = np.array([code[name] for row in labels for name in row], np.int32)
        return cls(names, offsets, codes, penalty, background)


@dataclass(frozen=True, eq=False)
class Answering:
    """Queries on their way from neighbours to predictions.

    Attributes:
        neighbours: as they were searched, by plain cosine.
        candidates: only the first that many may vote; the others are evidence to be shown.
        scores: float32 [q, k], what is left of the cosines; -inf where there is no neighbour.
        penalty: float32 [q, k], taken off so far.
        winner: int64 [q], label code, -1 for none.
        confidence: float32 [q].
        votes: float32 [q, k].
        threshold: an answer below it is "none of these".
    """

    neighbours: Neighbours
    candidates: int
    scores: NDArray[np.float32]
    penalty: NDArray[np.float32]
    winner: NDArray[np.int64]
    confidence: NDArray[np.float32]
    votes: NDArray[np.float32]
    threshold: float = float("-inf")

    @classmethod
    def of(cls, neighbours: Neighbours, candidates: int) -> Answering:
        """The start: nothing taken off, nobody has voted."""
        zeros = np.zeros(neighbours.rows.shape, np.float32)
        q = len(neighbours)
        none = np.full(q, -1, np.int64)
        never = np.full(q, -np.inf, np.float32)
        return cls(neighbours, candidates, neighbours.scores, zeros, none, never, zeros)


class RescaleStep(BaseModel):
    """Scores become (cosine - background) / (1 - background).

    Raw features of photos are alike to start with (two unrelated ones have a cosine near .5), and
    a vote that weighs by powers of the cosine would let many distant pictures outvote a near one.
    Rescaled, 0 is what strangers have, whatever the embedder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["rescale"] = "rescale"

    def apply(self, answering: Answering, facts: GalleryFacts) -> Answering:
        """Replaces `scores`."""
        scores = rescaled(answering.neighbours.scores, facts.background)
        return replace(answering, scores=scores.astype(np.float32))


class PenaltyStep(PenaltySettings):
    """Takes the penalty of each gallery row off its score (see penalty.py)."""

    step: Literal["penalty"] = "penalty"

    def apply(self, answering: Answering, facts: GalleryFacts) -> Answering:
        """Fills `penalty`; does nothing where the gallery has no bank."""
        if facts.penalty is None:
            return answering
        rows = answering.neighbours.rows
        taken = np.where(rows == NO_ROW, 0, facts.penalty[np.maximum(rows, 0)])
        return replace(
            answering,
            scores=(answering.scores - taken).astype(np.float32),
            penalty=(answering.penalty + taken).astype(np.float32),
        )


class VoteStep(BaseModel):
    """The k best neighbours after the penalty vote with max(score, 0) ** power.

    The confidence is (sum of the winner's weights / k) ** (1 / power): it ranks as the sum does
    and reads like a cosine. Where every neighbour is at or below 0 the first one's label is the
    answer, and its score the confidence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["vote"] = "vote"
    k: int = Field(default=5, ge=1)
    power: float = Field(default=9.0, gt=0)

    def apply(self, answering: Answering, facts: GalleryFacts) -> Answering:
        """Fills `winner`, `confidence` and `votes`."""
        rows = answering.neighbours.rows
        candidates = rows[:, : answering.candidates]
        of_candidates = answering.scores[:, : answering.candidates]
        # By score, then row: the k best of each query, whatever order the penalty left.
        order = np.lexsort((candidates, -of_candidates), axis=1)[:, : self.k]
        voters = np.take_along_axis(candidates, order, axis=1)
        scores = np.take_along_axis(of_candidates, order, axis=1)
        weights = np.maximum(scores, 0).astype(np.float64) ** self.power
        silent = (weights == 0).all(axis=1)
        weights[silent, :1] = 1
        result = vote(voters, weights, facts.label_offsets, facts.label_codes)
        confidence = (result.total / self.k) ** (1 / self.power)
        confidence[silent] = np.minimum(scores[silent, 0], 0)
        confidence[result.winner < 0] = -np.inf
        result.shares[silent] = 0
        votes = np.zeros(rows.shape, np.float32)
        np.put_along_axis(votes, order, result.shares, axis=1)
        return replace(
            answering,
            winner=result.winner,
            confidence=confidence.astype(np.float32),
            votes=votes,
        )


class ThresholdStep(BaseModel):
    """Answers with a confidence below `value` are "none of these"; it changes no ranking."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["threshold"] = "threshold"
    value: float

    def apply(self, answering: Answering, facts: GalleryFacts) -> Answering:
        """Sets `threshold`."""
        return replace(answering, threshold=self.value)


Step = Annotated[RescaleStep | PenaltyStep | VoteStep | ThresholdStep, Field(discriminator="step")]


class Pipeline(BaseModel):
    """A list of steps, applied in order; saved with a gallery as JSON.

    Attributes:
        steps: what is done to the neighbours.
        candidates: neighbours that are searched for each query, from which the steps choose; of
            neighbours given beyond that number none votes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[Step, ...] = (RescaleStep(), PenaltyStep(), VoteStep())
    candidates: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _rescaled_first(self) -> Pipeline:
        if any(isinstance(step, RescaleStep) for step in self.steps[1:]):
            raise ValueError("a rescale step must be the first: it starts from plain cosines")
        return self

    def predict(self, neighbours: Neighbours, facts: GalleryFacts) -> Predictions:
        """Applies the steps."""
        answering = Answering.of(neighbours, self.candidates)
        for step in self.steps:
            answering = step.apply(answering, facts)
        return Predictions(
            labels=tuple(facts.label_names[w] if w >= 0 else None for w in answering.winner),
            confidence=answering.confidence,
            threshold=answering.threshold,
            neighbours=answering.neighbours,
            scores=answering.scores,
            penalty=answering.penalty,
            votes=answering.votes,
        )

    def penalty(self) -> PenaltySettings | None:
        """The settings of the penalty step, if there is one."""
        return next((step for step in self.steps if isinstance(step, PenaltyStep)), None)

    def learn_penalty(
        self, searcher: Searcher, bank: View, *, rows: int, gallery: int, background: float
    ) -> NDArray[np.float32] | None:
        """The penalty float32 [rows] of these steps; None without such a step, bank or gallery.

        Args:
            searcher, bank, rows, gallery: as penalty.pick.
            background: of the gallery (GalleryFacts).
        """
        settings = self.penalty()
        if settings is None or not bank.mask.any() or not gallery:
            return None
        picks = pick(searcher, bank, rows=rows, gallery=gallery, top=settings.top)
        return self.penalty_of(picks, background)

    def penalty_of(self, picks: Picks, background: float) -> NDArray[np.float32] | None:
        """The penalty float32 [rows] of these steps for known picks; None without such a step."""
        settings = self.penalty()
        if settings is None:
            return None
        return penalty_of(picks, settings, background=background if self.rescales() else 0.0)

    def rescales(self) -> bool:
        """Whether scores are rescaled, and the penalty with them."""
        return any(isinstance(step, RescaleStep) for step in self.steps)

    def threshold(self) -> float | None:
        """What an answer needs, or None where everything is answered."""
        return next((step.value for step in self.steps if isinstance(step, ThresholdStep)), None)

    def with_threshold(self, value: float | None) -> Pipeline:
        """The same steps with another threshold at the end, or with none."""
        kept = tuple(step for step in self.steps if not isinstance(step, ThresholdStep))
        last = () if value is None else (ThresholdStep(value=value),)
        return self.model_copy(update={"steps": (*kept, *last)})
