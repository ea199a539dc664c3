"""SHA256SUMS: the checksums of an embedder folder's files, in the format of `sha256sum -c`.

A file is compared with its checksum before its content is used. Folders of early releases have no
SHA256SUMS and stay readable.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from lmk.embed.errors import ModelDamaged
from lmk.embed.files import write_whole
from lmk.embed.plain_files import read_plain

CHECKSUMS_FILE = "SHA256SUMS"
_SHIPPED = Path(__file__).parent / "presets"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\]+)")

# The SHA-256 of each file by name: one, or two while a file is being replaced.
Checksums = Mapping[str, tuple[str, ...]]


def read_checksums(folder: Path) -> Checksums | None:
    """Returns the checksums of a folder, or None if it has none.

    Raises:
        ModelDamaged: the file of checksums cannot be read.
    """
    file = folder / CHECKSUMS_FILE
    try:
        return parse_checksums(read_plain(file), file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        what = f"cannot be read ({type(error).__name__})"
        raise ModelDamaged(what, where=file, remedy=way_out(folder)) from error


def parse_checksums(content: bytes, file: Path) -> Checksums:
    """Returns the checksums in a file.

    Raises:
        ModelDamaged: a line is not a checksum.
    """
    checksums: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            what = f"line {number} is no checksum"
            raise ModelDamaged(what, where=file, remedy=way_out(file.parent))
        checksums[match[2]] = (*checksums.get(match[2], ()), match[1])
    return checksums


def write_checksums(folder: Path, known: Checksums | None = None) -> None:
    """Writes the checksums of all files of a folder, without its sub-folders.

    Args:
        folder: an embedder's folder.
        known: required checksums of files that are copies. The others are computed.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
        OSError: a file cannot be read.
    """
    known = known or {}
    files = [item for item in folder.iterdir() if item.is_file() and item.name != CHECKSUMS_FILE]
    _write(folder, {file.name: known.get(file.name) or (file_sha256(file),) for file in files})


def write_with_checksum(path: Path, content: bytes) -> None:
    """Writes a file atomically, and its checksum if its folder has checksums.

    A process that is killed at any moment leaves a file that fits its checksums.

    Raises:
        ModelDamaged: the checksums of the folder cannot be read.
        StorageError: the disk is full or the folder cannot be written.
    """
    known = read_checksums(path.parent)
    if known is None:
        write_whole(path, content)
        return
    new = hashlib.sha256(content).hexdigest()
    _write(path.parent, {**known, path.name: (*known.get(path.name, ()), new)})
    write_whole(path, content)
    _write(path.parent, {**known, path.name: (new,)})


def require_unchanged(
    folder: Path, names: Iterable[str], checksums: Checksums, *, remedy: str | None = None
) -> None:
    """Compares files with their checksums.

    Args:
        folder: the folder of the files.
        names: the files to compare. A file that neither exists nor has a checksum is ignored.
        checksums: the checksums of the folder.
        remedy: the remedy of the error. Default: `way_out`.

    Raises:
        ModelDamaged: a file has changed, is missing, or has no checksum.
    """
    remedy = remedy or way_out(folder)
    for name in names:
        file, expected = folder / name, checksums.get(name)
        if not file.is_file():
            if expected is not None:
                raise ModelDamaged("the file is missing", where=file, remedy=remedy)
        elif expected is None:
            what = f"{CHECKSUMS_FILE} beside it has no checksum of the file"
            raise ModelDamaged(what, where=file, remedy=remedy)
        elif (digest := file_sha256(file)) not in expected:
            what = f"the file has changed: sha256 {digest[:12]}…, {expected[0][:12]}… expected"
            raise ModelDamaged(what, where=file, remedy=remedy)


def way_out(folder: Path) -> str:
    """Returns the remedy for a damaged file of a folder."""
    if is_shipped(folder):
        return "install lmk again"
    return "copy the folder again from where it came from, or train it again"


def is_shipped(folder: Path) -> bool:
    """True if a folder is shipped with lmk."""
    return folder.is_relative_to(_SHIPPED)


def file_sha256(file: Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write(folder: Path, checksums: Checksums) -> None:
    lines = [f"{one}  {name}\n" for name in sorted(checksums) for one in checksums[name]]
    write_whole(folder / CHECKSUMS_FILE, "".join(lines).encode())
