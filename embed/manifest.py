"""Manifest: which pictures there are, under which ids and labels.

Read from a folder (one sub-folder a landmark, a flat folder, or GLDv2's a/b/c/<id>.jpg) or from a
CSV or Parquet file. Labels and ids never hold blanks, because the contest's files separate
them by blanks: a blank in a folder's or file's name becomes "_".
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lmk.embed.errors import ManifestError
from lmk.embed.images import Skipped
from lmk.embed.manifest_folder import PICTURE_SUFFIXES, picture_files

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = frozenset({".csv", ".parquet"})
LABEL_COLUMNS = ("landmark_id", "label", "labels", "landmarks", "tags")
_BLANKS = re.compile(r"\s+")
_NESTED_PROBE = 100  # rows looked at to tell a/b/c/<id>.jpg from <id>.jpg


@dataclass(frozen=True)
class Row:
    """One picture of a manifest: its id, its path under the root, its labels (maybe none)."""

    id: str
    path: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """An ordered list of pictures below one folder.

    Attributes:
        root: the folder all paths start from.
        rows: the pictures, ids unique.
        skipped: files of the folder that are no pictures, and why.

    Raises:
        ManifestError: on a repeated or empty id, a blank in an id or label, a path outside the
            root.
    """

    root: Path
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...] = field(default=())

    def __post_init__(self) -> None:
        repeated = [id_ for id_, n in Counter(row.id for row in self.rows).items() if n > 1]
        if repeated:
            paths = [row.path for row in self.rows if row.id == repeated[0]]
            raise ManifestError(
                f"the id {repeated[0]!r} stands for several pictures ({', '.join(paths[:3])}), "
                f"and {len(repeated) - 1} more ids are repeated"
                if len(repeated) > 1
                else f"the id {repeated[0]!r} stands for several pictures ({', '.join(paths[:3])})",
                where=self.root,
                remedy="give each picture an id of its own",
            )
        for row in self.rows:
            self._check(row)

    def _check(self, row: Row) -> None:
        if not row.id or any(_BLANKS.search(text) or not text for text in (row.id, *row.labels)):
            raise ManifestError(
                f"an id or label is empty or holds a blank (id {row.id!r}, labels {row.labels})",
                where=self.root,
                remedy="write '_' for a blank",
            )
        if row.path in ("", "."):
            raise ManifestError(
                f"the path of {row.id} is empty",
                where=self.root,
                remedy="name the picture's file, or leave the row out",
            )
        if row.path.startswith("/") or ".." in row.path.split("/"):
            raise ManifestError(
                f"the path {row.path!r} of {row.id} leads outside the folder",
                where=self.root,
                remedy="give paths relative to the folder of the file, or name another with --root",
            )

    def __len__(self) -> int:
        return len(self.rows)

    def file(self, row: Row) -> Path:
        """Where a row's picture is."""
        return self.root / row.path

    @property
    def labelled(self) -> bool:
        """Whether any picture has a label."""
        return any(row.labels for row in self.rows)


def read_manifest(source: str | os.PathLike[str], *, root: Path | None = None) -> Manifest:
    """Reads a folder, CSV or Parquet file of pictures.

    Args:
        source: a folder: each sub-folder is a landmark and ids are paths ("eiffel/1.jpg"); in a
            flat folder and in GLDv2's layout (a/b/c/<id>.jpg) pictures have no label and ids are
            file names without their ending. Or a CSV or Parquet file with a column `id`, labels
            in `landmark_id` or `label` (several separated by blanks; may be missing) and `path`
            (may be missing: then a/b/c/<id>.jpg or <id>.jpg is looked for), or GLDv2's
            train_clean.csv (`landmark_id`, `images`).
        root: the folder that a table's paths start from; its own folder unless given.

    Raises:
        ManifestError: when there is no such file or folder, no picture in it, no such column.
    """
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        raise ManifestError("no such folder or file", where=path, remedy="check the spelling")
    if path.suffix.lower() in TABLE_SUFFIXES:
        return _from_table(path, root or path.parent)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise ManifestError(
            "is one picture, a folder or CSV of pictures is wanted",
            where=path,
            remedy="to ask about one picture use: lmk query IMAGE",
        )
    raise ManifestError(
        "is neither a folder nor a .csv or .parquet file",
        where=path,
        remedy="point at a folder of pictures",
    )


def _from_folder(root: Path) -> Manifest:
    files, skipped, nested = picture_files(root)
    flat = all("/" not in name for name in files)
    rows = _stem_rows(files) if nested or flat else [_landmark_row(name) for name in files]
    return Manifest(root, tuple(rows), tuple(skipped))


def _landmark_row(name: str) -> Row:
    folder, _, _ = name.partition("/")
    labels = (_no_blanks(folder),) if "/" in name else ()
    return Row(_no_blanks(name), name, labels)


def _stem_rows(files: list[str]) -> list[Row]:
    """Ids are names without their ending; with it where two files differ in nothing else."""
    stems = Counter(_no_blanks(PurePosixPath(name).stem) for name in files)
    rows = []
    for name in files:
        path = PurePosixPath(name)
        id_ = _no_blanks(path.stem)
        rows.append(Row(id_ if stems[id_] == 1 else _no_blanks(path.name), name))
    return rows


def plain_id(text: str) -> str:
    """The id of a picture as manifests have it, of what a table says."""
    return _no_blanks(text.strip())


def _no_blanks(text: str) -> str:
    return _BLANKS.sub("_", text)


def _from_table(path: Path, root: Path) -> Manifest:
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
    return _table_manifest(path, root, zip(ids, paths, labels, strict=True))


def _labels(cell: str) -> tuple[str, ...]:
    """The labels of a cell in their order; one written twice counts once."""
    return tuple(dict.fromkeys(cell.split()))


def _plain_path(path: str) -> str:
    """Without "./" and "//"; looked at only where there is one, as millions pass here."""
    if "./" in path or "//" in path or path.endswith("/"):
        return PurePosixPath(path).as_posix()
    return path


def _table_manifest(
    path: Path, root: Path, cells: Iterable[tuple[str, str, tuple[str, ...]]]
) -> Manifest:
    try:
        return Manifest(root, tuple(Row(id_, file, labels) for id_, file, labels in cells))
    except ManifestError as error:
        raise ManifestError(error.what, where=path, remedy=error.remedy) from None


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
