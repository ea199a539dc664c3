"""Reads the lines of a text file, with a limit of their length, in its detected encoding."""

from __future__ import annotations

import codecs
import io
import os
from typing import IO, Self

from lmk.embed.errors import LmkError, StorageError, UsageError
from lmk.embed.tables.compressed_file import TooLarge, open_bytes

MAX_LINE = 64 * 2**20
_BOMS = {  # longer ones first, as UTF-32's starts with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_PROBE = 4096  # number of bytes that detect UTF-16 without a byte order mark


def at(path: str | os.PathLike[str], line: int) -> str:
    """Returns the place of an error as `file, line N`."""
    return f"{os.fspath(path)}, line {line}"


class Lines:
    """Iterator over the lines of a text file; the first bytes determine the encoding.

    Attributes:
        encoding: "utf-8-sig" by default; invalid bytes become lone surrogates.
        binary: True if the first bytes contain a NUL.
        number: number of the last line, from 1.
    """

    def __init__(self, path: str | os.PathLike[str], error: type[LmkError]) -> None:
        self._path, self._error = path, error
        self.number = 0
        try:
            file = open_bytes(path, error)
            try:
                self.encoding = _encoding(file)
                self.binary = b"\0" in file.peek(_PROBE)
            except BaseException:
                file.close()
                raise
        except (OSError, ValueError) as reason:
            raise _reading_error(path, 1, error, reason) from reason
        errors = "surrogateescape" if self.encoding == "utf-8-sig" else "strict"
        self._file: IO[str] = io.TextIOWrapper(file, self.encoding, errors, newline="")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            line = self._file.readline(MAX_LINE)
        except (OSError, ValueError) as error:
            raise _reading_error(self._path, self.number + 1, self._error, error) from error
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == MAX_LINE:
            what = f"a line of more than {MAX_LINE:,} letters"
            remedy = "is it a CSV file?"
            raise self._error(what, where=at(self._path, self.number), remedy=remedy)
        return line


def _reading_error(
    path: str | os.PathLike[str], line: int, kind: type[LmkError], error: OSError | ValueError
) -> Exception:
    """Returns the error for a file that cannot be read, with the line."""
    wrong_call = kind if issubclass(kind, UsageError) else UsageError
    if isinstance(error, FileNotFoundError):
        return wrong_call("no such file", where=path, remedy="check the spelling")
    if isinstance(error, IsADirectoryError):
        return wrong_call("a folder, not a CSV file", where=path, remedy="name a file")
    if isinstance(error, UnicodeError):
        encoding = error.encoding if isinstance(error, UnicodeDecodeError) else "text"
        remedy = "the file is cut or damaged: save it as UTF-8"
        return kind(f"not {encoding.upper()}", where=at(path, line), remedy=remedy)
    if isinstance(error, TooLarge):
        return kind(str(error), where=path, remedy="unpack it first")
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).lower()
        return StorageError(f"cannot read: {reason}", where=path)
    return error


def _encoding(file: io.BufferedReader) -> str:
    head = file.peek(_PROBE)[:_PROBE]
    for mark, encoding in _BOMS.items():
        if head.startswith(mark):
            return encoding
    even, odd = head[0:_PROBE:2], head[1:_PROBE:2]
    if len(head) >= 8 and any(even) and not any(odd):
        return "utf-16-le"
    if len(head) >= 8 and any(odd) and not any(even):
        return "utf-16-be"
    return "utf-8-sig"
