"""Converts the paths of pictures in tables into paths below a folder as they are on disk."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from lmk.embed.data.picture_roots import root_remedy
from lmk.embed.errors import ManifestError
from lmk.embed.tables.label_text import MISSING_WORDS, plain_name

_PROBE = 100  # number of rows that determine the layout of a table without paths
# Most of millions of paths match nothing of this and are used unchanged.
_UNUSUAL = re.compile(r"[^\x21-\x7e]|\\|:|//|\./|/\.$|/$|^[/~]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def is_there(path: str | os.PathLike[str]) -> bool:
    """True if a path exists; False also for an invalid name and below an unreadable folder."""
    try:
        os.stat(path)  # noqa: PTH116 (called for many paths)
    except (OSError, ValueError):  # ValueError: a NUL character
        return False
    return True


def picture_path(cell: str, root: Path, id_: str) -> str:
    """Returns the path of a picture below `root`, from a cell of a table's column `path`.

    The cell may also be an absolute path or a `file:` URL inside `root`, have Windows' backslashes,
    or have another Unicode form (NFC, NFD) than the file name on disk. A path outside `root` is
    returned unchanged; Manifest then raises an error.

    Args:
        cell: the text of the cell.
        root: the folder that paths start from.
        id_: the id of the picture, for error messages.

    Raises:
        ManifestError: the cell is a URL other than a file, has a Windows drive or a NUL character.
    """
    if not _UNUSUAL.search(cell) and cell not in MISSING_WORDS:
        return cell
    if "\0" in cell:
        what = f"the path of {id_} holds a NUL character"
        raise ManifestError(what, remedy="write the table anew, as UTF-8")
    path = cell
    if cell in MISSING_WORDS and not is_there(root / path):
        return ""
    if _SCHEME.match(path) and not is_there(root / path):
        path = _file_of_url(path, id_)
    if path != path.strip() and not is_there(root / path):
        path = path.strip()
    if "\\" in path and not is_there(root / path):
        if _DRIVE.match(path):
            raise ManifestError(
                f"the path {path!r} of {id_} is of a Windows drive",
                remedy="give paths relative to the folder of the pictures, and that folder with "
                "--root",
            )
        path = path.replace("\\", "/")
    if path.startswith("~/") and not is_there(root / path):
        path = os.path.expanduser(path)  # noqa: PTH111
    if path.startswith("/"):
        path = _inside(path, root)
    if ".." in path.split("/"):
        plain = posixpath.normpath(path)
        path = plain if is_there(root / plain) else path
    if "./" in path or "//" in path or path.endswith(("/", "/.")):
        path = PurePosixPath(path).as_posix()
    return path if path.isascii() else _as_on_disk(path, root)


def _file_of_url(url: str, id_: str) -> str:
    parts = urlsplit(url)
    if parts.scheme.lower() == "file" and parts.netloc in ("", "localhost"):
        return unquote(parts.path)
    raise ManifestError(
        f"the path of {id_} is a URL ({url[:100]}), and lmk reads files",
        remedy="download the pictures and give the paths of their files, or remove the column "
        "path if the files are named by their ids",
    )


def _inside(path: str, root: Path) -> str:
    """Returns an absolute path relative to `root` if it is inside; else unchanged."""
    for one, other in (
        (posixpath.normpath(path), os.path.abspath(root)),  # noqa: PTH100 (links not followed)
        (os.path.realpath(path), os.path.realpath(root)),
    ):
        if PurePosixPath(one).is_relative_to(other):
            return PurePosixPath(one).relative_to(other).as_posix()
    return path


def _as_on_disk(path: str, root: Path) -> str:
    """Returns the path in the Unicode form that exists on disk; unchanged if none exists."""
    if is_there(root / path):
        return path
    existing = PurePosixPath()
    for part in PurePosixPath(path).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        there = next((form for form in forms if is_there(root / existing / form)), None)
        if there is None:
            return path
        existing /= there
    return existing.as_posix()


def paths_by_id(texts: Sequence[str], root: Path, table: Path) -> list[str]:
    """Returns the paths of pictures for a table that has only ids.

    The paths follow GLDv2's layout a/b/c/<id>.jpg if it exists on disk, else <id>.jpg, else <id>.

    Args:
        texts: the ids in the table. A file may have this name or that of the plain id.
        root: the folder of the pictures.
        table: the table, for error messages.

    Raises:
        ManifestError: none of the first pictures exists.
    """
    for layout in (_nested_path, _flat_path, _own_path):
        if any(is_there(root / _path_of(text, layout, root)) for text in texts[:_PROBE]):
            return [_path_of(text, layout, root) for text in texts]
    first = plain_name(texts[0])
    shown = first if len(first) < 80 else f"{first[:40]}..."
    raise ManifestError(
        f"has no column 'path', and no picture was found as {_nested_path(shown)} "
        f"or {_flat_path(shown)} under {root}",
        where=table,
        remedy=f"add a column 'path', or name the folder of the pictures: {_root(texts, root)}",
    )


def _root(texts: Sequence[str], root: Path) -> str:
    def exists(folder: Path) -> bool:
        return any(
            is_there(folder / _path_of(text, layout, folder))
            for layout in (_nested_path, _flat_path, _own_path)
            for text in texts[:_PROBE]
        )

    return root_remedy(exists, root)


def _path_of(text: str, layout: Callable[[str], str], root: Path) -> str:
    name = text.strip()
    if not _UNUSUAL.search(name):
        return layout(name)
    for form in (name, plain_name(name)):
        path = _as_on_disk(layout(form), root)
        if is_there(root / path):
            return path
    return layout(plain_name(name))


def _nested_path(id_: str) -> str:
    return "/".join((*id_[:3], f"{id_}.jpg"))


def _flat_path(id_: str) -> str:
    return f"{id_}.jpg"


def _own_path(id_: str) -> str:
    return id_
