"""Checking a submission file before it is sent: every finding with its line, not only the first."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from lmk.embed.errors import SubmissionError
from lmk.embed.tables.csv_file import Row, read_rows
from lmk.embed.tables.label_text import whole_number
from lmk.eval.files.submission import (
    MAX_IMAGES,
    RECOGNITION_HEADER,
    RETRIEVAL_HEADER,
    parse_recognition,
    parse_retrieval,
    read_columns,
)

Kind = Literal[
    "malformed",  # error: a row, or the header, that no reader takes
    "repeated",  # error: an id that stands on two lines
    "extra",  # error: an id that is none of the queries
    "missing",  # warning: a query without a row, which counts as blank
    "unknown label",  # warning: a label or picture the gallery does not have
    "infinite",  # warning: a confidence of inf, which some readers refuse
    "too many",  # warning: more than 100 pictures, of which the rest is not scored
    "repeated image",  # warning: a picture twice in one list, which wastes a rank
]
ERRORS: frozenset[Kind] = frozenset({"malformed", "repeated", "extra"})


@dataclass(frozen=True)
class SubmissionFinding:
    """One thing that is wrong, or odd, in a submission file.

    Attributes:
        kind: what sort of finding.
        line: where, from 1; None for a query that is missing.
        query_id: of which query, where that can be told.
        reason: what is wrong, in words.
    """

    kind: Kind
    line: int | None
    query_id: str | None
    reason: str

    @property
    def is_error(self) -> bool:
        """True where a contest would refuse the file; False where it only loses score."""
        return self.kind in ERRORS


@dataclass(frozen=True)
class Validation:
    """What was found in a file.

    Attributes:
        rows: the number of rows below the header, malformed ones too.
        answered: rows with an answer.
        findings: in order of line; missing queries last, in ascending order.
    """

    rows: int
    answered: int
    findings: tuple[SubmissionFinding, ...]

    @property
    def ok(self) -> bool:
        """True where no finding is an error."""
        return not any(finding.is_error for finding in self.findings)


def validate(
    path: str | os.PathLike[str],
    *,
    queries: Collection[str] | None = None,
    gallery_labels: Collection[str] | None = None,
) -> Validation:
    """Checks a recognition submission, `id,landmarks`.

    Args:
        path: the file.
        queries: ids that ought to be there; None leaves extra and missing ones unchecked.
        gallery_labels: labels that can be right; None leaves labels unchecked.

    Raises:
        UsageError: no such file.
        StorageError: the file cannot be read.
    """

    known = None if gallery_labels is None else frozenset(gallery_labels)

    def check(row: Row, columns: list[str]) -> tuple[str, bool, list[tuple[Kind, str]]]:
        query, label, confidence = parse_recognition(path, row, columns)
        odd: list[tuple[Kind, str]] = []
        if label is not None:
            if known is not None and known.isdisjoint((label, whole_number(label))):
                odd.append(("unknown label", f"the gallery has no landmark {label}"))
            if confidence in (float("inf"), float("-inf")):
                odd.append(("infinite", f"the confidence is {confidence}"))
        return query, label is not None, odd

    return _validate(path, RECOGNITION_HEADER, queries, check)


def validate_retrieval(
    path: str | os.PathLike[str],
    *,
    queries: Collection[str] | None = None,
    gallery_ids: Collection[str] | None = None,
) -> Validation:
    """Checks a retrieval submission, `id,images`.

    Args:
        path: the file.
        queries: ids that ought to be there; None leaves extra and missing ones unchecked.
        gallery_ids: pictures that can be found; None leaves the lists unchecked.

    Raises:
        UsageError: no such file.
        StorageError: the file cannot be read.
    """

    def check(row: Row, columns: list[str]) -> tuple[str, bool, list[tuple[Kind, str]]]:
        query, images = parse_retrieval(path, row, columns)
        odd: list[tuple[Kind, str]] = []
        if len(images) > MAX_IMAGES:
            odd.append(("too many", f"{len(images)} images, only {MAX_IMAGES} are scored"))
        if len(set(images)) != len(images):
            odd.append(("repeated image", "an image stands twice and wastes a rank"))
        if gallery_ids is not None:
            odd += [
                ("unknown label", f"the gallery has no picture {image}")
                for image in images
                if image not in gallery_ids
            ]
        return query, bool(images), odd

    return _validate(path, RETRIEVAL_HEADER, queries, check)


def _validate(
    path: str | os.PathLike[str],
    header: tuple[str, str],
    queries: Collection[str] | None,
    check: Callable[[Row, list[str]], tuple[str, bool, list[tuple[Kind, str]]]],
) -> Validation:
    wanted = None if queries is None else frozenset(queries)
    findings: list[SubmissionFinding] = []
    lines: dict[str, int] = {}
    count = answered = 0
    rows = _rows_until_broken(path, findings)
    first = list(islice(rows, 1))
    try:
        columns = read_columns(path, iter(first), header)
    except SubmissionError as error:
        if not findings:  # else the file broke off before its header
            line = first[0].line if first else 1
            findings.append(SubmissionFinding("malformed", line, None, _reason(error)))
        return Validation(0, 0, tuple(findings))
    for row in rows:
        count += 1
        try:
            query, has_answer, odd = check(row, columns)
        except SubmissionError as error:
            named = row.cells[columns.index("id")] if len(row.cells) == len(columns) else None
            if named is not None:
                lines.setdefault(named, row.line)
            findings.append(SubmissionFinding("malformed", row.line, named, _reason(error)))
            continue
        answered += has_answer
        if query in lines:
            findings.append(
                SubmissionFinding(
                    "repeated", row.line, query, f"the id stands on line {lines[query]} too"
                )
            )
        elif wanted is not None and query not in wanted:
            findings.append(
                SubmissionFinding("extra", row.line, query, "the id is none of the queries")
            )
        lines.setdefault(query, row.line)
        findings += [SubmissionFinding(kind, row.line, query, reason) for kind, reason in odd]
    if wanted is not None:
        findings += [
            SubmissionFinding("missing", None, query, "the query has no row and counts as blank")
            for query in sorted(wanted - lines.keys())
        ]
    findings.sort(key=lambda finding: (finding.line is None, finding.line or 0))  # stable
    return Validation(count, answered, tuple(findings))


def _rows_until_broken(
    path: str | os.PathLike[str], findings: list[SubmissionFinding]
) -> Iterator[Row]:
    """The rows; where the file stops being CSV, a finding and the end."""
    line = 0
    try:
        for row in read_rows(path):
            line = row.line
            yield row
    except SubmissionError as error:
        reason = f"{_reason(error)}: nothing below could be read"
        findings.append(SubmissionFinding("malformed", line + 1, None, reason))


def _reason(error: SubmissionError) -> str:
    return error.what if error.remedy is None else f"{error.what}; {error.remedy}"
