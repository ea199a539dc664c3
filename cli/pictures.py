"""Reading of the folders and tables of pictures that are arguments of commands."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmk.cli.printing import echo
from lmk.cli.render import echo_skipped
from lmk.embed.errors import UsageError

if TYPE_CHECKING:
    from lmk.embed.data.manifest import Manifest
    from lmk.rerank.recognizer import Recognizer

STDIN = "-"
_NAMES_SHOWN = 6  # maximum number of names of system folders and files in a note


def read_pictures(source: Path, *, root: Path | None = None, on_message: bool = True) -> Manifest:
    """Returns the pictures of a folder or table; prints the skipped system files on stderr.

    Args:
        source: the folder, or a CSV or Parquet file.
        root: the folder at which the paths of a table start; by default the table's folder.
        on_message: whether to print. Only one of several processes should print.

    Raises:
        ManifestError: read_manifest cannot read the folder or table.
    """
    from lmk.embed.data.manifest import read_manifest

    manifest = read_manifest(source, root=root)
    if on_message and manifest.system:
        echo(f"lmk: {source}: left out {_system_text(manifest.system)}", err=True)
    return manifest


@dataclass
class NamedPictures:
    """The pictures that the arguments of a command name.

    Attributes:
        files: the file of each picture by name; it includes the paths in `unseen`.
        several: whether a folder, a table or a list was among the arguments.
        unseen: the reason for each unreadable path below a folder, by path.
    """

    files: dict[str, Path] = field(default_factory=dict)
    several: bool = False
    unseen: dict[str, str] = field(default_factory=dict)


def named_pictures(images: Sequence[Path], root: Path | None) -> NamedPictures:
    """Returns the pictures that arguments name; lists files that are no pictures on stderr.

    Args:
        images: pictures, folders, tables, or "-" for a list of paths on stdin. The list has one
            path per line, or NUL between paths as in the output of `find -print0`. A picture of
            a folder or table is named by its id, any other picture by its path.
        root: the folder at which the paths of a table start; by default the table's folder.

    Raises:
        ManifestError: a folder or table cannot be read.
        UsageError: an argument is a URL, two pictures have one name, or stdin is empty.
    """
    from lmk.embed.data.manifest_table import is_table
    from lmk.embed.data.sources import url_reason, url_text

    named = NamedPictures()
    for image in images:
        if str(image) == STDIN:
            own = [(name, Path(name)) for name in _stdin_lines()]
            named.several = True
        elif image.is_dir() or is_table(image):
            manifest = read_pictures(image, root=root)
            own = [(row.id, manifest.file(row)) for row in manifest.rows]
            own += _unseen(manifest, image, named)
            named.several = True
        else:
            if reason := url_reason(image):
                raise UsageError(reason, where=url_text(image))
            own = [(str(image), image)]
        for name, path in own:
            if named.files.setdefault(name, path) != path:
                remedy = "run the command once for each folder"
                raise UsageError(f"two pictures have the id {name}", where=image, remedy=remedy)
    return named


def _unseen(manifest: Manifest, folder: Path, named: NamedPictures) -> list[tuple[str, Path]]:
    """Returns the unreadable paths below a folder; prints the files that are no pictures."""
    reasons = {place.path: place.reason for place in manifest.unseen if place.kind != "empty"}
    others = [skip for skip in manifest.skipped if skip.path not in reasons]
    echo_skipped(others, f"of {folder}")
    own = [(str(folder / path), manifest.root / path) for path in reasons]
    named.unseen |= {str(folder / path): reason for path, reason in reasons.items()}
    return own


def _stdin_lines() -> list[str]:
    """Returns the distinct paths on stdin."""
    data = sys.stdin.buffer.read()
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        remedy = "pipe the paths of pictures into it, one per line"
        raise UsageError("stdin is empty", where=STDIN, remedy=remedy)
    return list(dict.fromkeys(names))


def echo_similar_labels(manifest: Manifest, source: Path, index: Path) -> None:
    """Prints on stderr the labels that differ only in spelling from labels of an index.

    Args:
        manifest: the pictures to add.
        source: the folder or table of the pictures.
        index: the path of the index.

    Raises:
        GalleryError: the index cannot be opened.
    """
    from lmk.embed.tables.label_forms import similar_pairs, similar_text
    from lmk.index.gallery.gallery import Gallery

    labels = {label for row in manifest.rows for label in row.labels}
    with Gallery.open(index) as gallery:
        pairs = similar_pairs(labels, gallery.label_names)
    if pairs:
        text = similar_text(pairs, "label", others=f"those of {index}")
        echo(f"lmk: {source}: {text}: they become landmarks of their own", err=True)


def echo_without_landmarks(recognizer: Recognizer) -> None:
    """Prints a note on stderr if no picture of an index has a landmark."""
    if not recognizer.gallery.label_names:
        what = "no picture of the index has a landmark, so every answer is none of these"
        echo(f"lmk: {recognizer.gallery.path}: {what}", err=True)


def _system_text(paths: tuple[str, ...]) -> str:
    """Returns text such as "3 folders or files of a system or device: @eaDir (2), Thumbs.db"."""
    counts: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    for path in paths:
        name = path.rpartition("/")[2]
        counts[spelling.setdefault(name.casefold(), name)] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    names = [f"{name} ({n:,})" if n > 1 else name for name, n in ordered[:_NAMES_SHOWN]]
    names += ["..."] if len(ordered) > _NAMES_SHOWN else []
    noun = "folder or file" if len(paths) == 1 else "folders or files"
    return f"{len(paths):,} {noun} of a system or device: {', '.join(names)}"
