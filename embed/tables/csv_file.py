"""Reads CSV files of people, spreadsheets and contests, row by row.

`read_rows`, `read_header` and `parse_cells` read the form of the contests: UTF-8, commas, and rows
as long as the header. `CsvFile` also reads other unambiguous forms. Both read compressed files
(compressed_file.py). Errors name the line.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Self

from lmk.embed.errors import LmkError, SubmissionError
from lmk.embed.tables.label_text import nfc, plain_name
from lmk.embed.tables.text_lines import Lines, at

# The longest cell in public use is train_clean.csv's largest landmark: 6,272 ids, 107 kB.
MAX_CELL = 16 * 2**20
SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "'|'"}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # the first line of Excel's CSVs
_SURROGATE = re.compile("[\ud800-\udfff]")
_DOS_END = "\x1a"
_OTHER_TEXTS = {
    "version https://git-lfs": ("is a pointer of Git LFS, not the file itself", "git lfs pull"),
    "<!doctype html": ("is a web page, not a CSV file", "download the file anew"),
    "<html": ("is a web page, not a CSV file", "download the file anew"),
    "%pdf": ("is a PDF, not a CSV file", "save the table as CSV"),
}
_JOINTS = re.compile(r"[\s\-]+")


class Row(NamedTuple):
    """One row of a file: its first line (counted from 1) and its cells."""

    line: int
    cells: list[str]


def read_rows(
    path: str | os.PathLike[str], error: type[LmkError] = SubmissionError
) -> Iterator[Row]:
    """Yields the rows of a CSV file in the form of the contests: the header, then non-empty rows.

    Bytes that are not UTF-8 become lone surrogates; `parse_cells` raises an error with the line.

    Args:
        path: the file.
        error: the error class for a file with another form.

    Raises:
        UsageError: the file does not exist or is a folder.
        error: a row is not CSV (an open quote, a NUL byte), or the encoding is not UTF-8.
        StorageError: the file cannot be read.
    """
    with Lines(path, error) as lines:
        if lines.encoding != "utf-8-sig":
            name = lines.encoding.upper()
            raise error(f"is written in {name}", where=at(path, 1), remedy="save it as UTF-8")
        yield from _rows(path, lines, ",", 1, error)


def parse_cells(
    path: str | os.PathLike[str], row: Row, width: int, error: type[LmkError] = SubmissionError
) -> list[str]:
    """Returns the cells of a row, after a check of their number and encoding.

    Raises:
        error: the check fails; the message names the line.
    """
    _require_utf8(path, row, error)
    if len(row.cells) != width:
        raise error(
            f"{len(row.cells)} cells where the header has {width}",
            where=at(path, row.line),
            remedy='put a cell with a comma in "quotes"' if len(row.cells) > width else None,
        )
    return row.cells


def read_header(
    path: str | os.PathLike[str], rows: Iterator[Row], error: type[LmkError] = SubmissionError
) -> Row:
    """Returns the column names, the first of `rows`.

    Raises:
        error: the file is empty, or a name is repeated.
    """
    row = next(rows, None)
    if row is None:
        raise error("an empty file", where=at(path, 1), remedy="it needs a header")
    names = [name.strip() for name in parse_cells(path, row, len(row.cells), error)]
    if len(set(names)) != len(names):
        raise error("a column name stands twice", where=at(path, row.line))
    return Row(row.line, names)


def parse_id(
    path: str | os.PathLike[str], line: int, cell: str, error: type[LmkError] = SubmissionError
) -> str:
    """Returns an id in the form of manifests (label_text.plain_name); raises for an empty id."""
    id_ = plain_name(cell)
    if not id_:
        raise error("the id is empty", where=at(path, line))
    return id_


class CsvFile:
    """A CSV file in any unambiguous form: its columns, and its rows by iteration.

    The separator is a comma, semicolon, tab or "|": the one with the most known columns, or the
    one in a first line "sep=;". The encoding is UTF-8, UTF-16 or UTF-32. Case, outer and inner
    blanks of column names are ignored. Lines that start with "#" are skipped before the header, and
    after it if their number of cells differs from the header's. Rows without text and empty cells
    after the last column are skipped too.

    Args:
        path: the file.
        known: the names of the expected columns, in their spelling in `columns`.
        error: the error class for a file that cannot be read.
        pad: fill a row that is shorter than the header with empty cells.

    Attributes:
        path: the file.
        columns: a name for each cell of a row: one of `known`, or the name in the file.
        line: the line of the header.
        separator: the separator of cells.

    Raises:
        UsageError: the file does not exist or is a folder.
        error: the file is empty or an expected column is repeated; while iterating, a row is too
            long, not CSV or not in the file's encoding.
        StorageError: the file cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        known: Collection[str],
        *,
        error: type[LmkError] = SubmissionError,
        pad: bool = False,
    ) -> None:
        self.path = path
        self._error, self._pad = error, pad
        self._lines = Lines(path, error)
        try:
            self.columns, self.line = self._read_header(known)
        except BaseException:
            self._lines.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.__exit__()

    def _read_header(self, known: Collection[str]) -> tuple[list[str], int]:
        """The columns, and the line that names them."""
        path, error, lines = self.path, self._error, self._lines
        text, self.separator = self._header_line(known)
        for start, (what, remedy) in _OTHER_TEXTS.items():
            if text.lower().startswith(start):
                raise error(what, where=at(path, 1), remedy=remedy)
        if lines.binary and _SURROGATE.search(text):
            raise error("not a text file", where=at(path, 1), remedy="name a CSV file")
        padded = any(name[:1] == " " for name in text.split(self.separator)[1:])
        first, whole = max(1, lines.number), itertools.chain([text], lines)
        self._rows = _rows(path, whole, self.separator, first, error, skip_blanks=padded)
        header = next(self._rows, None)
        if header is None:
            raise error("an empty file", where=at(path, 1), remedy="it needs a header")
        _require_utf8(path, header, error)
        columns = known_columns(header.cells, known, at(path, header.line), error)
        return columns, header.line

    def __iter__(self) -> Iterator[Row]:
        width = len(self.columns)
        for row in self._rows:
            cells = row.cells
            text = "".join(cells)
            if not text or text.isspace() or text == _DOS_END:
                continue
            if len(cells) != width:
                if cells[0].lstrip().startswith("#"):
                    continue
                row = self._fitted(row, width)
            if not text.isascii():
                _require_utf8(self.path, row, self._error)
            yield row

    def require(self, *names: str) -> None:
        """Checks that columns exist.

        Raises:
            the file's error class: a column is missing; the message lists the existing ones.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            there = ", ".join(self.columns)
            what = f"no column {' or '.join(map(repr, missing))} (its columns are: {there[:200]})"
            remedy = f"put the names of the columns on the first line: {','.join(names)}"
            raise self._error(what, where=at(self.path, self.line), remedy=remedy)

    def _fitted(self, row: Row, width: int) -> Row:
        if len(row.cells) < width and self._pad:
            return Row(row.line, row.cells + [""] * (width - len(row.cells)))
        if len(row.cells) > width and not any(map(str.strip, row.cells[width:])):
            return Row(row.line, row.cells[:width])
        remedy = None
        if len(row.cells) > width:
            between = _SEPARATOR_NAMES[self.separator]
            remedy = f'the cells are separated by {between}: put a cell that holds one in "quotes"'
        raise self._error(
            f"{len(row.cells)} cells where the header has {width}",
            where=at(self.path, row.line),
            remedy=remedy,
        )

    def _header_line(self, known: Collection[str]) -> tuple[str, str]:
        """The line that names the columns, and what separates its cells."""
        given = None
        for line in self._lines:
            choice = _SEPARATOR_LINE.fullmatch(line)
            if choice and self._lines.number == 1:
                given = choice[1]
                continue
            if not line.strip(' \t\r\n,;|"'):
                continue
            if line.lstrip().startswith("#"):
                rest = line.lstrip().lstrip("#").lstrip()
                if not _hits(rest, given or _separator(rest, known), known):
                    continue
                line = rest  # some programs write the header after a "#"
            return line, given or _separator(line, known)
        return "", ","


def known_columns(
    names: Sequence[str], known: Collection[str], where: str, error: type[LmkError]
) -> list[str]:
    """Returns the names of a header, with expected names in the spelling of `known`.

    A name in another spelling ("ID" for "id") is used if no column has the exact one.

    Raises:
        error: two columns match the same expected one.
    """
    wanted = {column_key(name): name for name in known}
    plain = [nfc(name).strip() for name in names]
    exact = Counter(name for name in plain if name in known)
    columns = []
    for name in plain:
        meant = wanted.get(column_key(name))
        columns.append(name if meant is None or (name != meant and exact[meant]) else meant)
    for name, count in Counter(columns).items():
        if count > 1 and name in known:
            spelt = [text for text in plain if column_key(text) == column_key(name)]
            what = f"a column name stands twice: {', '.join(spelt)}"
            remedy = "rename or remove one of them"
            raise error(what, where=where, remedy=remedy)
    return columns


def column_key(name: str) -> str:
    """Returns a column's name in lower case, stripped, with "_" for blanks and hyphens."""
    return _JOINTS.sub("_", nfc(name).strip().casefold())


def _hits(line: str, separator: str, known: Collection[str]) -> int:
    keys = {column_key(name) for name in known}
    return len(keys & {column_key(name) for name in _cells_of(line, separator)})


def _cells_of(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:  # a cell exceeds the limit
        return []


def _separator(line: str, known: Collection[str]) -> str:
    """Returns the separator with the most expected columns, or else with the most cells."""

    def worth(separator: str) -> tuple[int, int]:
        hits = _hits(line, separator, known)
        return hits, 0 if hits else len(_cells_of(line, separator))

    return max(SEPARATORS, key=worth)  # ties go to the first


def _rows(
    path: str | os.PathLike[str],
    lines: Iterator[str] | Lines,
    separator: str,
    first: int,
    error: type[LmkError],
    *,
    skip_blanks: bool = False,
) -> Iterator[Row]:
    """Yields the non-empty rows of lines that start at line `first`."""
    csv.field_size_limit(max(MAX_CELL, csv.field_size_limit()))
    reader = csv.reader(lines, strict=True, delimiter=separator, skipinitialspace=skip_blanks)
    line = first
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as reason:
            remedy = "look for an open quote or a binary file"
            raise error(f"not a CSV row: {reason}", where=at(path, line), remedy=remedy) from reason
        if cells is None:
            return
        if "\0" in "".join(cells):
            raise error("a NUL byte", where=at(path, line), remedy="not a text file")
        if cells:
            yield Row(line, cells)
        line = first + reader.line_num


def _require_utf8(path: str | os.PathLike[str], row: Row, error: type[LmkError]) -> None:
    if _SURROGATE.search("".join(row.cells)):
        name = os.path.basename(os.fspath(path))  # noqa: PTH119
        raise error(
            "not UTF-8",
            where=at(path, row.line),
            remedy=f"save the file as UTF-8; from Windows or Latin-1: iconv -f WINDOWS-1252 "
            f"-t UTF-8 {name} > utf8-{name}",
        )
