"""SHA256SUMS: the checksums of an embedder folder's files, as `sha256sum -c` reads them.

A file is compared with its checksum before its content is used. Folders that an lmk without
checksums wrote have no such file and stay readable.
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

# The sha256 of each file by name: one, or two while a file is being replaced.
Checksums = Mapping[str, tuple[str, ...]]


def read_checksums(folder: Path) -> Checksums | None:
    """The checksums of a folder; None where it has none.

    Raises:
        ModelDamaged: the file with the checksums cannot be read as such.
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
    """The checksums that a file holds.

    Raises:
        ModelDamaged: it holds something else.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            what = f"line {number} is no checksum"
            raise ModelDamaged(what, where=file, remedy=way_out(file.parent))
        found[match[2]] = (*found.get(match[2], ()), match[1])
    return found


def write_checksums(folder: Path, known: Checksums | None = None) -> None:
    """Writes the checksums of all files of a folder; sub-folders have none.

    Args:
        folder: an embedder's folder.
        known: checksums that files must have, as they are copies; the others are computed.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
        OSError: a file cannot be read.
    """
    known = known or {}
    files = [item for item in folder.iterdir() if item.is_file() and item.name != CHECKSUMS_FILE]
    _write(folder, {file.name: known.get(file.name) or (file_sha256(file),) for file in files})


def write_with_checksum(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and its checksum where its folder has checksums.

    A process that is killed anywhere in between leaves a file that its checksums allow.

    Raises:
        ModelDamaged: the checksums there cannot be read.
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
        folder: of the files.
        names: those to compare; what is neither there nor listed is fine.
        checksums: of the folder.
        remedy: for the error, instead of `way_out`.

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
        elif (found := file_sha256(file)) not in expected:
            what = f"the file has changed: sha256 {found[:12]}…, {expected[0][:12]}… expected"
            raise ModelDamaged(what, where=file, remedy=remedy)


def way_out(folder: Path) -> str:
    """The remedy for a damaged file: where to get it again."""
    if is_shipped(folder):
        return "install lmk again"
    return "copy the folder again from where it came from, or train it again"


def is_shipped(folder: Path) -> bool:
    """Whether a folder comes with lmk."""
    return folder.is_relative_to(_SHIPPED)


def file_sha256(file: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write(folder: Path, checksums: Checksums) -> None:
    lines = [f"{one}  {name}\n" for name in sorted(checksums) for one in checksums[name]]
    write_whole(folder / CHECKSUMS_FILE, "".join(lines).encode())
