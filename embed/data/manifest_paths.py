"""Paths of pictures as tables write them, turned into paths below a folder as they are on disk."""

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

_PROBE = 100  # rows looked at to tell how the pictures lie that a table names by id alone
# Most paths have nothing of this, and are taken as they stand: millions pass here.
_UNUSUAL = re.compile(r"[^\x21-\x7e]|\\|:|//|\./|/\.$|/$|^[/~]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file; a name that no file can have, or a closed folder, is none."""
    try:
        os.stat(path)  # noqa: PTH116 (called for many paths)
    except (OSError, ValueError):  # ValueError: a NUL character
        return False
    return True


def picture_path(cell: str, root: Path, id_: str) -> str:
    """The path of a picture below `root`, from what a table's column `path` says.

    Taken for a path below `root` are also: an absolute path, or a `file:` URL, that lies inside it;
    Windows' backslashes; another Unicode form (NFC, NFD) than the file's name has on disk. A path
    that leads elsewhere stays as it is, for Manifest to refuse.

    Args:
        cell: the text.
        root: the folder that paths start from.
        id_: of the picture, for error messages.

    Raises:
        ManifestError: a URL that is no file, a path of a Windows drive, a NUL character.
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
    """An absolute path relative to `root` where it lies inside, links followed; else unchanged."""
    for one, other in (
        (posixpath.normpath(path), os.path.abspath(root)),  # noqa: PTH100 (links not followed)
        (os.path.realpath(path), os.path.realpath(root)),
    ):
        if PurePosixPath(one).is_relative_to(other):
            return PurePosixPath(one).relative_to(other).as_posix()
    return path


def _as_on_disk(path: str, root: Path) -> str:
    """The path with each part in the Unicode form that it has on disk; unchanged if in none."""
    if is_there(root / path):
        return path
    found = PurePosixPath()
    for part in PurePosixPath(path).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        there = next((form for form in forms if is_there(root / found / form)), None)
        if there is None:
            return path
        found /= there
    return found.as_posix()


def paths_by_id(texts: Sequence[str], root: Path, table: Path) -> list[str]:
    """The paths of pictures that a table names by id alone.

    GLDv2's layout a/b/c/<id>.jpg where it is found on disk, else <id>.jpg, else the id itself.

    Args:
        texts: the ids as the table has them; a file may be called so, or as the plain id.
        root: the folder of the pictures.
        table: for error messages.

    Raises:
        ManifestError: none of the first pictures is found.
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
