"""Neighbours: for each query, the gallery rows nearest to it, best first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_ROW = -1
RowScores = tuple[NDArray[np.int64], NDArray[np.float32]]  # rows and their scores, of one shape


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest gallery rows of each of q queries.

    Attributes:
        rows: int64 [q, k], gallery row numbers, best first; NO_ROW (-1) fills the end if the
            gallery has fewer than k rows.
        scores: float32 [q, k], descending cosine similarities; -inf for NO_ROW.
        query_ids: the q query ids.

    Raises:
        ValueError: a shape or dtype is wrong, scores ascend, a row is repeated, or a score is NaN.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    query_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.dtype != np.int64:
            raise ValueError(f"rows must be int64 [q, k], got {self.rows.dtype} {self.rows.shape}")
        if self.scores.shape != self.rows.shape or self.scores.dtype != np.float32:
            got = f"{self.scores.dtype} {self.scores.shape}"
            raise ValueError(f"scores must be float32 {self.rows.shape}, got {got}")
        if len(self.query_ids) != len(self.rows):
            raise ValueError(f"{len(self.rows)} rows of neighbours, {len(self.query_ids)} queries")
        if np.isnan(self.scores).any():
            raise ValueError("a score is NaN")
        empty = self.rows == NO_ROW
        if not np.array_equal(empty, np.isneginf(self.scores)):
            raise ValueError("a score must be -inf exactly where there is no row")
        if self.rows.shape[1] > 1:
            if (self.scores[:, 1:] > self.scores[:, :-1]).any():
                raise ValueError("scores must fall from left to right")
            ordered = np.sort(self.rows, axis=1)
            if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_ROW)).any():
                raise ValueError("a row is repeated among the neighbours of one query")

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def k(self) -> int:
        """The number of neighbours of each query."""
        return int(self.rows.shape[1])
