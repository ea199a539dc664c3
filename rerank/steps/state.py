"""Queries, and their state on the way from neighbours to predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.embed.local.features import LocalFeatures
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.rerank.steps.ranking import ranked

NOT_LOOKED_AT = -1  # inliers of a neighbour without a geometric check


@dataclass(frozen=True, eq=False)
class Match:
    """The matched points of two pictures.

    Attributes:
        query, gallery: float32 [m, 2], matched points in pixels of the reduced pictures.
        inlier: bool [m], whether the geometry explains the match.
        query_size, gallery_size: width and height of the reduced pictures.
    """

    query: NDArray[np.float32]
    gallery: NDArray[np.float32]
    inlier: NDArray[np.bool_]
    query_size: tuple[int, int]
    gallery_size: tuple[int, int]

    @property
    def inliers(self) -> int:
        """The number of matches that the geometry explains."""
        return int(self.inlier.sum())


@dataclass(frozen=True, eq=False)
class QueryBatch:
    """The pictures to be recognised.

    Attributes:
        embeddings: unit vectors [q, d].
        without: for each query the gallery rows that count as absent, such as the picture itself
            when a gallery answers its own pictures. These rows are no neighbours and in no
            neighbourhood.
        features: function from the number of a query to its local features, or to the reason why
            there are none. None skips the geometric check.
        without_distractors: for each query rows of distractors that count as absent, such as its
            copies.

    Raises:
        ValueError: the lists of rows are not as many as the queries.
    """

    embeddings: Embeddings
    without: Sequence[NDArray[np.int64]] | None = None
    features: Callable[[int], LocalFeatures | str] | None = None
    without_distractors: Sequence[NDArray[np.int64]] | None = None

    def __post_init__(self) -> None:
        for rows in (self.without, self.without_distractors):
            if rows is not None and len(rows) != len(self.embeddings):
                count = len(self.embeddings)
                raise ValueError(f"got {count} queries but {len(rows)} lists of rows")

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking:
    """Candidates of q queries with their scores, and the evidence for them.

    Attributes:
        neighbours: the gallery rows that were searched, with their plain cosines, best first.
        confidence: float32 [q]; a larger one is more certain, and only its order matters to GAP.
            -inf if no neighbour has a label.
        threshold: the confidence below which an answer is "none of these".
        scores: float32 [q, k], the cosines after the steps, with which the neighbours vote. -inf
            for no neighbour.
        penalty: float32 [q, k], subtracted from the rescaled cosines; 0 for no neighbour.
        votes: float32 [q, k], the vote of each neighbour for the best label; 0 for other
            neighbours.
        query_penalty: float32 [q], subtracted from the confidence for similarity to distractors.
        inliers: int64 [q, k], points that a neighbour shares with the query; NOT_LOOKED_AT (-1)
            without a geometric check.
        matches: the points that were compared, by query number and gallery row.
        geometry_seconds: float64 [q], the duration of the check.
    """

    neighbours: Neighbours
    confidence: NDArray[np.float32]
    threshold: float
    scores: NDArray[np.float32]
    penalty: NDArray[np.float32]
    votes: NDArray[np.float32]
    query_penalty: NDArray[np.float32]
    inliers: NDArray[np.int64]
    matches: Mapping[tuple[int, int], Match]
    geometry_seconds: NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class RankingState(Ranking):
    """Queries on their way from neighbours to predictions.

    Attributes:
        queries: the pictures to be recognised.
        candidates: number of neighbours of a query that may vote.
        winner: int64 [q], the code of the best label; -1 for none.
        background: the mean cosine by which scores and penalties are rescaled.
        distractor_cosines: float32 [q, n], the largest cosines of each query to distractors,
            falling; None without distractors.
    """

    queries: QueryBatch
    candidates: int
    winner: NDArray[np.int64]
    background: float
    distractor_cosines: NDArray[np.float32] | None

    @classmethod
    def of(
        cls,
        queries: QueryBatch,
        neighbours: Neighbours,
        candidates: int,
        distractor_cosines: NDArray[np.float32] | None = None,
    ) -> RankingState:
        """Returns the state before the first step.

        Raises:
            ValueError: the neighbours belong to other queries.
        """
        if neighbours.query_ids != queries.embeddings.ids:
            raise ValueError("the neighbours are of other queries")
        if queries.without is not None:
            neighbours = leave_out(neighbours, queries.without)
        q, shape = len(neighbours), neighbours.rows.shape
        zeros = np.zeros(shape, np.float32)
        return cls(
            queries=queries,
            neighbours=neighbours,
            candidates=candidates,
            scores=neighbours.scores,
            penalty=zeros,
            winner=np.full(q, -1, np.int64),
            confidence=np.full(q, -np.inf, np.float32),
            votes=zeros,
            threshold=float("-inf"),
            background=0.0,
            distractor_cosines=distractor_cosines,
            query_penalty=np.zeros(q, np.float32),
            inliers=np.full(shape, NOT_LOOKED_AT, np.int64),
            matches={},
            geometry_seconds=np.zeros(q),
        )


def leave_out(
    neighbours: Neighbours, without: Sequence[NDArray[np.int64]], k: int | None = None
) -> Neighbours:
    """Returns the k nearest neighbours (default: all) without some rows for each query."""
    rows, scores = neighbours.rows, neighbours.scores.copy()
    for i, banned in enumerate(without):
        scores[i, np.isin(rows[i], banned)] = -np.inf
    return ranked(np.where(np.isneginf(scores), NO_ROW, rows), scores, neighbours.query_ids, k)
