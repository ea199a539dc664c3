"""Folders of pictures: which files below a folder are pictures, and which are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lmk.embed.errors import ManifestError
from lmk.embed.images import Skipped

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
_NOT_UTF8 = "its name is not valid UTF-8"


def picture_files(root: Path) -> tuple[list[str], list[Skipped], bool]:
    """Relative paths of a folder's pictures, the files left out, and whether it is GLDv2's layout.

    Raises:
        ManifestError: the folder cannot be read, or holds no picture.
    """
    files: list[str] = []
    skipped: list[Skipped] = []
    for relative in _walk(root, skipped):
        suffix = PurePosixPath(relative).suffix.lower()
        if suffix in PICTURE_SUFFIXES:
            files.append(relative)
        else:
            skipped.append(Skipped(relative, f"not a picture ({suffix or 'no file ending'})"))
    if not files:
        found = Counter(skip.reason for skip in skipped).most_common(1)
        seen = f"; it holds {len(skipped)} other files, {found[0][0]}" if found else ""
        raise ManifestError(
            f"no pictures in this folder{seen}",
            where=root,
            remedy="put pictures in it (.jpg, .png, .webp, ...), one sub-folder for each landmark",
        )
    gldv2 = [name for name in files if _is_gldv2(name)]
    nested = 2 * len(gldv2) > len(files)
    if nested:  # one stray picture must not turn every id and label of the data set into another
        strays = sorted(set(files) - set(gldv2))
        skipped += [Skipped(name, "lies outside the a/b/c/<id>.jpg layout") for name in strays]
        files = gldv2
    return files, skipped, nested


def _walk(root: Path, skipped: list[Skipped]) -> Iterator[str]:
    """Relative paths of all files below root, sorted; hidden files and galleries left out."""
    seen = {_identity(root)}

    def unreadable(error: OSError) -> None:
        where = Path(error.filename).relative_to(root).as_posix()
        if where == ".":
            raise ManifestError(
                f"cannot be read: {(error.strerror or str(error)).lower()}",
                where=root,
                remedy="check the permissions",
            ) from error
        skipped.append(Skipped(_printable(where), "a folder that cannot be read"))

    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        here = Path(folder)
        keep = []
        for name in sorted(folders):
            if name.startswith(".") or name.endswith(".lmk"):
                continue
            identity = _identity(here / name)
            relative = (here / name).relative_to(root).as_posix()
            if _printable(relative) != relative:
                skipped.append(Skipped(_printable(relative), _NOT_UTF8))
                continue
            if identity in seen:
                skipped.append(Skipped(relative, "a link to a folder that was already read"))
                continue
            seen.add(identity)
            keep.append(name)
        folders[:] = keep
        for name in sorted(files):
            if name.startswith("."):
                continue
            relative = (here / name).relative_to(root).as_posix()
            if _printable(relative) != relative:
                skipped.append(Skipped(_printable(relative), _NOT_UTF8))
                continue
            yield relative


def _printable(name: str) -> str:
    """The name, with the bytes that are no UTF-8 written out (no database could hold them)."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_gldv2(name: str) -> bool:
    parts = PurePosixPath(name).parts
    single = all(len(part) == 1 for part in parts[:3])
    return len(parts) == 4 and single and parts[3].startswith("".join(parts[:3]))
