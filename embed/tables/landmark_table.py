"""Reads tables of landmark details: lmk's own landmarks.csv, and the label files of GLDv2.

landmarks.csv has the columns landmark_id (or label) and name, and optionally latitude, longitude,
url and description. GLDv2's files have a column `category` with the address of a Wikimedia Commons
category, which gives the name and the url, or a column `hierarchical_label` only.
https://github.com/cvdfoundation/google-landmark describes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from lmk.embed.errors import ManifestError
from lmk.embed.tables.csv_file import CsvFile, Row, parse_id
from lmk.embed.tables.label_text import MISSING_WORDS, are_floats, nfc, whole_number
from lmk.embed.tables.landmark_details import LONGEST, MOST_EXTRA, LandmarkDetails
from lmk.embed.tables.text_lines import at

_IDS = ("landmark_id", "label")
_TEXTS = ("name", "url", "description")
_COORDINATES = ("latitude", "longitude")
_CATEGORY, _HIERARCHY = "category", "hierarchical_label"  # columns of GLDv2's files
_KNOWN = (*_IDS, *_TEXTS, *_COORDINATES, _CATEGORY, _HIERARCHY)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_IN_URL = "/:?#[]@!$&'()*+,;=%~"  # characters that quote leaves as they are


@dataclass(frozen=True)
class LandmarkTable:
    """The details of landmarks, as files give them.

    Attributes:
        path: the file, or the files with commas between them.
        details: one for each landmark, in the order of the files.
    """

    path: str
    details: tuple[LandmarkDetails, ...]


def read_landmarks(*paths: str | os.PathLike[str]) -> LandmarkTable:
    """Returns the details of landmarks that one or several CSV files give.

    Where several files have a row for a landmark, each value comes from the first file that has
    one. A landmark without a name takes its id as the name, with a blank for "_". An empty cell, or
    a word that pandas reads as a missing value, is no value.

    Raises:
        ManifestError: a file has no rows, other columns, a landmark twice or a value that
            LandmarkDetails does not accept; the message names the line.
        UsageError: a file does not exist or is a folder.
        StorageError: a file cannot be read.
    """
    combined: dict[str, _Read] = {}
    for path in paths:
        for landmark_id, row in _read(path).items():
            earlier = combined.get(landmark_id)
            try:
                combined[landmark_id] = row if earlier is None else earlier.completed(row)
            except ValueError as error:  # each file alone has fewer texts
                what = f"with the files before it, the landmark {landmark_id!r} has {error}"
                raise ManifestError(what, where=path) from error
    details = tuple(row.details for row in combined.values())
    return LandmarkTable(", ".join(os.fspath(path) for path in paths), details)


class _Read(NamedTuple):
    """The row of a landmark: its values as arguments of LandmarkDetails, and the details."""

    values: dict[str, Any]
    details: LandmarkDetails

    def completed(self, later: _Read) -> _Read:
        """Returns this row, with the values of a later file where this row has none."""
        first, second = self.values, later.values
        if "latitude" in first:  # coordinates of one file stay together
            second = {name: value for name, value in second.items() if name not in _COORDINATES}
        extra = dict(second["extra"]) | dict(first["extra"])
        values = {**second, **first, "extra": tuple(extra.items())}
        return _Read(values, _details(self.details.landmark_id, values))


def _details(landmark_id: str, values: Mapping[str, Any]) -> LandmarkDetails:
    readable = landmark_id.replace("_", " ").strip() or landmark_id
    return LandmarkDetails(landmark_id, **({"name": readable[: LONGEST["name"]]} | dict(values)))


def _read(path: str | os.PathLike[str]) -> dict[str, _Read]:
    """Returns the rows of a file by landmark."""
    rows: dict[str, _Read] = {}
    lines: dict[str, int] = {}
    with CsvFile(path, _KNOWN, error=ManifestError, pad=True) as table:
        columns = _checked_columns(table)
        for line, landmark_id, cells in _numbered(path, table, columns):
            if landmark_id in rows:
                what = f"the landmark {landmark_id!r} is on line {lines[landmark_id]} already"
                remedy = "give each landmark one row"
                raise ManifestError(what, where=at(path, line), remedy=remedy)
            try:
                values = _values(cells, has_name="name" in columns)
                row = _Read(values, _details(landmark_id, values))
            except ValueError as error:
                raise ManifestError(str(error), where=at(path, line)) from error
            rows[landmark_id], lines[landmark_id] = row, line
    if not rows:
        remedy = "give each landmark a row below the header"
        raise ManifestError("holds no rows", where=path, remedy=remedy)
    return rows


def _checked_columns(table: CsvFile) -> list[str]:
    """Returns the columns of a file with details (ManifestError for another file)."""
    columns, where = table.columns, at(table.path, table.line)
    if not any(name in columns for name in _IDS):
        table.require("landmark_id", "name")
    if not any(name in columns for name in ("name", _CATEGORY, _HIERARCHY)):
        table.require("name")
    named = [name for name in columns if name]
    if repeated := [name for name in named if named.count(name) > 1]:
        remedy = "rename or remove one of them"
        raise ManifestError(f"a column {repeated[0]!r} stands twice", where=where, remedy=remedy)
    if len(named) > MOST_EXTRA:
        raise ManifestError(f"has {len(named)} columns", where=where, remedy="remove some of them")
    return columns


def _numbered(
    path: str | os.PathLike[str], table: CsvFile, columns: Sequence[str]
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Yields line, landmark and the texts of the other columns of each row."""
    column = next(name for name in _IDS if name in columns)
    place = columns.index(column)
    rows = [Row(row.line, [_plain(cell) for cell in row.cells]) for row in table]
    ids = [parse_id(path, row.line, row.cells[place], ManifestError) for row in rows]
    if are_floats(ids):  # as pandas writes a column with gaps
        ids = [whole_number(id_) for id_ in ids]
    for row, landmark_id in zip(rows, ids, strict=True):
        cells = zip(columns, row.cells, strict=True)
        yield row.line, landmark_id, {n: cell for n, cell in cells if n and cell and n != column}


def _plain(cell: str) -> str:
    text = nfc(cell).strip()
    return "" if text in MISSING_WORDS else text


def _values(cells: Mapping[str, str], *, has_name: bool) -> dict[str, Any]:
    """Returns the values of a row as the arguments of LandmarkDetails (ValueError)."""
    extra = {name: text for name, text in cells.items() if name not in (*_TEXTS, *_COORDINATES)}
    values: dict[str, Any] = {}
    if not has_name and _CATEGORY in extra:
        values |= _of_category(extra.pop(_CATEGORY))
    values |= {name: cells[name] for name in _TEXTS if name in cells}
    if "name" in values:
        values["name"] = " ".join(values["name"].split())
    for name in _COORDINATES:
        if name in cells:
            if not _NUMBER.fullmatch(cells[name]):
                raise ValueError(f"the {name} {cells[name][:40]!r} is no number such as 48.8584")
            values[name] = float(cells[name])
    return values | {"extra": tuple(extra.items())}


def _of_category(address: str) -> dict[str, str]:
    """Returns name and url for the address of a Commons category (ValueError for another text)."""
    whole = f"https:{address}" if address.startswith("//") else address
    _, found, title = unquote(urlsplit(whole).path).partition("/wiki/Category:")
    name = " ".join(title.replace("_", " ").split())
    if not found or not name:
        what = f"{address[:60]!r} is no address of a Wikimedia Commons category"
        raise ValueError(f"{what}; name the landmarks in a column `name`")
    return {"name": name, "url": quote(whole, safe=_IN_URL)}
