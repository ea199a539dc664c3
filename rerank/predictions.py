"""Predictions: one landmark (or none) and a confidence for each query, with the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.index.neighbours import NO_ROW, Neighbours
from lmk.rerank.geometry import Match


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers to q queries and why they were given.

    Attributes:
        labels: for each query the best landmark, or None where no neighbour has a label. It is
            named even below the threshold: a contest ranks every answer and a blank gains
            nothing; a person is told "none of these" (`answers`).
        confidence: float32 [q], the higher the surer; only its order matters to GAP. -inf where
            the label is None.
        threshold: an answer below it is "none of these".
        neighbours: the gallery rows that were looked at, with their plain cosines, best first.
        scores: float32 [q, k], what each cosine became by the steps; this is what votes. -inf
            where no row.
        penalty: float32 [q, k], what was taken off the rescaled cosine (0 where no row).
        votes: float32 [q, k], what each neighbour gave to the winning label (0 for the others,
            most of which did not vote).
        bank: float32 [q], what the query's own likeness to the bank took off the confidence.
        inliers: int64 [q, k], points that a neighbour shares with the query; -1 where the
            geometric check did not look.
        seconds: float64 [q], time that check took.
        probability: float64 [q], calibrated, that the label is right; None where nothing was
            calibrated.
        landmark: float32 [q], mean cosine to the nearest gallery pictures minus that to the
            nearest of the bank, above 0 for what is more like a landmark than like none; None
            where the bank was not asked.
        matches: the points that were compared, by query number and gallery row.

    Raises:
        ValueError: when lengths or shapes differ, or a confidence is NaN.
    """

    labels: tuple[str | None, ...]
    confidence: NDArray[np.float32]
    threshold: float
    neighbours: Neighbours
    scores: NDArray[np.float32]
    penalty: NDArray[np.float32]
    votes: NDArray[np.float32]
    bank: NDArray[np.float32]
    inliers: NDArray[np.int64]
    seconds: NDArray[np.float64]
    probability: NDArray[np.float64] | None
    landmark: NDArray[np.float32] | None
    matches: Mapping[tuple[int, int], Match]

    def __post_init__(self) -> None:
        q = len(self.neighbours)
        if len(self.labels) != q or self.confidence.shape != (q,):
            raise ValueError(f"{q} queries, {len(self.labels)} labels, {self.confidence.shape}")
        if np.isnan(self.confidence).any():
            raise ValueError("a confidence is NaN")
        for name in ("bank", "seconds", "probability", "landmark"):
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

    @property
    def query_ids(self) -> tuple[str, ...]:
        """The query ids, in order."""
        return self.neighbours.query_ids

    def answers(self) -> tuple[str | None, ...]:
        """For each query the landmark, or None ("none of these") below the threshold."""
        return tuple(
            label if confidence >= self.threshold else None
            for label, confidence in zip(self.labels, self.confidence, strict=True)
        )
