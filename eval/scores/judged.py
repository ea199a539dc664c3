"""Judged answers: a submission joined with the truth, one row per query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import SubmissionError
from lmk.eval.files.query_ids import unknown_id
from lmk.eval.files.submission import Submission
from lmk.eval.files.truth import Truth


@dataclass(frozen=True, eq=False)
class Judged:
    """Truth and answer of each scored query; the input of every score.

    Rows are in the ascending order of the query ids, so that a stable sort by descending confidence
    gives the contest's order: score, then id (DELF, metrics.py).

    Attributes:
        query_ids: the q ids, ascending.
        has_landmark: bool [q], whether the truth has at least one landmark; GAP's M counts these.
        answered: bool [q], whether the query has a row that is not blank; GAP's N counts these.
        correct: bool [q], whether the answer is one of the true landmarks.
        confidence: float64 [q], -inf without an answer.

    Raises:
        ValueError: shapes differ, ids do not ascend, a confidence is NaN, or a row without a
            landmark or without an answer is marked as correct.
    """

    query_ids: tuple[str, ...]
    has_landmark: NDArray[np.bool_]
    answered: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    confidence: NDArray[np.float64]

    def __post_init__(self) -> None:
        q = len(self.query_ids)
        for name in ("has_landmark", "answered", "correct", "confidence"):
            if getattr(self, name).shape != (q,):
                raise ValueError(f"{name} must be [{q}], got {getattr(self, name).shape}")
        if any(a >= b for a, b in zip(self.query_ids, self.query_ids[1:], strict=False)):
            raise ValueError("query ids must rise")
        if (self.correct & ~(self.has_landmark & self.answered)).any():
            raise ValueError("an answer is right where there is no landmark or no answer")
        if np.isnan(self.confidence).any():
            raise ValueError("a confidence is NaN")

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def positives(self) -> int:
        """M: the number of queries that show a landmark."""
        return int(self.has_landmark.sum())

    def ranked(self, *, ignore_non_landmark: bool = False) -> NDArray[np.int64]:
        """Returns the rows with an answer by descending confidence, then by id.

        With `ignore_non_landmark`, only rows of landmark queries are returned.
        """
        ranked = self.answered & self.has_landmark if ignore_non_landmark else self.answered
        rows = np.flatnonzero(ranked)
        return rows[np.argsort(-self.confidence[rows], kind="stable")]

    def accuracy(self) -> float:
        """Returns acc@1: the proportion of landmark queries with a right answer.

        A blank counts as wrong. Raises SubmissionError if no query shows a landmark.
        """
        return int(self.correct.sum()) / require_positives(self)


def judge(submission: Submission, truth: Truth, usage: str | None = None) -> Judged:
    """Returns a submission joined with the truth.

    Args:
        submission: the answers; a query without a row counts as blank.
        truth: the solution; Ignored queries are not scored.
        usage: "Public", "Private", or None for all rows that are not Ignored.

    Raises:
        SubmissionError: the truth lacks a query of the submission.
        UsageError: the truth has no row of that usage.
    """
    for row, query in enumerate(submission.query_ids):
        if query not in truth.row_of:
            where = submission.where(row)
            raise unknown_id(query, truth.row_of, where=where, source=truth.source)
    rows = sorted(truth.rows(usage), key=truth.query_ids.__getitem__)
    q = len(rows)
    answered = np.zeros(q, dtype=bool)
    correct = np.zeros(q, dtype=bool)
    confidence = np.full(q, -np.inf)
    for place, row in enumerate(rows):
        answer = submission.row_of.get(truth.query_ids[row])
        if answer is None or submission.labels[answer] is None:
            continue
        answered[place] = True
        correct[place] = submission.labels[answer] in truth.labels[row]
        confidence[place] = submission.confidence[answer]
    return Judged(
        tuple(truth.query_ids[row] for row in rows),
        np.array([bool(truth.labels[row]) for row in rows], dtype=bool),
        answered,
        correct,
        confidence,
    )


def require_positives(judged: Judged) -> int:
    """Returns M; raises SubmissionError if M is 0, since no score is then defined."""
    if not judged.positives:
        what = "no query shows a landmark, so the score is not defined"
        remedy = "is it the right file?"
        raise SubmissionError(what, where="solution", remedy=remedy)
    return judged.positives
