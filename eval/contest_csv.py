"""The contest's CSV files, row by row: line numbers in every error, and nothing half-written.

UTF-8 with or without a byte order mark, any line ending, a header, blank rows skipped: what the
contests' own reader (DELF, dataset_file_io.py) and common spreadsheets produce.
"""

from __future__ import annotations

import csv
import fcntl
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from lmk.embed.errors import StorageError, SubmissionError, UsageError, storage_errors
from lmk.embed.files import sync_folder

# The longest cell in public use is train_clean.csv's largest landmark: 6,272 ids, 107 kB.
MAX_CELL = 16 * 2**20


class Row(NamedTuple):
    """One row of a file: the line it starts at (from 1) and its cells."""

    line: int
    cells: list[str]


def at(path: str | os.PathLike[str], line: int) -> str:
    """`file, line N`: where an error is."""
    return f"{os.fspath(path)}, line {line}"


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of a CSV file, the header first, blank rows left out.

    Bytes that are no UTF-8 come as lone surrogates, so that the row at fault can be named:
    `parse_cells` refuses them.

    Raises:
        UsageError: no such file, or a folder.
        SubmissionError: a row that is no CSV (an open quote, a NUL byte).
        StorageError: the file cannot be read.
    """
    file = _open(path)
    csv.field_size_limit(max(MAX_CELL, csv.field_size_limit()))
    with file:
        reader = csv.reader(file, strict=True)
        line = 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise SubmissionError(
                    f"not a CSV row: {error}",
                    where=at(path, line),
                    remedy="look for an open quote or a binary file",
                ) from error
            if cells is None:
                return
            if any("\0" in cell for cell in cells):
                raise SubmissionError("a NUL byte", where=at(path, line), remedy="not a text file")
            if cells:
                yield Row(line, cells)
            line = reader.line_num + 1


def _open(path: str | os.PathLike[str]) -> IO[str]:
    try:
        return Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except FileNotFoundError as error:
        raise UsageError("no such file", where=path) from error
    except IsADirectoryError as error:
        raise UsageError("a folder, not a CSV file", where=path) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"cannot read: {reason}", where=path) from error


def parse_cells(path: str | os.PathLike[str], row: Row, width: int) -> list[str]:
    """The cells of a row, checked: as many as the header has, and UTF-8.

    Raises:
        SubmissionError: with the line.
    """
    if not all(map(str.isascii, row.cells)):
        for cell in row.cells:
            if any("\ud800" <= letter <= "\udfff" for letter in cell):
                raise SubmissionError(
                    "not UTF-8", where=at(path, row.line), remedy="save the file as UTF-8"
                )
    if len(row.cells) != width:
        raise SubmissionError(
            f"{len(row.cells)} cells where the header has {width}",
            where=at(path, row.line),
            remedy='put a cell with a comma in "quotes"' if len(row.cells) > width else None,
        )
    return row.cells


def read_header(path: str | os.PathLike[str], rows: Iterator[Row]) -> Row:
    """The first of `rows`: the column names.

    Raises:
        SubmissionError: an empty file, or a name that stands twice.
    """
    row = next(rows, None)
    if row is None:
        raise SubmissionError("an empty file", where=at(path, 1), remedy="it needs a header")
    names = [name.strip() for name in parse_cells(path, row, len(row.cells))]
    if len(set(names)) != len(names):
        raise SubmissionError("a column name stands twice", where=at(path, row.line))
    return Row(row.line, names)


def parse_id(path: str | os.PathLike[str], line: int, cell: str) -> str:
    """A query id as it stands; an empty one is an error."""
    if not cell.strip():
        raise SubmissionError("the id is empty", where=at(path, line))
    return cell


class AtomicRows:
    """Writes a CSV row by row; the file appears, whole, when the `with` block ends well.

    Rows go to a hidden file beside the target, which is locked, and at the end fsynced and
    renamed; those that stopped runs left for the same target are then removed. No row written
    here is kept in memory; rows of an earlier run are (`done`).

    Args:
        path: the file to write; an old one stays until the new one is whole.
        header: the column names.
        resume: a word that names the work (say, a hash of index and queries). With it, rows
            written before a crash are kept and found again in `done` by the next run with the
            same word; without it a failed run leaves nothing behind.

    Attributes:
        done: rows an earlier run had written already; empty without `resume`.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
        UsageError: another process writes the same file with the same `resume`.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: Sequence[str], *, resume: str | None = None
    ) -> None:
        self.path = Path(path)
        self.done: list[list[str]] = []
        self._resume = resume
        self._header = list(header)
        self._replaced = False
        if not self.path.parent.is_dir():
            raise UsageError("no such folder", where=self.path.parent)
        if self.path.is_dir():
            raise UsageError("a folder, not a file to write", where=self.path)
        with storage_errors(self.path):
            self._file, self._part = self._begin(self._header)
        self._writer = csv.writer(self._file, lineterminator="\n")
        if not self.done and self._file.tell() == 0:
            self.append(header)

    def _begin(self, header: list[str]) -> tuple[IO[str], Path]:
        while True:
            word = secrets.token_hex(8) if self._resume is None else self._resume
            part = self.path.parent / f".{self.path.name}.{word}.part"
            file = part.open("a+", encoding="utf-8", newline="")
            if not _lock(file):
                file.close()
                raise UsageError(
                    "another process is writing this file", where=self.path, remedy="wait for it"
                )
            if _still_at(part, file):
                break
            file.close()  # renamed or removed by another process before it was locked here
        if self._resume is not None:
            self.done = _whole_rows(part, header)
            file.seek(0, os.SEEK_END)
        return file, part

    def append(self, cells: Sequence[str]) -> None:
        """Writes one row.

        Raises:
            SubmissionError: a cell with a line break, or not UTF-8.
        """
        for cell in cells:
            if "\n" in cell or "\r" in cell or "\0" in cell or _surrogate(cell):
                raise SubmissionError(
                    f"cannot be written to a CSV file: {cell!r}",
                    where=self.path,
                    remedy="rename the picture or landmark (UTF-8, no line breaks)",
                )
        with storage_errors(self.path):
            self._writer.writerow(cells)
            if self._resume is not None:
                self._file.flush()  # a killed run loses at most the row in hand

    def replace_all(self, rows: Iterable[Sequence[str]]) -> None:
        """Makes the file of other rows than those written so far; nothing may be written after.

        What was written stays until the file is whole: a run that is stopped here goes on there.

        Raises:
            SubmissionError, StorageError: as `append`.
        """
        with AtomicRows(self.path, self._header) as whole:
            for row in rows:
                whole.append(row)
        self._replaced = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                with storage_errors(self.path):
                    if self._replaced:
                        self._part.unlink(missing_ok=True)
                    else:
                        self._file.flush()
                        os.fsync(self._file.fileno())
                        self._part.replace(self.path)
                        sync_folder(self.path.parent)
            except BaseException:
                self._abandon()
                raise
            self._file.close()
            self._remove_left_over()
        else:
            self._abandon()

    def _abandon(self) -> None:
        with suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        if self._resume is None:
            self._part.unlink(missing_ok=True)

    def _remove_left_over(self) -> None:
        """Removes what stopped runs of other work left for this target, unless one still writes."""
        of_target = re.compile(re.escape(f".{self.path.name}.") + r"[^.]+\.part")
        with suppress(OSError):  # the file is whole: what cannot be tidied up stays
            for part in self.path.parent.iterdir():
                if of_target.fullmatch(part.name):
                    with part.open("rb") as file:
                        if _lock(file):
                            part.unlink()


def _lock(file: IO[Any]) -> bool:
    """Locks a file until it is closed; False where another holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _still_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _surrogate(cell: str) -> bool:
    return not cell.isascii() and any("\ud800" <= letter <= "\udfff" for letter in cell)


def _whole_rows(part: Path, header: list[str]) -> list[list[str]]:
    """The whole rows of an unfinished file, after cutting it behind the last of them."""
    data = part.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        rows = list(csv.reader(whole.decode("utf-8").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error):
        rows = []
    sound = bool(rows) and rows[0] == header and all(len(row) == len(header) for row in rows)
    os.truncate(part, len(whole) if sound else 0)
    return rows[1:] if sound else []
