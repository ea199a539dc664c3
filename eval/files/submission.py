"""Submissions to a contest: reading with line numbers, and atomic writing."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import SubmissionError
from lmk.embed.notices import notice
from lmk.embed.tables.label_text import are_floats, whole_number
from lmk.embed.tables.text_lines import at
from lmk.eval.files.contest_csv import AtomicRows
from lmk.eval.files.query_ids import QueryIds
from lmk.eval.files.submission_rows import (
    RECOGNITION_HEADER,
    RETRIEVAL_HEADER,
    parse_answer,
    parse_images,
    read_answers,
)
from lmk.rerank.steps.predictions import Predictions

MAX_IMAGES = 100


class _QueryRows(QueryIds):
    """Rows by query id, with the line of each row in its file."""

    lines: tuple[int, ...] | None

    def where(self, row: int) -> str:
        """Returns the file and line of a row, or `source` if there are no line numbers."""
        return self.source if self.lines is None else at(self.source, self.lines[row])

    def _check_rows(self) -> None:
        if len(set(self.query_ids)) != len(self):
            raise ValueError("query ids are repeated")
        if self.lines is not None and len(self.lines) != len(self):
            raise ValueError(f"{len(self)} queries, {len(self.lines)} lines")


@dataclass(frozen=True, eq=False)
class Submission(_QueryRows):
    """One landmark with a confidence for each query, or a blank.

    Attributes:
        query_ids: the n query ids, unique.
        labels: the landmark of each query; None for a blank.
        confidence: float64 [n], higher is more certain; -inf for a blank.
        source: the file of the submission, for error messages.
        lines: the line of each row in that file; None for a submission made in memory.

    Raises:
        ValueError: lengths differ, an id is repeated, a confidence is NaN, or a blank has a
            confidence.
    """

    query_ids: tuple[str, ...]
    labels: tuple[str | None, ...]
    confidence: NDArray[np.float64]
    source: str = "submission"
    lines: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.query_ids)
        if len(self.labels) != n or self.confidence.shape != (n,):
            raise ValueError(f"{n} queries, {len(self.labels)} labels, {self.confidence.shape}")
        if self.confidence.dtype != np.float64:
            raise ValueError(f"confidence must be float64, got {self.confidence.dtype}")
        self._check_rows()
        if np.isnan(self.confidence).any():
            raise ValueError("a confidence is NaN")
        blank = np.array([label is None for label in self.labels], dtype=bool)
        if not np.isneginf(self.confidence[blank]).all():
            raise ValueError("a blank answer must have confidence -inf")

    @classmethod
    def from_predictions(cls, predictions: Predictions) -> Self:
        """Returns the submission of predictions, as a contest ranks them.

        Answers below the threshold are included, since a blank gains nothing. A query with label
        None or confidence -inf becomes a blank.
        """
        confidence = predictions.confidence.astype(np.float64)
        labels = tuple(
            None if math.isinf(value) and value < 0 else label
            for label, value in zip(predictions.labels, confidence, strict=True)
        )
        blank = np.array([label is None for label in labels], dtype=bool)
        return cls(predictions.query_ids, labels, np.where(blank, -np.inf, confidence))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Returns the submission in a file `id,landmarks`, cells `<label> <confidence>` or empty.

        The rules are those of the contest's reader (DELF, dataset_file_io.py), with two extensions:
        blanks after the confidence are ignored, and labels are text, so that folder names can be
        used as well as integers.

        Raises:
            UsageError: there is no such file.
            SubmissionError: the header is wrong, an id is empty or repeated, a cell has other than
                two tokens, a confidence is not a number, the text is not UTF-8, or a row is too
                wide. The message states the line and the reason.
        """
        lines, answers = read_answers(path, RECOGNITION_HEADER, parse_answer)
        labels = [label for label, _ in answers]
        given = {label for label in labels if label is not None}
        if are_floats(given):
            example = min(given)
            labels = [None if label is None else whole_number(label) for label in labels]
            notice(
                path,
                f"the labels are whole numbers written as floats ({example}): read as "
                f"{whole_number(example)}, which a contest may not do",
            )
        return cls(
            tuple(lines),
            tuple(labels),
            np.array([value for _, value in answers], dtype=np.float64),
            os.fspath(path),
            tuple(lines.values()),
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file atomically; every confidence reads back to the same float.

        Raises:
            SubmissionError: a label contains a blank.
            StorageError: the disk is full, or the folder is read-only.
        """
        with SubmissionWriter(path) as writer:
            for row in zip(self.query_ids, self.labels, self.confidence.tolist(), strict=True):
                writer.write(*row)


@dataclass(frozen=True, eq=False)
class RetrievalSubmission(_QueryRows):
    """A ranked list of gallery pictures for each query, best first.

    Attributes:
        query_ids: the n query ids, unique.
        images: the picture ids of each query. Only the first 100 count in the contest. Repeats
            are valid and keep their rank, as in DELF (metrics.py).
        source, lines: as in Submission.

    Raises:
        ValueError: lengths differ, or an id is repeated.
    """

    query_ids: tuple[str, ...]
    images: tuple[tuple[str, ...], ...]
    source: str = "submission"
    lines: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self):
            raise ValueError(f"{len(self)} queries, {len(self.images)} lists of images")
        self._check_rows()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Returns the lists in a file `id,images`; a cell is ids with one blank between, or empty.

        Raises:
            UsageError: there is no such file.
            SubmissionError: the header is wrong, an id is empty or repeated, a list has two blanks
                in a row, the text is not UTF-8, or a row is too wide. The message states the line
                and the reason.
        """
        lines, images = read_answers(path, RETRIEVAL_HEADER, parse_images)
        return cls(tuple(lines), tuple(images), os.fspath(path), tuple(lines.values()))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file atomically.

        Raises:
            SubmissionError: a list has more than 100 images, or an image id contains a blank.
            StorageError: the disk is full, or the folder is read-only.
        """
        with RetrievalWriter(path) as writer:
            for query, images in zip(self.query_ids, self.images, strict=True):
                writer.write(query, images)


class _AnswerRows(AtomicRows):
    """Writer of rows of an id and a cell, with the ids and the number of empty cells."""

    header: ClassVar[tuple[str, str]]

    def __init__(self, path: str | os.PathLike[str], *, resume: str | None = None) -> None:
        super().__init__(path, self.header, resume=resume)
        self.written = {row[0] for row in self.done}
        self.blank = sum(not cell for _, cell in self.done)

    def write_cell(self, query_id: str, cell: str) -> None:
        """Writes one row; raises SubmissionError if the id is empty or was written before."""
        if query_id in self.written:
            raise SubmissionError(f"id {query_id} is written twice", where=self.path)
        if not query_id.strip():
            raise SubmissionError("the id is empty", where=self.path)
        self.append((query_id, cell))
        self.written.add(query_id)
        self.blank += not cell

    def leave_blank(self, query_id: str) -> None:
        """Writes a row without an answer; raises as `write_cell`."""
        self.write_cell(query_id, "")


class SubmissionWriter(_AnswerRows):
    """Writer of a recognition submission, row by row and atomic.

    Use as `with SubmissionWriter(path) as writer: writer.write(query_id, label, confidence)`.

    Args:
        path: the file to write.
        resume: an identifier of the work, with which an interrupted run continues (AtomicRows).

    Attributes:
        written: the ids written so far, including those of an earlier run.
        blank: the number of these ids with an empty cell.
    """

    header = RECOGNITION_HEADER

    def write(self, query_id: str, label: str | None, confidence: float) -> None:
        """Writes one answer; a label of None or a confidence of -inf is written as a blank.

        Raises:
            SubmissionError: the label contains a blank, the confidence is NaN, or the id was
                written before.
            StorageError: the disk is full.
        """
        if math.isnan(confidence):
            raise SubmissionError(f"query {query_id}: the confidence is NaN", where=self.path)
        if label is not None and confidence != -math.inf and label.split() != [label]:
            what = f"the label {label!r} has a blank in it, which a submission cannot hold"
            remedy = "name the landmark without blanks (as Eiffel_Tower)"
            raise SubmissionError(what, where=self.path, remedy=remedy)
        self.write_cell(query_id, _answer_cell(label, confidence))

    def revise(self, change: Callable[[Submission], NDArray[np.floating]]) -> None:
        """Replaces the confidences of all answers, also of an earlier run, and ends the writing.

        This method serves rules that need all answers at once. A run that is interrupted before the
        file is complete continues from the unchanged answers.

        Args:
            change: returns the new confidences [n] for all answers; a blank stays a blank.
        """
        self._file.flush()
        given = Submission.read(self._part)
        answers = zip(given.query_ids, given.labels, change(given).tolist(), strict=True)
        self.replace_all((query, _answer_cell(label, value)) for query, label, value in answers)


class RetrievalWriter(_AnswerRows):
    """Writer of a retrieval submission, row by row and atomic.

    Arguments and attributes are those of SubmissionWriter.
    """

    header = RETRIEVAL_HEADER

    def write(self, query_id: str, images: Sequence[str]) -> None:
        """Writes the picture ids of one query, best first.

        Raises:
            SubmissionError: there are more than 100 images, an image id contains a blank, or the
                query id was written before.
            StorageError: the disk is full.
        """
        if len(images) > MAX_IMAGES:
            raise SubmissionError(
                f"query {query_id}: {len(images)} images, a submission holds {MAX_IMAGES}",
                where=self.path,
            )
        for image in images:
            if image.split() != [image]:
                what = f"the id {image!r} has a blank in it, which a submission cannot hold"
                remedy = "rename the picture, or give it an id in a CSV manifest"
                raise SubmissionError(what, where=self.path, remedy=remedy)
        self.write_cell(query_id, " ".join(images))


def _answer_cell(label: str | None, confidence: float) -> str:
    if label is None or confidence == -math.inf:
        return ""
    return f"{label} {float(confidence)!r}"
