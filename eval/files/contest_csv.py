"""Atomic, row-by-row writing of the CSV files of contests; csv_file.py reads these files."""

from __future__ import annotations

import csv
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from lmk.embed.errors import SubmissionError, UsageError, storage_errors
from lmk.embed.files import sync_folder, try_lock


class AtomicRows:
    """Writer of a CSV file, row by row; the file appears when the `with` block ends without error.

    Rows are written to a locked hidden file beside the target. The end of the block fsyncs and
    renames this file, and then removes hidden files of interrupted runs for the same target.
    Memory holds only the rows of an earlier run (`done`).

    Args:
        path: the file to write; the complete file replaces an existing one.
        header: the column names.
        resume: an identifier of the work (for example a hash of index and queries). With it, rows
            written before a crash are preserved, and the next run with the same identifier has them
            in `done`. Without an identifier, a failed run leaves no file.

    Attributes:
        done: rows that an earlier run wrote; empty without `resume`.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
        UsageError: the folder does not exist, the path is a folder, or another process writes the
            same file with the same `resume`.
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
            if not try_lock(file):
                file.close()
                raise UsageError(
                    "another process is writing this file", where=self.path, remedy="wait for it"
                )
            if _still_at(part, file):
                break
            file.close()  # another process renamed or removed it before the lock
        if self._resume is not None:
            self.done = _whole_rows(part, header)
            file.seek(0, os.SEEK_END)
        return file, part

    def append(self, cells: Sequence[str]) -> None:
        """Writes one row.

        Raises:
            SubmissionError: a cell contains a line break or a NUL, or is not UTF-8.
        """
        for cell in cells:
            if "\n" in cell or "\r" in cell or "\0" in cell or _surrogate(cell):
                what = f"cannot be written to a CSV file: {cell!r}"
                remedy = "rename the picture or landmark (UTF-8, no line breaks)"
                raise SubmissionError(what, where=self.path, remedy=remedy)
        with storage_errors(self.path):
            self._writer.writerow(cells)
            if self._resume is not None:
                self._file.flush()  # a killed run loses at most the current row

    def replace_all(self, rows: Iterable[Sequence[str]]) -> None:
        """Replaces all rows written so far; no row may be written afterwards.

        These rows stay until the file is complete, so that an interrupted run can continue.

        Raises:
            SubmissionError, StorageError: as `append`.
        """
        with AtomicRows(self.path, self._header) as whole:
            for row in rows:
                whole.append(row)
        self._replaced = True

    def discard(self) -> None:
        """Disables `resume`, so that a failed run leaves no file."""
        self._resume = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._abandon()
            return
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

    def _abandon(self) -> None:
        with suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        if self._resume is None:
            self._part.unlink(missing_ok=True)

    def _remove_left_over(self) -> None:
        """Removes hidden files of interrupted runs for this target; locked files stay."""
        of_target = re.compile(re.escape(f".{self.path.name}.") + r"[^.]+\.part")
        with suppress(OSError):  # the file is complete; leftovers may stay
            for part in self.path.parent.iterdir():
                if of_target.fullmatch(part.name):
                    with part.open("rb") as file:
                        if try_lock(file):
                            part.unlink()


def _still_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _surrogate(cell: str) -> bool:
    return not cell.isascii() and any("\ud800" <= letter <= "\udfff" for letter in cell)


def _whole_rows(part: Path, header: list[str]) -> list[list[str]]:
    """Returns the complete rows of an unfinished file, and truncates it after the last one."""
    data = part.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        rows = list(csv.reader(whole.decode("utf-8").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error):
        rows = []
    usable = bool(rows) and rows[0] == header and all(len(row) == len(header) for row in rows)
    os.truncate(part, len(whole) if usable else 0)
    return rows[1:] if usable else []
