"""Logs of a run: steps.csv, epochs.csv, and TensorBoard if it is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmk.embed.errors import storage_errors
from lmk.embed.files import write_whole

STEPS, EPOCHS = "steps.csv", "epochs.csv"
_TENSORBOARD = "tensorboard"


class Log:
    """Appends rows to a CSV file, and to TensorBoard under a prefix.

    Args:
        path: the CSV file.
        columns: the columns; the first one is the step or epoch.
        keep: rows whose first cell is below this value stay. Later rows, of a run that was killed
            after its last checkpoint, are removed.
        board: the folder for TensorBoard, or None.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], keep: int, board: Path | None = None
    ) -> None:
        self._path = path
        self._columns = tuple(columns)
        rows = [row for row in read_log(path) if int(row[columns[0]]) < keep]
        write_whole(path, csv_text([self._columns, *(row.values() for row in rows)]).encode())
        self._board = None if board is None else _board(board, keep)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows; each has all columns."""
        with storage_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(csv_text([row[name] for name in self._columns] for row in rows))
        if self._board is not None:
            for row in rows:
                place = int(row[self._columns[0]])
                for name in self._columns[1:]:
                    if row[name] != "":
                        self._board.add_scalar(f"{self._path.stem}/{name}", float(row[name]), place)

    def rows(self) -> list[dict[str, str]]:
        """Returns all rows."""
        return read_log(self._path)

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a log without an incomplete last row; none if there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Returns rows of cells as the text of a CSV file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _board(folder: Path, first: int) -> Any:
    if find_spec(_TENSORBOARD) is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=first)
