"""Unseen places: parts of a folder that could not be read and may contain pictures.

A folder without read permission, a link to an unmounted drive and an empty mount point look like a
folder whose pictures were deleted. No picture may be removed from an index because of them.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from lmk.embed.data.system_names import is_system_name

UnseenKind = Literal["unreadable", "link", "name", "empty"]

EMPTY = "is empty: is a drive away?"
DEAD_LINK = "a link that leads nowhere"
WAS_FOLDER = "is a file, and was a folder"
NOT_UTF8 = "its name is not valid UTF-8"


@dataclass(frozen=True)
class Unseen:
    """A folder or file that could not be read.

    Attributes:
        path: the path below the folder that was read, with "/"; bytes that are not UTF-8 are
            escaped.
        reason: a text with the reason.
        kind: "unreadable": the system reported an error; "link": a broken link; "name": the name
            is not UTF-8, so another program may write it differently; "empty": a folder without
            files, which may be a mount point.
        start: for the kind "name", the folder and the ASCII letters at the start of the name.
    """

    path: str
    reason: str
    kind: UnseenKind
    start: str = ""


class UnseenPlaces:
    """Lookup of paths that lie at or below an unseen place.

    Args:
        unseen: the places.
        files: paths of files. A file that was a folder before hides the paths below it.
    """

    def __init__(self, unseen: Iterable[Unseen], files: Iterable[str] = ()) -> None:
        self._places: dict[str, Unseen] = {}
        self._starts: list[Unseen] = []
        for place in unseen:
            if place.kind == "name":
                self._starts.append(place)
            else:
                self._places[place.path] = place
        self._files = frozenset(files)

    def __bool__(self) -> bool:
        return bool(self._places or self._starts or self._files)

    def at(self, path: str) -> Unseen | None:
        """Returns the place that hides a path, or None if the path was read."""
        parents = [str(parent) for parent in PurePosixPath(path).parents][:-1]  # without "."
        for own in (path, *parents):
            if own in self._places:
                return self._places[own]
        for parent in parents:
            if parent in self._files:
                return Unseen(parent, WAS_FOLDER, "unreadable")
        plain = unicodedata.normalize("NFC", path) if self._starts else ""
        for place in self._starts:
            rest = plain.removeprefix(place.start)
            begins = len(rest) < len(plain) or not place.start
            if begins and rest and not rest[0].isascii():
                return place
        return None


def unnamed(path: str) -> Unseen:
    """Returns the place of a path whose last name is not UTF-8.

    In another encoding, the name starts with the same ASCII letters and continues with others.
    """
    folder, slash, name = path.rpartition("/")
    letters = len(name) - len(name.lstrip("".join(map(chr, range(128)))))
    return Unseen(utf8_name(path), NOT_UTF8, "name", folder + slash + name[:letters])


def utf8_name(name: str) -> str:
    """Returns a name with the bytes that are not UTF-8 escaped, as no database can store them."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_left_out(name: str) -> bool:
    """True if an entry is hidden or made by a system, so that it is not a picture."""
    return name.startswith(".") or any(is_system_name(name, folder=kind) for kind in (True, False))


def hidden_by(file: Path, root: Path) -> str | None:
    """Returns why a file may exist although it cannot be read; None if it does not exist.

    A file does not exist if its folder, or a folder above, can be listed, is not empty and lacks
    it. A broken link counts as existing.

    Args:
        file: the file, below `root`.
        root: the highest folder that is examined.
    """
    try:
        file.lstat()
        return "is there, and is no picture now"
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: an invalid name
        return _reason(error)
    for folder in file.parents:
        try:
            link = stat.S_ISLNK(folder.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            if folder == root:
                return "its folder is not there"
        except OSError as error:
            return _reason(error)
        else:
            return _why_not(folder, link)
    return None


def _why_not(folder: Path, link: bool) -> str | None:
    """Returns why an existing path hides what is below it; None for a folder with files."""
    try:
        with os.scandir(folder) as entries:
            return EMPTY if all(is_left_out(entry.name) for entry in entries) else None
    except NotADirectoryError:
        return WAS_FOLDER
    except FileNotFoundError:
        return DEAD_LINK if link else None
    except OSError as error:
        return _reason(error)


def _reason(error: OSError | ValueError) -> str:
    words = error.strerror if isinstance(error, OSError) else None
    return f"cannot be read: {(words or str(error)).lower()}"
