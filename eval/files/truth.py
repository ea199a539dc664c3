"""Truth: the landmarks or pictures of each query, from the contests' solution files."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Self

from lmk.embed.errors import SubmissionError, UsageError
from lmk.embed.notices import notice
from lmk.embed.tables.csv_file import CsvFile, Row, parse_id
from lmk.embed.tables.label_text import MISSING_WORDS, nfc, read_labels
from lmk.embed.tables.text_lines import at
from lmk.eval.files.query_ids import QueryIds

PUBLIC, PRIVATE, IGNORED = "Public", "Private", "Ignored"
USAGES = (PUBLIC, PRIVATE, IGNORED)
LABEL_COLUMNS = ("landmarks", "landmark_id", "labels", "label")
_COLUMNS = ("id", *LABEL_COLUMNS, "images", "Usage")


class _Solution(QueryIds):
    """Base class of both kinds of truth: queries by id, with their usage."""

    usage: tuple[str | None, ...]

    def rows(self, usage: str | None = None) -> tuple[int, ...]:
        """Returns the rows to score: those of a usage or, with None, all that are not Ignored.

        Raises:
            UsageError: the solution has no row of that usage.
        """
        if usage is None:
            return tuple(row for row, own in enumerate(self.usage) if own != IGNORED)
        rows = tuple(row for row, own in enumerate(self.usage) if own == usage)
        if not rows:
            usages = ", ".join(sorted({own for own in self.usage if own})) or "no Usage column"
            message = f"no row of usage {usage}"
            raise UsageError(message, where=self.source, remedy=f"it has {usages}")
        return rows


@dataclass(frozen=True, eq=False)
class Truth(_Solution):
    """The true landmarks of q queries.

    Attributes:
        query_ids: the q ids, unique.
        labels: the true landmarks of each query; an empty tuple for no landmark.
        usage: "Public", "Private" or "Ignored" for each query; None without a column Usage.
            Public and Private are scored separately; Ignored queries are not scored (GLDv2).
        source: the file of the solution, for error messages.

    Raises:
        ValueError: lengths differ, an id is repeated, a usage is unknown, or a query has a label
            twice.
    """

    query_ids: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    usage: tuple[str | None, ...]
    source: str = "solution"

    def __post_init__(self) -> None:
        _check(self.query_ids, self.labels, self.usage)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Returns the truth in a solution file.

        The header selects one of three layouts: the contest's `id,landmarks[,Usage]` (as
        GLDv2's recognition_solution_v2.1.csv), `id` with one of the columns landmark_id, labels or
        label (as GLDv2's index_image_to_landmark.csv), and GLDv2's train_clean.csv
        `landmark_id,images`. Labels are read as in lists of pictures (label_text.read_labels).
        Blanks separate labels in the columns landmarks and labels. In landmark_id and label a
        blank belongs to the name and becomes "_". "|" separates labels in each column. An empty
        cell means a query without a landmark. Other columns are ignored. The file may be
        compressed, and may differ from the contest's form (csv_file.CsvFile).

        Raises:
            UsageError: there is no such file.
            SubmissionError: a column is missing, an id is repeated or empty, a usage is unknown, a
                cell has a label twice, a row has the wrong width, or the text is not UTF-8. The
                message states the line and the reason.
        """
        with CsvFile(path, _COLUMNS) as rows:
            if "id" not in rows.columns and {"landmark_id", "images"} <= set(rows.columns):
                return cls._read_by_landmark(rows)
            column = next((name for name in LABEL_COLUMNS if name in rows.columns), None)
            if "id" not in rows.columns or column is None:
                raise _missing_columns(rows, "id and landmarks (or landmark_id, label)")
            queries: dict[str, tuple[int, str | None]] = {}
            cells: list[str] = []
            for row in rows:
                query, cell, usage = _solution_row(rows, row, column, queries)
                cells.append("" if usage == IGNORED else cell)
                queries[query] = (row.line, usage)
        labels, notes = read_labels(cells, column)
        for (line, _), own in zip(queries.values(), labels, strict=True):
            if len(own) > 1 and len(set(own)) != len(own):
                raise SubmissionError("a label stands twice", where=at(path, line))
        notice(path, *notes)
        return cls._of(tuple(queries), labels, [usage for _, usage in queries.values()], path)

    @classmethod
    def _read_by_landmark(cls, rows: CsvFile) -> Self:
        path = rows.path
        label, images = (rows.columns.index(name) for name in ("landmark_id", "images"))
        lines = list(rows)
        landmarks, notes = read_labels([row.cells[label] for row in lines], "landmark_id")
        queries: dict[str, tuple[str, ...]] = {}
        for row, own in zip(lines, landmarks, strict=True):
            if not own:
                cell = row.cells[label].strip()
                raise SubmissionError(f"not a label: {cell!r}", where=at(path, row.line))
            for image in map(nfc, row.cells[images].split()):
                if image in queries:
                    raise SubmissionError(f"id {image} is repeated", where=at(path, row.line))
                queries[image] = own
        notice(path, *notes)
        return cls._of(tuple(queries), tuple(queries.values()), [None] * len(queries), path)

    @classmethod
    def _of(
        cls,
        queries: tuple[str, ...],
        labels: Sequence[tuple[str, ...]],
        usage: Sequence[str | None],
        path: str | os.PathLike[str],
    ) -> Self:
        if not queries:
            raise SubmissionError("no rows below the header", where=path)
        return cls(queries, tuple(labels), tuple(usage), os.fspath(path))


@dataclass(frozen=True, eq=False)
class RetrievalTruth(_Solution):
    """The gallery pictures that show the same place as each of q queries.

    Attributes:
        query_ids: the q ids, unique.
        images: the ids of the true gallery pictures of each query; empty if Ignored.
        usage, source: as in Truth.

    Raises:
        ValueError: lengths differ, an id is repeated, a usage is unknown, or a query has an image
            twice.
    """

    query_ids: tuple[str, ...]
    images: tuple[tuple[str, ...], ...]
    usage: tuple[str | None, ...]
    source: str = "solution"

    def __post_init__(self) -> None:
        _check(self.query_ids, self.images, self.usage)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Returns the truth in a file `id,images[,Usage]` (GLDv2's retrieval_solution_v2.1.csv).

        The cell `None` and an empty cell mean no true picture. Both are valid only in a row whose
        Usage is Ignored, since average precision is not defined without a true picture.

        Raises:
            UsageError: there is no such file.
            SubmissionError: as Truth.read.
        """
        with CsvFile(path, _COLUMNS) as rows:
            if not {"id", "images"} <= set(rows.columns):
                raise _missing_columns(rows, "id and images")
            queries: dict[str, tuple[tuple[str, ...], str | None]] = {}
            for row in rows:
                query, cell, usage = _solution_row(rows, row, "images", queries)
                queries[query] = (_true_images(path, row.line, query, cell, usage), usage)
        if not queries:
            raise SubmissionError("no rows below the header", where=path)
        return cls(
            tuple(queries),
            tuple(images for images, _ in queries.values()),
            tuple(usage for _, usage in queries.values()),
            os.fspath(path),
        )


def _solution_row(
    rows: CsvFile, row: Row, value_column: str, seen: Container[str]
) -> tuple[str, str, str | None]:
    """Returns id, value cell and usage of one row."""
    path, cells = rows.path, dict(zip(rows.columns, row.cells, strict=True))
    query = parse_id(path, row.line, cells["id"])
    if query in seen:
        raise SubmissionError(f"id {query} is repeated", where=at(path, row.line))
    usage = cells["Usage"].strip() if "Usage" in cells else None
    if usage is not None and usage not in USAGES:
        raise SubmissionError(
            f"unknown Usage {usage!r}", where=at(path, row.line), remedy="use " + ", ".join(USAGES)
        )
    return query, cells[value_column], usage


def _true_images(
    path: str | os.PathLike[str], line: int, query: str, cell: str, usage: str | None
) -> tuple[str, ...]:
    """Returns the pictures in a cell of a retrieval solution; only an Ignored row may have none."""
    if usage == IGNORED:
        return ()
    images = () if cell.strip() in MISSING_WORDS else tuple(map(nfc, cell.split()))
    if not images:
        what = f"query {query} has no true picture"
        remedy = "leave the row out, or give it the Usage Ignored"
        raise SubmissionError(what, where=at(path, line), remedy=remedy)
    if len(set(images)) != len(images):
        raise SubmissionError("an image stands twice", where=at(path, line))
    return images


def _missing_columns(rows: CsvFile, needed: str) -> SubmissionError:
    return SubmissionError(
        f"the header must name the columns {needed}, it says {','.join(rows.columns)[:100]}",
        where=at(rows.path, rows.line),
        remedy="recognition files have id,landmarks, retrieval files id,images",
    )


def _check(
    query_ids: tuple[str, ...], values: tuple[tuple[str, ...], ...], usage: tuple[str | None, ...]
) -> None:
    if not len(query_ids) == len(values) == len(usage):
        raise ValueError(f"{len(query_ids)} queries, {len(values)} values, {len(usage)} usages")
    if len(set(query_ids)) != len(query_ids):
        raise ValueError("query ids are repeated")
    if unknown := set(usage) - {*USAGES, None}:
        raise ValueError(f"unknown usage {sorted(map(str, unknown))}")
    if any(len(set(value)) != len(value) for value in values if len(value) > 1):
        raise ValueError("a query has the same true value twice")
