"""Predictions: one landmark (or none) and a confidence for each query, with the evidence."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.neighbours import NO_ROW
from lmk.rerank.steps.state import Ranking, RankingState

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to one query.

    Attributes:
        query: the id of the query.
        label: the landmark, or None for "none of these".
        best: the best landmark, even below the threshold; None if no neighbour has a label.
        confidence: the confidence in `best`; a larger one is more certain. None without `best`.
        probability: calibrated chance that `best` is right; None without a calibration.
        threshold: the confidence below which the answer is "none of these"; None without one.
        query_penalty: the number subtracted from the confidence for similarity to distractors.
        landmark_score: above 0 for a query more similar to the gallery than to the distractors;
            None without distractors.
        rows: int64 [n], the gallery rows that were compared, nearest first.
        scores: float32 [n], the plain cosines of these rows.
    """

    query: str
    label: str | None
    best: str | None
    confidence: float | None
    probability: float | None
    threshold: float | None
    query_penalty: float
    landmark_score: float | None
    rows: NDArray[np.int64] = field(repr=False)
    scores: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Predictions(Ranking):
    """The answers to q queries, with their evidence (see Ranking).

    The predictions are a sequence: `len`, iteration and `predictions[i]` work by query.

    Attributes:
        labels: for each query the best landmark, even below the threshold, or None if no neighbour
            has a label. A contest ranks every answer, and a blank gains nothing; `answers` applies
            the threshold.
        probability: float64 [q], calibrated chance that the label is right; None without a
            calibration.
        landmark_score: float32 [q], mean cosine to the nearest gallery pictures minus the mean
            cosine to the nearest distractors. None if no distractor was compared.

    Raises:
        ValueError: lengths or shapes differ, or a confidence is NaN.
    """

    labels: tuple[str | None, ...]
    probability: NDArray[np.float64] | None = None
    landmark_score: NDArray[np.float32] | None = None

    @classmethod
    def of_state(
        cls,
        state: RankingState,
        *,
        labels: tuple[str | None, ...],
        landmark_score: NDArray[np.float32] | None,
    ) -> Predictions:
        """Returns the predictions of a pipeline whose steps have been applied."""
        ranking = {each.name: getattr(state, each.name) for each in fields(Ranking)}
        return cls(labels=labels, landmark_score=landmark_score, **ranking)

    def __post_init__(self) -> None:
        q = len(self.neighbours)
        if len(self.labels) != q or self.confidence.shape != (q,):
            raise ValueError(f"{q} queries, {len(self.labels)} labels, {self.confidence.shape}")
        if np.isnan(self.confidence).any():
            raise ValueError("a confidence is NaN")
        for name in ("query_penalty", "geometry_seconds", "probability", "landmark_score"):
            array = getattr(self, name)
            if array is not None and array.shape != (q,):
                raise ValueError(f"{name} must be ({q},), got {array.shape}")
        for name in ("scores", "penalty", "votes", "inliers"):
            array = getattr(self, name)
            if array.shape != self.neighbours.rows.shape:
                raise ValueError(f"{name} must be {self.neighbours.rows.shape}, got {array.shape}")
        for name in ("penalty", "votes"):
            if getattr(self, name)[self.neighbours.rows == NO_ROW].any():
                raise ValueError(f"{name} must be 0 where there is no neighbour")

    def __len__(self) -> int:
        return len(self.neighbours)

    def __iter__(self) -> Iterator[Prediction]:
        return (self._one(i) for i in range(len(self)))

    @overload
    def __getitem__(self, item: int) -> Prediction: ...
    @overload
    def __getitem__(self, item: slice) -> list[Prediction]: ...
    def __getitem__(self, item: int | slice) -> Prediction | list[Prediction]:
        if isinstance(item, slice):
            return [self._one(i) for i in range(*item.indices(len(self)))]
        if not -len(self) <= item < len(self):
            raise IndexError(f"prediction {item} of {len(self)}")
        return self._one(operator.index(item) % len(self))

    def __repr__(self) -> str:
        named = sum(label is not None for label in self.answers())
        queries = f"{len(self)} {'query' if len(self) == 1 else 'queries'}"
        below = "" if self.threshold == float("-inf") else f", threshold {self.threshold:.3f}"
        return f"<Predictions: {queries}, {named} with a landmark{below}>"

    def to_pandas(self) -> pd.DataFrame:
        """Returns a table with a row for each query, without its neighbours."""
        import pandas as pd

        names = [one.name for one in fields(Prediction) if one.name not in ("rows", "scores")]
        rows = [[getattr(one, name) for name in names] for one in self]
        return pd.DataFrame(rows, columns=names)

    def _one(self, i: int) -> Prediction:
        neighbours, best = self.neighbours, self.labels[i]
        listed = neighbours.rows[i] != NO_ROW
        known = best is not None
        confidence = float(self.confidence[i])
        probability, landmark = self.probability, self.landmark_score
        return Prediction(
            query=self.query_ids[i],
            label=best if confidence >= self.threshold else None,
            best=best,
            confidence=confidence if known else None,
            probability=float(probability[i]) if known and probability is not None else None,
            threshold=self.threshold if self.threshold > float("-inf") else None,
            query_penalty=float(self.query_penalty[i]),
            landmark_score=None if landmark is None else float(landmark[i]),
            rows=neighbours.rows[i][listed],
            scores=neighbours.scores[i][listed],
        )

    @property
    def query_ids(self) -> tuple[str, ...]:
        """The query ids, in order."""
        return self.neighbours.query_ids

    def answers(self) -> tuple[str | None, ...]:
        """Returns for each query the landmark, or None ("none of these") below the threshold."""
        return tuple(
            label if confidence >= self.threshold else None
            for label, confidence in zip(self.labels, self.confidence, strict=True)
        )
