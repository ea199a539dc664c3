"""Tables of pictures: a CSV or Parquet file as text, and the pictures that its rows name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lmk.embed.errors import ManifestError

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = frozenset({".csv", ".parquet"})
LABEL_COLUMNS = ("landmark_id", "label", "labels", "landmarks", "tags")
_BLANKS = re.compile(r"\s+")
_NESTED_PROBE = 100  # rows looked at to tell a/b/c/<id>.jpg from <id>.jpg


def plain_id(text: str) -> str:
    """The id of a picture as manifests have it, of what a table says."""
    return without_blanks(text.strip())


def without_blanks(text: str) -> str:
    """The text with "_" for each run of blanks."""
    return _BLANKS.sub("_", text)


def picture_rows(path: Path, root: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Id, path and labels of each picture that a table names.

    Args:
        path: of the table.
        root: the folder that its paths start from.

    Raises:
        ManifestError: the table cannot be read, has no rows, no column id, no pictures.
    """
    table = read_table(path)
    if "id" not in table and {"images", "landmark_id"} <= set(table):
        table = _one_row_a_picture(table)
    if "id" not in table:
        raise ManifestError(
            f"no column 'id' (its columns are: {', '.join(map(str, table.columns))})",
            where=path,
            remedy="name the column that identifies a picture 'id'",
        )
    if not len(table):
        raise ManifestError("holds no rows", where=path, remedy="list at least one picture")
    ids = [plain_id(text) for text in table["id"]]
    column = next((name for name in LABEL_COLUMNS if name in table), None)
    labels = [_labels(cell) for cell in table[column]] if column else [()] * len(ids)
    if "path" in table:
        paths = [_plain_path(cell) for cell in table["path"]]
    else:
        paths = _paths_by_id(ids, root, path)
    return zip(ids, paths, labels, strict=True)


def _labels(cell: str) -> tuple[str, ...]:
    """The labels of a cell in their order; one written twice counts once."""
    return tuple(dict.fromkeys(cell.split()))


def _plain_path(path: str) -> str:
    """Without "./" and "//"; looked at only where there is one, as millions pass here."""
    if "./" in path or "//" in path or path.endswith("/"):
        return PurePosixPath(path).as_posix()
    return path


def read_table(path: Path) -> pd.DataFrame:
    """A CSV or Parquet file, all cells as text; an empty cell is ''.

    Raises:
        ManifestError: the file cannot be read, or has rows of more cells than the header.
    """
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path).apply(_as_text)
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        if not isinstance(table.index, pd.RangeIndex):  # what pandas makes of one cell too many
            raise ValueError("its rows have more cells than its header")
        return table
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        reason = " ".join(str(error).split())
        raise ManifestError(
            f"cannot be read as a table: {reason}", where=path, remedy="write it as UTF-8 CSV"
        ) from error


def _as_text(column: pd.Series[Any]) -> pd.Series[str]:
    """Cells as text: whole numbers without a point (gaps make floats of them), lists by blanks."""
    return column.map(_cell_text).astype(str)


def _cell_text(cell: object) -> str:
    if isinstance(cell, Iterable) and not isinstance(cell, str | bytes):
        return " ".join(_cell_text(part) for part in cell)
    if cell is None or cell != cell:  # NaN alone differs from itself
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def _one_row_a_picture(table: pd.DataFrame) -> pd.DataFrame:
    """GLDv2's train_clean.csv: one row a landmark, its picture ids separated by blanks."""
    table = table.assign(id=table["images"].str.split()).explode("id", ignore_index=True)
    return table.dropna(subset=["id"])[["id", "landmark_id"]]


def _paths_by_id(ids: list[str], root: Path, table: Path) -> list[str]:
    """GLDv2's layout a/b/c/<id>.jpg where it is found on disk, else <id>.jpg."""
    for layout in (_nested_path, _flat_path):
        if any((root / layout(id_)).exists() for id_ in ids[:_NESTED_PROBE]):
            return [layout(id_) for id_ in ids]
    raise ManifestError(
        f"has no column 'path', and no picture was found as {_nested_path(ids[0])} "
        f"or {_flat_path(ids[0])} under {root}",
        where=table,
        remedy="add a column 'path', or name the folder of the pictures with --root",
    )


def _nested_path(id_: str) -> str:
    return "/".join((*id_[:3], f"{id_}.jpg"))


def _flat_path(id_: str) -> str:
    return f"{id_}.jpg"
