"""Manifest: a list of pictures with their ids and labels.

`read_manifest` reads a folder (one sub-folder per landmark, a flat folder, or GLDv2's
a/b/c/<id>.jpg) or a CSV or Parquet file. Labels and ids never contain blanks, because the contest
files separate them by blanks: a blank in the name of a folder or file becomes "_". Pictures that
would share an id get longer ids (picture_ids.py).
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest_folder import read_folder
from lmk.embed.data.manifest_paths import is_there
from lmk.embed.data.manifest_table import is_table, picture_rows
from lmk.embed.data.picture_ids import exact_id, unique_ids
from lmk.embed.data.picture_roots import any_below, common_folder, root_remedy
from lmk.embed.data.sources import url_reason, url_text
from lmk.embed.data.unseen import Unseen, UnseenPlaces
from lmk.embed.decode.formats import PICTURE_SUFFIXES
from lmk.embed.errors import ManifestError
from lmk.embed.notices import notice
from lmk.embed.shell_words import shell_word
from lmk.embed.tables.label_forms import similar_groups, similar_text
from lmk.embed.tables.label_text import MISSING_WORDS, SEPARATOR, nfc, plain_name

_OTHER_FILES = dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV")
_OTHER_FILES |= dict.fromkeys((".json", ".jsonl"), "write the list as CSV")


@dataclass(frozen=True)
class Row:
    """One picture of a manifest: its id, its path below the root, and its labels, if any.

    The id and the labels are stored in Unicode's composed form (NFC), the path as it is on disk.
    """

    id: str
    path: str
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.id.isascii():
            object.__setattr__(self, "id", nfc(self.id))
        if self.labels and not "".join(self.labels).isascii():
            object.__setattr__(self, "labels", tuple(dict.fromkeys(map(nfc, self.labels))))


@dataclass(frozen=True)
class Manifest:
    """An ordered list of pictures below one folder.

    Attributes:
        root: the folder that all paths start from.
        rows: the pictures. Their ids are unique.
        skipped: the files of the folder that are not pictures, each with a reason.
        unseen: the places of the folder that could not be read. They may hold pictures.
        system: paths that belong to an operating system or a device. They are left out.
        source: the table that lists the pictures, or None for a folder.

    Raises:
        ManifestError: for a repeated or empty id, a blank in an id or label, or a path outside
            the root.
    """

    root: Path
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...] = field(default=())
    unseen: tuple[Unseen, ...] = field(default=())
    system: tuple[str, ...] = field(default=())
    source: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        repeated = [id_ for id_, n in Counter(row.id for row in self.rows).items() if n > 1]
        if repeated:
            paths = [row.path for row in self.rows if row.id == repeated[0]]
            what = f"the id {repeated[0]!r} stands for several pictures ({', '.join(paths[:3])})"
            if len(repeated) > 1:
                what += f", and {len(repeated) - 1} more ids are repeated"
            remedy = "give each picture an id of its own"
            raise ManifestError(what, where=self.root, remedy=remedy)
        for row in self.rows:
            self._check(row)

    def _check(self, row: Row) -> None:
        # An id or label without blanks that is not empty splits into exactly itself.
        if len(row.id.split()) != 1 or " ".join(row.labels).split() != list(row.labels):
            what = f"an id or label is empty or holds a blank (id {row.id!r}, labels {row.labels})"
            remedy = "write '_' for a blank"
            raise ManifestError(what, where=self.root, remedy=remedy)
        if row.path in ("", "."):
            remedy = "name the picture's file, or leave the row out"
            raise ManifestError(f"the path of {row.id} is empty", where=self.root, remedy=remedy)
        if row.path.startswith("/") or ".." in row.path.split("/"):
            root = os.path.abspath(self.root)  # noqa: PTH100 (without following links)
            above = os.path.commonpath([root, os.path.normpath(os.path.join(root, row.path))])  # noqa: PTH118
            remedy = f"name a folder above all pictures (--root {shell_word(above)})"
            remedy += " and give paths relative to it"
            if all(each.path.startswith("/") for each in self.rows):
                folder = common_folder([each.path for each in self.rows])
                remedy = f"name the folder above all pictures: --root {folder}"
            raise ManifestError(
                f"the path {row.path!r} of {row.id} leads outside the folder {root}",
                where=self.root,
                remedy=remedy,
            )
        if "\0" in row.path or "\0" in row.id:
            what = f"the id or path of {row.id!r} has a NUL character"
            remedy = "remove the NUL character"
            raise ManifestError(what, where=self.root, remedy=remedy)

    def __len__(self) -> int:
        return len(self.rows)

    def file(self, row: Row) -> Path:
        """Returns the path of a row's picture."""
        return self.root / row.path

    def unseen_places(self) -> UnseenPlaces:
        """Returns the places where pictures may exist that the manifest does not list."""
        return UnseenPlaces(self.unseen, (skip.path for skip in self.skipped))

    @property
    def origin(self) -> Path:
        """The table or folder that the pictures come from; error messages name it."""
        return self.root if self.source is None else self.source

    @property
    def unreadable_remedy(self) -> str:
        """The remedy for an error that none of the pictures can be read."""
        exists = any_below([row.path for row in self.rows])
        if self.source is not None and not exists(self.root):
            return root_remedy(exists, self.root)
        call = f"lmk data check {shell_word(self.origin)}"
        root = self.source is not None and self.source.parent != self.root
        call += f" --root {shell_word(self.root)}" if root else ""
        return f"check that the files are pictures: {call} names what is wrong with each"

    @property
    def labelled(self) -> bool:
        """True if any picture has a label."""
        return any(row.labels for row in self.rows)


def read_manifest(source: str | os.PathLike[str], *, root: Path | None = None) -> Manifest:
    """Returns the manifest of a folder or of a CSV or Parquet file.

    In a folder, each sub-folder is a landmark and the ids are paths ("eiffel/1.jpg"). In a flat
    folder and in GLDv2's layout (a/b/c/<id>.jpg), pictures have no label and the ids are the file
    names without their suffix.

    A table has a column `id` and, optionally, labels: one label in `landmark_id` or `label`, or
    several, separated by blanks, in `labels`, `landmarks` or `tags`. A column `path` names the
    files; without it the files are a/b/c/<id>.jpg, <id>.jpg or <id>. GLDv2's train_clean.csv
    (`landmark_id`, `images`) is read too. docs/tables.md has the details.

    Args:
        source: the folder or the table.
        root: the folder that a table's paths start from. Default: the folder of the table.

    Raises:
        ManifestError: the file or folder does not exist, has no pictures, or lacks a column.
    """
    path = Path(source)
    manifest = _read(path, root)
    labels = {label for own in {row.labels for row in manifest.rows} for label in own}
    if alike := similar_groups(labels):
        text = similar_text([(group[0], group[1]) for group in alike], "label")
        notice(path, f"{text}: they stay different labels")
    if words := sorted(labels & MISSING_WORDS):
        text = f"{words[0]!r} is the name of a landmark here, and no label in a table"
        notice(path, f"{text}: rename the landmark, or give these pictures no landmark")
    if barred := sorted(label for label in labels if SEPARATOR in label):
        text = f"{barred[0]!r} is one landmark here, and several labels in a table"
        notice(path, f"{text}, where {SEPARATOR!r} separates them: rename the landmark")
    return manifest


def _read(path: Path, root: Path | None) -> Manifest:
    if path.is_dir():
        return _from_folder(path)
    if not is_there(path):
        if url_reason(path) is not None:
            remedy = "download the pictures, and name their folder or file"
            what = "is a URL, which lmk does not read"
            raise ManifestError(what, where=url_text(path), remedy=remedy)
        raise ManifestError("no such folder or file", where=path, remedy="check the spelling")
    if is_table(path):
        return _from_table(path, root or path.parent)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise ManifestError(
            "is one picture, but a folder or CSV of pictures is needed",
            where=path,
            remedy="to ask about one picture use: lmk query IMAGE",
        )
    raise ManifestError(
        "is neither a folder nor a .csv or .parquet file",
        where=path,
        remedy=_OTHER_FILES.get(path.suffix.lower(), "point at a folder of pictures"),
    )


def _from_folder(root: Path) -> Manifest:
    folder = read_folder(root)
    files = folder.files
    flat = folder.gldv2 or all("/" not in name for name in files)
    if flat:  # ids are file names, without the suffix where that is unique (picture_ids)
        names = [PurePosixPath(name).name for name in files]
        stems = [plain_name(PurePosixPath(name).stem) for name in names]
        ids = unique_ids(names, stems, plain_name, exact_id)
    else:
        ids = unique_ids(files, [plain_name(name) for name in files], exact_id)
    labels = [() if flat else _label(name) for name in files]
    rows = tuple(Row(*cells) for cells in zip(ids, files, labels, strict=True))
    return Manifest(root, rows, folder.skipped, folder.unseen, folder.system)


def _label(name: str) -> tuple[str, ...]:
    folder, slash, _ = name.partition("/")
    return (plain_name(folder),) if slash else ()


def _from_table(path: Path, root: Path) -> Manifest:
    try:
        rows = tuple(Row(*cells) for cells in picture_rows(path, root))
        return Manifest(root, rows, source=path)
    except ManifestError as error:
        # An error about all rows together, or about a path, does not name the table.
        named = error.where is not None and error.where.startswith(str(path))
        where = error.where if named else path
        raise ManifestError(error.what, where=where, remedy=error.remedy) from None
