"""Faults of readable submissions that reduce the score, each with its line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmk.embed.tables.label_text import whole_number
from lmk.eval.files.submission import MAX_IMAGES, RetrievalSubmission, Submission

Kind = Literal[
    "missing",  # a query without a row, which counts as blank
    "unknown label",  # a label or picture that the gallery does not have
    "infinite",  # a confidence of inf, which some readers reject
    "too many",  # more than 100 pictures, of which the contest scores only the first 100
    "repeated image",  # a picture twice in one list, which wastes a rank
]


@dataclass(frozen=True)
class SubmissionFinding:
    """One fault of a submission.

    Attributes:
        kind: the kind of fault.
        line: the line in the file, from 1; None for a query without a row.
        query_id: the query.
        reason: a description of the fault.
    """

    kind: Kind
    line: int | None
    query_id: str
    reason: str


def validate(
    submission: Submission,
    *,
    queries: Collection[str] | None = None,
    gallery_labels: Collection[str] | None = None,
) -> tuple[SubmissionFinding, ...]:
    """Returns the faults of a recognition submission by line, and missing queries last, by id.

    Args:
        submission: the answers.
        queries: the ids that the submission should have; None skips the check for missing queries.
        gallery_labels: the labels that can be right; None skips the check of labels.
    """
    labels = None if gallery_labels is None else frozenset(gallery_labels)
    infinite = np.isinf(submission.confidence).tolist()
    findings = []
    for row, (query, label) in enumerate(zip(submission.query_ids, submission.labels, strict=True)):
        if label is None:
            continue
        if labels is not None and labels.isdisjoint((label, whole_number(label))):
            reason = f"the gallery has no landmark {label}"
            findings.append(_finding("unknown label", submission, row, query, reason))
        if infinite[row]:
            reason = f"the confidence is {submission.confidence[row]}"
            findings.append(_finding("infinite", submission, row, query, reason))
    missing = set(queries or ()).difference(submission.row_of)
    reason = "the query has no row and counts as blank"
    findings += [SubmissionFinding("missing", None, query, reason) for query in sorted(missing)]
    return tuple(findings)


def validate_retrieval(
    submission: RetrievalSubmission, *, gallery_ids: Collection[str] | None = None
) -> tuple[SubmissionFinding, ...]:
    """Returns the faults of a retrieval submission by line.

    Args:
        submission: the lists.
        gallery_ids: the pictures of the gallery; None skips the check of picture ids.
    """
    findings = []
    for row, (query, images) in enumerate(
        zip(submission.query_ids, submission.images, strict=True)
    ):
        if len(images) > MAX_IMAGES:
            reason = f"{len(images)} images, only {MAX_IMAGES} are scored"
            findings.append(_finding("too many", submission, row, query, reason))
        if len(set(images)) != len(images):
            reason = "an image stands twice and wastes a rank"
            findings.append(_finding("repeated image", submission, row, query, reason))
        if gallery_ids is not None:
            findings += [
                _finding("unknown label", submission, row, query, f"the gallery has no picture {i}")
                for i in images
                if i not in gallery_ids
            ]
    return tuple(findings)


def _finding(
    kind: Kind, submission: Submission | RetrievalSubmission, row: int, query: str, reason: str
) -> SubmissionFinding:
    line = None if submission.lines is None else submission.lines[row]
    return SubmissionFinding(kind, line, query, reason)
