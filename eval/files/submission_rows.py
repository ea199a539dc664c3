"""Rows of submission files: headers, ids and cells by the rules of the contest's reader."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from lmk.embed.errors import SubmissionError
from lmk.embed.tables.csv_file import (
    SEPARATORS,
    Row,
    column_key,
    parse_cells,
    parse_id,
    read_header,
    read_rows,
)
from lmk.embed.tables.label_text import nfc
from lmk.embed.tables.text_lines import at

RECOGNITION_HEADER = ("id", "landmarks")
RETRIEVAL_HEADER = ("id", "images")

Value = TypeVar("Value")
ParseCell = Callable[[str, str | os.PathLike[str], int], Value]


def read_answers(
    path: str | os.PathLike[str], header: tuple[str, str], parse: ParseCell[Value]
) -> tuple[dict[str, int], list[Value]]:
    """Returns the lines and the answers of a submission file.

    Args:
        path: the file.
        header: the names of the id column and of the answer column.
        parse: returns the answer of a cell, given the cell, the path and the line.

    Returns:
        The line of each query id, and the answers in the same order.

    Raises:
        UsageError: there is no such file.
        SubmissionError: the header is wrong, an id is empty or repeated, a row is too wide, the
            text is not UTF-8, or `parse` rejects a cell. The message states line and reason.
    """
    rows = read_rows(path)
    columns = _read_columns(path, rows, header)
    id_place, answer_place = (columns.index(name) for name in header)
    lines: dict[str, int] = {}
    answers: list[Value] = []
    for row in rows:
        cells = parse_cells(path, row, len(columns))
        query = parse_id(path, row.line, cells[id_place])
        answer = parse(cells[answer_place], path, row.line)
        if query in lines:
            what = f"id {query} is repeated"
            remedy = f"it stands on line {lines[query]}"
            raise SubmissionError(what, where=at(path, row.line), remedy=remedy)
        lines[query] = row.line
        answers.append(answer)
    return lines, answers


def parse_answer(cell: str, path: str | os.PathLike[str], line: int) -> tuple[str | None, float]:
    """Returns the label and the confidence of a cell; None and -inf for an empty cell.

    Raises:
        SubmissionError: the cell is not a label and a number with one blank between them.
    """
    cell = cell.rstrip(" ")
    if not cell:
        return None, -math.inf
    tokens = cell.split(" ")
    if len(tokens) != 2 or tokens[0].split() != [tokens[0]]:
        what = f"{cell[:60]!r} must be a label and a confidence with one blank between them"
        remedy = "or empty, for no answer"
        raise SubmissionError(what, where=at(path, line), remedy=remedy)
    label, number = tokens
    try:
        # float() alone also accepts 1_000 and the digits of other scripts.
        value = float(number) if number.isascii() and "_" not in number else math.nan
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise SubmissionError(
            f"confidence {number[:60]!r} is no number",
            where=at(path, line),
            remedy="write it with a decimal point" if "," in number else None,
        )
    return nfc(label), value


def parse_images(cell: str, path: str | os.PathLike[str], line: int) -> tuple[str, ...]:
    """Returns the picture ids of a cell, best first.

    Raises:
        SubmissionError: the ids are not separated by one blank each.
    """
    cell = cell.rstrip(" ")
    images = tuple(cell.split(" ")) if cell else ()
    for rank, image in enumerate(images, start=1):
        if image.split() != [image]:
            remedy = "separate the ids by one blank"
            raise SubmissionError(f"image {rank} is {image!r}", where=at(path, line), remedy=remedy)
    return tuple(map(nfc, images))


def _read_columns(
    path: str | os.PathLike[str], rows: Iterator[Row], header: tuple[str, str]
) -> list[str]:
    """Returns the two column names, which may be in either order."""
    line, columns = read_header(path, rows)
    if sorted(columns) != sorted(header):
        what = f"the header must be {','.join(header)}, it says {','.join(columns)[:60]}"
        remedy = _header_remedy(columns, header)
        raise SubmissionError(what, where=at(path, line), remedy=remedy)
    return columns


def _header_remedy(columns: list[str], header: tuple[str, str]) -> str:
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
