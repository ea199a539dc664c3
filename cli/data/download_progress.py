"""Progress of a download on stderr: bars on a terminal, else a line for each finished file."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lmk.embed.printable import printable

if TYPE_CHECKING:
    from lmk.embed.gldv2.dataset import Item


class DownloadProgress:
    """Bars for the active files, and a line for each finished file; safe to call from threads."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def bytes_came(self, name: str, done: int, total: int | None) -> None:
        """Updates the bar of a file; only one thread may work on a file at a time."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(printable(name), total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)

    def item_ended(self, item: Item) -> None:
        """Removes the bar of a file and prints its result."""
        task = self._tasks.pop(item.name, None)
        if task is not None:
            self._bars.remove_task(task)
        if item.status == "present":
            text = "already here"
        elif item.status == "downloaded":
            text = f"{item.size / 1e6:,.1f} MB" + f", {item.images} pictures" * bool(item.images)
        elif item.error is None:
            text = "not tried"
        else:
            text = str(item.error)
        self._console.print(printable(f"{item.name}: {text}"), markup=False, emoji=False)
