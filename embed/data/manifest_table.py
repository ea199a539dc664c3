"""Tables of pictures: reads a CSV or Parquet file and the pictures that its rows list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmk.embed.data.manifest_paths import paths_by_id, picture_path
from lmk.embed.data.picture_ids import exact_id, unique_ids
from lmk.embed.errors import ManifestError
from lmk.embed.notices import notice
from lmk.embed.tables.csv_file import CsvFile, column_key, known_columns
from lmk.embed.tables.label_text import (
    SEPARATOR,
    SEVERAL_LABELS_COLUMNS,
    SINGLE_LABEL_COLUMNS,
    are_floats,
    plain_name,
    read_labels,
    split_labels,
    whole_number,
)

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
_LIKE_ID = frozenset({"image_id", "picture_id", "photo_id", "image", "file", "filename", "name"})
_BLOCK = 10_000  # number of rows that are converted at a time
_COMPRESSED = frozenset({".gz", ".zip"})  # behind one of a text, or alone for an archive
LABEL_COLUMNS = (*SINGLE_LABEL_COLUMNS, *SEVERAL_LABELS_COLUMNS)
COLUMNS = ("id", "path", *LABEL_COLUMNS, "images")


def is_table(path: Path) -> bool:
    """True if a file name is that of a table: photos.csv, photos.tsv.gz, photos.zip, ..."""
    return table_stem(path) != path.name


def table_stem(path: Path) -> str:
    """Returns the name of a table's file without its suffixes; any other name unchanged."""
    stem, suffix = path.stem, path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return stem
    inner = Path(stem)
    if suffix in _COMPRESSED and inner.suffix.lower() in TABLE_SUFFIXES - {".parquet"}:
        return inner.stem
    return stem if suffix == ".zip" else path.name


def plain_ids(texts: Iterable[str]) -> list[str]:
    """Returns ids in the form of manifests from the texts of a table's column.

    Different texts that would give the same id get longer ids (picture_ids). Equal texts give
    equal ids.
    """
    names = [text.strip() for text in texts]
    ids = [plain_name(name) for name in names]
    if are_floats(ids):
        ids = [whole_number(id_) for id_ in ids]
    return unique_ids(names, ids, exact_id)


def picture_rows(path: Path, root: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Returns the id, path and labels of each picture in a table.

    Args:
        path: the table.
        root: the folder that its paths start from.

    Raises:
        ManifestError: the table cannot be read, or has no rows, no column id or no pictures.
    """
    table = read_table(path)
    if "id" not in table and {"images", "landmark_id"} <= set(table):
        table = _one_row_a_picture(table)
    if "id" not in table:
        what = f"no column 'id' (its columns are: {', '.join(map(str, table.columns))[:200]})"
        remedy = _id_remedy(list(table.columns))
        raise ManifestError(what, where=path, remedy=remedy)
    if not len(table):
        raise ManifestError("holds no rows", where=path, remedy="list at least one picture")
    ids = plain_ids(table["id"])
    labels = labels_of(table, path)[1]
    if "path" in table:
        cells = zip(table["path"], ids, strict=True)
        paths = [picture_path(cell, root, id_) for cell, id_ in cells]
    else:
        floats = are_floats(map(plain_name, table["id"]))
        paths = paths_by_id(ids if floats else table["id"].tolist(), root, path)
    return zip(ids, paths, labels, strict=True)


def _id_remedy(columns: list[str]) -> str:
    """Returns the remedy for a table without a column id, from the names of its columns."""
    if len(columns) == 1 and "id" in map(str.casefold, columns[0].split()):
        return "separate the cells by commas"
    for name in columns:
        if column_key(name) in _LIKE_ID:
            return f"rename the column {name!r} to 'id'"
    return "name the columns on the first line, the one that identifies a picture 'id'"


def labels_of(table: pd.DataFrame, path: Path) -> tuple[str | None, list[tuple[str, ...]]]:
    """Returns the column of labels, or None, and the labels of each row without repetition.

    Labels that look wrong are logged as a notice.
    """
    column = next((name for name in LABEL_COLUMNS if name in table), None)
    if column is None:
        return None, [()] * len(table)
    labels, notes = read_labels(table[column].tolist(), column)
    notice(path, *notes)
    once = {own: tuple(dict.fromkeys(own)) for own in set(labels)}
    return column, [once[own] for own in labels]


def read_table(path: Path, known: Collection[str] = COLUMNS) -> pd.DataFrame:
    """Returns the content of a CSV or Parquet file with all cells as text; an empty cell is ''.

    Args:
        path: the file. csv_file.CsvFile reads CSV files.
        known: the expected columns. Their names may differ in case and blanks.

    Raises:
        ManifestError: the file cannot be read, or a row has more cells than the header.
    """
    import pandas as pd

    if path.suffix.lower() == ".parquet":
        try:
            table = pd.read_parquet(path)
        except (ValueError, OSError) as error:  # pyarrow's parse errors are ValueErrors
            reason = " ".join(str(error).split())
            remedy = "is it a Parquet file?"
            raise ManifestError(f"cannot be read as a table: {reason}", where=path,
                                remedy=remedy) from error  # fmt: skip
        names = [str(name) for name in table.columns]
        table.columns = pd.Index(_unique(known_columns(names, known, str(path), ManifestError)))
        return table.apply(_as_text)
    with CsvFile(path, known, error=ManifestError, pad=True) as rows:
        columns: list[list[str]] = [[] for _ in rows.columns]
        given = iter(rows)
        while block := [row.cells for row in islice(given, _BLOCK)]:
            for column, cells in zip(columns, zip(*block, strict=True), strict=True):
                column.extend(cells)
        names = _unique(rows.columns)
    return pd.DataFrame(dict(zip(names, columns, strict=True)), dtype=object)


def _unique(names: Iterable[str]) -> list[str]:
    """Returns the names, with ".1", ".2" after repeated ones."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        unique.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return unique


def _as_text(column: pd.Series[Any]) -> pd.Series[str]:
    """Returns cells as text: whole floats without a decimal point, lists joined by "|"."""
    return column.map(_cell_text).astype(object)


def _cell_text(cell: object) -> str:
    if isinstance(cell, Iterable) and not isinstance(cell, str | bytes):
        parts = [_cell_text(part) for part in cell]
        # A list with one name of several words must not be read as several names.
        alone = len(parts) == 1 and len(parts[0].split()) > 1
        return SEPARATOR.join([*parts, ""] if alone else parts)
    if cell is None or cell != cell:  # only NaN differs from itself
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def _one_row_a_picture(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the pictures of GLDv2's train_clean.csv, which has one row per landmark."""
    images = table["images"].map(lambda cell: split_labels(cell, several=True))
    table = table.assign(id=images).explode("id", ignore_index=True)
    return table.dropna(subset=["id"])[["id", "landmark_id"]]
