"""Manifest: which pictures there are, under which ids and labels.

Read from a folder (one sub-folder a landmark, a flat folder, or GLDv2's a/b/c/<id>.jpg) or from a
CSV or Parquet file. Labels and ids never hold blanks, because the contest's files separate
them by blanks: a blank in a folder's or file's name becomes "_".
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lmk.embed.errors import ManifestError
from lmk.embed.images import Skipped
from lmk.embed.manifest_folder import PICTURE_SUFFIXES, read_folder
from lmk.embed.manifest_table import TABLE_SUFFIXES, picture_rows, without_blanks
from lmk.embed.unseen import Unseen, UnseenPlaces

_BLANKS = re.compile(r"\s+")


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
        unseen: places of the folder that could not be looked at: pictures may be there or not.
        system: paths in the folder that belong to a system or a device, and were left out.

    Raises:
        ManifestError: on a repeated or empty id, a blank in an id or label, a path outside the
            root.
    """

    root: Path
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...] = field(default=())
    unseen: tuple[Unseen, ...] = field(default=())
    system: tuple[str, ...] = field(default=())

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

    def unseen_places(self) -> UnseenPlaces:
        """Tells of paths that the manifest lacks whether they may be there all the same."""
        return UnseenPlaces(self.unseen, (skip.path for skip in self.skipped))

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
    found = read_folder(root)
    flat = found.gldv2 or all("/" not in name for name in found.files)
    rows = _stem_rows(found.files) if flat else [_landmark_row(name) for name in found.files]
    return Manifest(root, tuple(rows), found.skipped, found.unseen, found.system)


def _landmark_row(name: str) -> Row:
    folder, _, _ = name.partition("/")
    labels = (without_blanks(folder),) if "/" in name else ()
    return Row(without_blanks(name), name, labels)


def _stem_rows(files: Sequence[str]) -> list[Row]:
    """Ids are names without their ending; with it where two files differ in nothing else."""
    stems = Counter(without_blanks(PurePosixPath(name).stem) for name in files)
    rows = []
    for name in files:
        path = PurePosixPath(name)
        id_ = without_blanks(path.stem)
        rows.append(Row(id_ if stems[id_] == 1 else without_blanks(path.name), name))
    return rows


def _from_table(path: Path, root: Path) -> Manifest:
    try:
        return Manifest(root, tuple(Row(*cells) for cells in picture_rows(path, root)))
    except ManifestError as error:
        raise ManifestError(error.what, where=path, remedy=error.remedy) from None
