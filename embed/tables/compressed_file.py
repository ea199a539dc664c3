"""Opens plain, gzip and ZIP files (with one CSV file) in bounded memory."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from lmk.embed.errors import LmkError

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
_OTHERS = {
    b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "Zstandard",
    b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR",
}  # fmt: skip
TEXT_ENDINGS = (".csv", ".tsv", ".txt")
# A CSV shrinks to a hundredth at the most, a file of one repeated letter to a thousandth.
MAX_RATIO = 300
_UNPACK = "unpack it first"
FREE_BYTES = 64 * 2**20  # smaller files are always read


class TooLarge(ValueError):
    """A compressed file unpacks to more than a text can."""


def open_bytes(path: str | os.PathLike[str], error: type[LmkError]) -> io.BufferedReader:
    """Opens a file for reading; decompresses it if its first bytes show a known compression.

    Args:
        path: the file.
        error: the error class for an archive that cannot be read as one CSV file.

    Raises:
        OSError: the file cannot be read.
        error: the archive is damaged, encrypted, has several CSV files or another compression.
        TooLarge: raised while reading, if the content exceeds MAX_RATIO times the file size.
    """
    if stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116
        raise IsADirectoryError(path)
    file = Path(path).open("rb")  # noqa: SIM115
    try:
        head = file.peek(8)[:8]
        source: Any = None
        if head.startswith(GZIP):
            source = gzip.GzipFile(fileobj=file)
        elif head.startswith((ZIP, _EMPTY_ZIP)):
            source = _member(file, path, error)
        if source is not None:
            return io.BufferedReader(_Bounded(source, file, path, error), 1 << 16)
        for mark, name in _OTHERS.items():
            if head.startswith(mark):
                raise error(f"is compressed by {name}", where=_first_line(path), remedy=_UNPACK)
        return file
    except BaseException:
        file.close()
        raise


def _member(
    file: io.BufferedReader, path: str | os.PathLike[str], error: type[LmkError]
) -> io.RawIOBase:
    """Opens the only CSV file of an archive."""
    try:
        archive = zipfile.ZipFile(file)
        names = [each for each in archive.infolist() if not each.is_dir()]
        names = [each for each in names if not _is_hidden(each.filename)]
        members = [each for each in names if each.filename.lower().endswith(TEXT_ENDINGS)]
        if len(names) == 1:
            members = names
        if len(members) != 1:
            shown = ", ".join(each.filename for each in (members or names)[:3])
            what = f"{len(members)} CSV files ({shown})" if members else f"no CSV file ({shown})"
            raise error(f"the archive holds {what}", where=_first_line(path), remedy=_UNPACK)
        if members[0].flag_bits & 1:
            raise error("the archive is encrypted", where=_first_line(path), remedy=_UNPACK)
        return archive.open(members[0])  # type: ignore[return-value]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as reason:
        raise _damaged(path, error, reason) from reason


def _is_hidden(name: str) -> bool:
    """True if macOS has added this file to an archive."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1].startswith(".")


def _first_line(path: str | os.PathLike[str]) -> str:
    return f"{os.fspath(path)}, line 1"


def _damaged(
    path: str | os.PathLike[str], error: type[LmkError], reason: BaseException
) -> LmkError:
    text = " ".join(str(reason).split()) or type(reason).__name__
    return error(
        f"the compressed file is cut or damaged: {text}",
        where=_first_line(path),
        remedy="fetch it again",
    )


class _Bounded(io.RawIOBase):
    """Raw stream over the output of a decompressor, up to a limit."""

    def __init__(
        self,
        source: io.RawIOBase,
        file: io.BufferedReader,
        path: str | os.PathLike[str],
        error: type[LmkError],
    ) -> None:
        self._source, self._file, self._path, self._error = source, file, path, error
        self._left = max(FREE_BYTES, MAX_RATIO * os.fstat(file.fileno()).st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._source.read(len(buffer))
        except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as reason:
            raise _damaged(self._path, self._error, reason) from reason
        data = data or b""
        buffer[: len(data)] = data
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge(f"the compressed file holds {MAX_RATIO} times its size and more")
        return len(data)

    def close(self) -> None:
        super().close()
        self._file.close()
