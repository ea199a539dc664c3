"""Submissions: answers as the contests' files hold them, read with line numbers, written whole."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import SubmissionError
from lmk.embed.notices import notice
from lmk.embed.tables.csv_file import (
    SEPARATORS,
    Row,
    column_key,
    parse_cells,
    parse_id,
    read_header,
    read_rows,
)
from lmk.embed.tables.label_text import are_floats, nfc, whole_number
from lmk.embed.tables.text_lines import at
from lmk.eval.files.contest_csv import AtomicRows
from lmk.rerank.steps.predictions import Predictions

RECOGNITION_HEADER = ("id", "landmarks")
RETRIEVAL_HEADER = ("id", "images")
MAX_IMAGES = 100


@dataclass(frozen=True, eq=False)
class Submission:
    """One landmark and a confidence for each query, or a blank.

    Attributes:
        query_ids: the n query ids, unique.
        labels: for each query the landmark, or None where it was left blank.
        confidence: float64 [n], the higher the surer; -inf where blank.
        source: the file it was read from, for error messages.
        lines: the line of each row in that file; None when made in memory.

    Raises:
        ValueError: lengths differ, an id is repeated, a confidence is NaN, a blank has one.
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
        if len(set(self.query_ids)) != n:
            raise ValueError("query ids are repeated")
        if np.isnan(self.confidence).any():
            raise ValueError("a confidence is NaN")
        blank = np.array([label is None for label in self.labels], dtype=bool)
        if not np.isneginf(self.confidence[blank]).all():
            raise ValueError("a blank answer must have confidence -inf")
        if self.lines is not None and len(self.lines) != n:
            raise ValueError(f"{n} queries, {len(self.lines)} lines")

    def __len__(self) -> int:
        return len(self.query_ids)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each query id."""
        return {query: row for row, query in enumerate(self.query_ids)}

    def where(self, row: int) -> str:
        """Where a row stands: file and line, or the name of what was made in memory."""
        return self.source if self.lines is None else at(self.source, self.lines[row])

    @classmethod
    def from_predictions(cls, predictions: Predictions) -> Self:
        """The answers as a contest ranks them: below the threshold too, as a blank gains nothing.

        A query whose label is None or whose confidence is -inf becomes a blank.
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
        """Reads `id,landmarks`, each cell `<label> <confidence>` or empty.

        The rules are those of the contest's reader (DELF, dataset_file_io.py), blanks behind the
        confidence tolerated; labels are text here, so folder names do as well as integers.

        Raises:
            UsageError: no such file.
            SubmissionError: with line and reason: a wrong header, a repeated or empty id, not
                exactly two tokens, a confidence that is no number, bad UTF-8, a row too wide.
        """
        rows = read_rows(path)
        columns = read_columns(path, rows, RECOGNITION_HEADER)
        lines: dict[str, int] = {}
        labels: list[str | None] = []
        confidence: list[float] = []
        for row in rows:
            query, label, value = parse_recognition(path, row, columns)
            if query in lines:
                raise repeated(path, row.line, query, lines[query])
            lines[query] = row.line
            labels.append(label)
            confidence.append(value)
        answered = {label for label in labels if label is not None}
        if are_floats(answered):
            example = min(answered)
            labels = [None if label is None else whole_number(label) for label in labels]
            notice(
                path,
                f"the labels are whole numbers written as floats ({example}): read as "
                f"{whole_number(example)}, which a contest may not do",
            )
        return cls(
            tuple(lines),
            tuple(labels),
            np.array(confidence, dtype=np.float64),
            os.fspath(path),
            tuple(lines.values()),
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file whole or not at all; every confidence reads back to the same float.

        Raises:
            SubmissionError: a label with a blank in it.
            StorageError: the disk is full, the folder read-only.
        """
        with SubmissionWriter(path) as writer:
            for row in zip(self.query_ids, self.labels, self.confidence.tolist(), strict=True):
                writer.write(*row)


@dataclass(frozen=True, eq=False)
class RetrievalSubmission:
    """For each query the gallery pictures found, best first.

    Attributes:
        query_ids: the n query ids, unique.
        images: for each query its picture ids; only the first 100 count in the contest. Repeats
            are legal and keep their rank (as DELF, metrics.py, counts).
        source, lines: as in Submission.

    Raises:
        ValueError: lengths differ, or an id is repeated.
    """

    query_ids: tuple[str, ...]
    images: tuple[tuple[str, ...], ...]
    source: str = "submission"
    lines: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.query_ids)
        if len(self.images) != n:
            raise ValueError(f"{n} queries, {len(self.images)} lists of images")
        if len(set(self.query_ids)) != n:
            raise ValueError("query ids are repeated")
        if self.lines is not None and len(self.lines) != n:
            raise ValueError(f"{n} queries, {len(self.lines)} lines")

    def __len__(self) -> int:
        return len(self.query_ids)

    def where(self, row: int) -> str:
        """Where a row stands: file and line, or the name of what was made in memory."""
        return self.source if self.lines is None else at(self.source, self.lines[row])

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Reads `id,images`, each cell picture ids apart by one blank, best first, or empty.

        Raises:
            UsageError: no such file.
            SubmissionError: with line and reason: a wrong header, a repeated or empty id, an
                empty place in the list (two blanks in a row), bad UTF-8, a row too wide.
        """
        rows = read_rows(path)
        columns = read_columns(path, rows, RETRIEVAL_HEADER)
        lines: dict[str, int] = {}
        images: list[tuple[str, ...]] = []
        for row in rows:
            query, found = parse_retrieval(path, row, columns)
            if query in lines:
                raise repeated(path, row.line, query, lines[query])
            lines[query] = row.line
            images.append(found)
        return cls(tuple(lines), tuple(images), os.fspath(path), tuple(lines.values()))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file whole or not at all.

        Raises:
            SubmissionError: more than 100 images, or an image id with a blank in it.
            StorageError: the disk is full, the folder read-only.
        """
        with RetrievalWriter(path) as writer:
            for query, found in zip(self.query_ids, self.images, strict=True):
                writer.write(query, found)


class SubmissionWriter(AtomicRows):
    """Writes a recognition submission row by row, whole or not at all; of each row its id is kept.

    Use as `with SubmissionWriter(path) as writer: writer.write(query_id, label, confidence)`.

    Args:
        path: the file to write.
        resume: a word that names the work; with it a run that was stopped goes on (AtomicRows).

    Attributes:
        written: the ids written so far, those of an earlier run among them.
        blank: how many of them are blank.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: str | None = None) -> None:
        super().__init__(path, RECOGNITION_HEADER, resume=resume)
        self.written = {row[0] for row in self.done}
        self.blank = sum(not cell for _, cell in self.done)

    def write(self, query_id: str, label: str | None, confidence: float) -> None:
        """Writes one answer; no label, or a confidence of -inf, is written as a blank.

        Raises:
            SubmissionError: a blank in the label, a NaN confidence, an id written before.
            StorageError: the disk is full.
        """
        if math.isnan(confidence):
            raise SubmissionError(f"query {query_id}: the confidence is NaN", where=self.path)
        if label is not None and confidence != -math.inf and label.split() != [label]:
            raise SubmissionError(
                f"the label {label!r} has a blank in it, which a submission cannot hold",
                where=self.path,
                remedy="name the landmark without blanks (as Eiffel_Tower)",
            )
        _write_once(self, query_id, _answer_cell(label, confidence))

    def leave_blank(self, query_id: str) -> None:
        """Writes a row without an answer; errors as `write`."""
        self.write(query_id, None, -math.inf)

    def revise(self, change: Callable[[Submission], NDArray[np.floating]]) -> None:
        """Gives all answers other confidences, those of an earlier run too; ends the writing.

        For rules that need all answers at once. A run that is stopped before the file is there
        goes on with the answers as they were.

        Args:
            change: from all answers to their new confidences [n]; a blank stays one.
        """
        self._file.flush()
        given = Submission.read(self._part)
        answers = zip(given.query_ids, given.labels, change(given).tolist(), strict=True)
        self.replace_all((query, _answer_cell(label, value)) for query, label, value in answers)


class RetrievalWriter(AtomicRows):
    """Writes a retrieval submission row by row, whole or not at all; of each row its id is kept.

    Args and attributes as SubmissionWriter's.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: str | None = None) -> None:
        super().__init__(path, RETRIEVAL_HEADER, resume=resume)
        self.written = {row[0] for row in self.done}
        self.blank = sum(not cell for _, cell in self.done)

    def write(self, query_id: str, images: Sequence[str]) -> None:
        """Writes the picture ids found for one query, best first.

        Raises:
            SubmissionError: more than 100 images, a blank in an image id, an id written before.
            StorageError: the disk is full.
        """
        if len(images) > MAX_IMAGES:
            raise SubmissionError(
                f"query {query_id}: {len(images)} images, a submission holds {MAX_IMAGES}",
                where=self.path,
            )
        for image in images:
            if image.split() != [image]:
                raise SubmissionError(
                    f"the id {image!r} has a blank in it, which a submission cannot hold",
                    where=self.path,
                    remedy="rename the picture, or give it an id in a CSV manifest",
                )
        _write_once(self, query_id, " ".join(images))

    def leave_blank(self, query_id: str) -> None:
        """Writes a row without an answer; errors as `write`."""
        self.write(query_id, ())


def _answer_cell(label: str | None, confidence: float) -> str:
    if label is None or confidence == -math.inf:
        return ""
    return f"{label} {float(confidence)!r}"


def _write_once(writer: SubmissionWriter | RetrievalWriter, query_id: str, cell: str) -> None:
    if query_id in writer.written:
        raise SubmissionError(f"id {query_id} is written twice", where=writer.path)
    if not query_id.strip():
        raise SubmissionError("the id is empty", where=writer.path)
    writer.append((query_id, cell))
    writer.written.add(query_id)
    writer.blank += not cell


def read_columns(
    path: str | os.PathLike[str], rows: Iterator[Row], header: tuple[str, str]
) -> list[str]:
    """The header of a submission: the two columns, in either order, and nothing else.

    Raises:
        SubmissionError: another header, or none.
    """
    line, columns = read_header(path, rows)
    if sorted(columns) != sorted(header):
        raise SubmissionError(
            f"the header must be {','.join(header)}, it says {','.join(columns)[:60]}",
            where=at(path, line),
            remedy=_header_remedy(columns, header),
        )
    return columns


def _header_remedy(columns: list[str], header: tuple[str, str]) -> str:
    """The remedy for a wrong header of a submission."""
    wanted = sorted(header)
    if len(columns) == 1:
        for separator in SEPARATORS[1:]:
            if sorted(map(column_key, columns[0].split(separator))) == wanted:
                return f"separate the cells by commas, not by {separator!r}"
    if sorted(map(column_key, columns)) == wanted:
        return "write the names in small letters"
    if "" in columns and sorted(name for name in columns if name) == wanted:
        return "leave out the column without a name (pandas: to_csv(..., index=False))"
    if set(wanted) < set(columns):
        return "leave out the other columns"
    return "put it on the first line"


def parse_recognition(
    path: str | os.PathLike[str], row: Row, columns: list[str]
) -> tuple[str, str | None, float]:
    """Id, label and confidence of one row; a blank cell gives None and -inf.

    Raises:
        SubmissionError: with line and reason.
    """
    query, cell = _id_and_cell(path, row, columns, "landmarks")
    cell = cell.rstrip(" ")
    if not cell:
        return query, None, -math.inf
    tokens = cell.split(" ")
    if len(tokens) != 2 or tokens[0].split() != [tokens[0]]:
        raise SubmissionError(
            f"{cell[:60]!r} must be a label and a confidence with one blank between them",
            where=at(path, row.line),
            remedy="or empty, for no answer",
        )
    label, number = tokens
    try:
        # float() alone also takes 1_000 and the digits of other scripts.
        value = float(number) if number.isascii() and "_" not in number else math.nan
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise SubmissionError(
            f"confidence {number[:60]!r} is no number",
            where=at(path, row.line),
            remedy="write it with a decimal point" if "," in number else None,
        )
    return query, nfc(label), value


def parse_retrieval(
    path: str | os.PathLike[str], row: Row, columns: list[str]
) -> tuple[str, tuple[str, ...]]:
    """Id and picture ids of one row.

    Raises:
        SubmissionError: with line and reason.
    """
    query, cell = _id_and_cell(path, row, columns, "images")
    cell = cell.rstrip(" ")
    images = tuple(cell.split(" ")) if cell else ()
    for rank, image in enumerate(images, start=1):
        if image.split() != [image]:
            raise SubmissionError(
                f"image {rank} is {image!r}", where=at(path, row.line), remedy="one blank between"
            )
    return query, tuple(map(nfc, images))


def repeated(
    path: str | os.PathLike[str], line: int, query_id: str, first_line: int
) -> SubmissionError:
    """The error of an id that stands on two lines."""
    return SubmissionError(
        f"id {query_id} is repeated", where=at(path, line), remedy=f"it stands on line {first_line}"
    )


def _id_and_cell(
    path: str | os.PathLike[str], row: Row, columns: list[str], value_column: str
) -> tuple[str, str]:
    cells = parse_cells(path, row, len(columns))
    query = parse_id(path, row.line, cells[columns.index("id")])
    return query, cells[columns.index(value_column)]
