"""Folders of pictures: lists the pictures below a folder and the files that are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lmk.embed.data.images import Skipped
from lmk.embed.data.system_names import is_system_name
from lmk.embed.data.unseen import DEAD_LINK, EMPTY, Unseen, is_left_out, unnamed, utf8_name
from lmk.embed.decode.formats import PICTURE_SUFFIXES, reason_to_skip
from lmk.embed.errors import ManifestError


@dataclass(frozen=True)
class PictureFolder:
    """Files below a folder.

    Attributes:
        files: relative paths of the pictures.
        skipped: files and folders that are not pictures, each with a reason.
        unseen: places that could not be read.
        system: relative paths of folders and files that belong to a system or a device.
        gldv2: True if the paths have the form a/b/c/<id>.jpg.
    """

    files: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    unseen: tuple[Unseen, ...]
    system: tuple[str, ...]
    gldv2: bool


def read_folder(root: Path) -> PictureFolder:
    """Returns the files below a folder.

    Raises:
        ManifestError: the folder cannot be read, or has no picture.
    """
    walk = _Walk(root)
    files: list[str] = []
    for relative in walk.files():
        suffix = PurePosixPath(relative).suffix.lower()
        if suffix in PICTURE_SUFFIXES:
            files.append(relative)
        else:
            walk.skipped.append(Skipped(relative, reason_to_skip(suffix)))
    skipped = walk.skipped
    if not files:
        raise _no_pictures(root, walk)
    gldv2 = [name for name in files if _is_gldv2(name)]
    nested = 2 * len(gldv2) > len(files)
    if nested:  # one stray picture must not change all ids and labels of the data set
        strays = sorted(set(files) - set(gldv2))
        skipped += [Skipped(name, "lies outside the a/b/c/<id>.jpg layout") for name in strays]
        files = gldv2
    return PictureFolder(
        tuple(files), tuple(skipped), tuple(walk.unseen), tuple(walk.system), nested
    )


def _no_pictures(root: Path, walk: _Walk) -> ManifestError:
    reasons = Counter(skip.reason for skip in walk.skipped).most_common(1)
    seen = f"; it holds {len(walk.skipped)} other files, {reasons[0][0]}" if reasons else ""
    if not reasons and walk.unseen:  # each of them an empty folder
        folders = "folder" if len(walk.unseen) == 1 else "folders"
        seen = f"; it holds {len(walk.unseen)} empty {folders}: is a drive away?"
    return ManifestError(
        f"no pictures in this folder{seen}",
        where=root,
        remedy="put pictures in it (.jpg, .png, .webp, ...), one sub-folder for each landmark",
    )


class _Walk:
    """Walk through a folder; records what is left out and what cannot be read."""

    def __init__(self, root: Path) -> None:
        self.skipped: list[Skipped] = []
        self.unseen: list[Unseen] = []
        self.system: list[str] = []
        self._root = root
        self._read: set[tuple[int, int]] = set()
        self._links: list[str] = []

    def files(self) -> Iterator[str]:
        """Yields relative paths: the files of a folder before its sub-folders, sorted by name."""
        yield from self._below("")
        while self._links:  # last, so that a folder below the root is read under its own name
            links, self._links = sorted(self._links), []
            for link in links:
                yield from self._below(link)

    def _below(self, start: str) -> Iterator[str]:
        folders = [start]
        while folders:
            here = folders.pop()
            if self._enter(here):
                yield from self._sort_out(here, self._entries(here), folders)

    def _enter(self, here: str) -> bool:
        """True if a folder can be read and was not read before under another name."""
        try:
            status = (self._root / here).stat()
        except OSError as error:
            self._failed(here, error)
            return False
        identity = status.st_dev, status.st_ino
        if identity in self._read:
            self.skipped.append(Skipped(here, "a link to a folder that was already read"))
            return False
        self._read.add(identity)
        return True

    def _entries(self, here: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._root / here) as entries:
                listed = list(entries)
        except OSError as error:
            self._failed(here, error)
            return []
        if here and all(is_left_out(entry.name) for entry in listed):
            self.unseen.append(Unseen(here, EMPTY, "empty"))
        return sorted(listed, key=lambda entry: entry.name)

    def _sort_out(
        self, here: str, entries: list[os.DirEntry[str]], folders: list[str]
    ) -> Iterator[str]:
        """Yields the files; sub-folders go onto the stack, links to folders are read later."""
        below = []
        for entry in entries:
            name, relative = entry.name, f"{here}/{entry.name}" if here else entry.name
            try:
                folder, failed = entry.is_dir(), None
            except OSError as error:
                folder, failed = False, error
            if is_system_name(name, folder=folder):
                self.system.append(utf8_name(relative))
            elif name.startswith(".") or (folder and name.endswith(".lmk")):
                continue
            elif utf8_name(relative) != relative:
                place = unnamed(relative)
                self._leave(place.path, place.reason, place)
            elif folder and entry.is_symlink():
                self._links.append(relative)
            elif folder:
                below.append(relative)
            elif PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES:
                yield relative
            elif failed is not None:
                self._failed(relative, failed)
            elif entry.is_symlink() and not (self._root / relative).exists():
                self._leave(relative, DEAD_LINK, Unseen(relative, DEAD_LINK, "link"))
            else:
                yield relative
        folders += reversed(below)

    def _failed(self, relative: str, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        if not relative:
            raise ManifestError(
                f"cannot be read: {reason}", where=self._root, remedy="check the permissions"
            ) from error
        reason = f"cannot be read: {reason}"
        self._leave(relative, reason, Unseen(relative, reason, "unreadable"))

    def _leave(self, relative: str, reason: str, place: Unseen) -> None:
        self.skipped.append(Skipped(relative, reason))
        self.unseen.append(place)


def _is_gldv2(name: str) -> bool:
    parts = PurePosixPath(name).parts
    single = all(len(part) == 1 for part in parts[:3])
    return len(parts) == 4 and single and parts[3].startswith("".join(parts[:3]))
