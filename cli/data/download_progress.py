"""Progress of a download on stderr: bars on a terminal, else a line for each finished file."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


class DownloadProgress(Progress):
    """Bars for the active files, and a line for each finished file; safe to call from threads."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._files: dict[str, TaskID] = {}

    def bytes_came(self, name: str, done: int, total: int | None) -> None:
        """Updates the bar of a file; only one thread may work on a file at a time."""
        if name not in self._files:
            self._files[name] = self.add_task(printable(name), total=total)
        self.update(self._files[name], completed=done, total=total)

    def item_ended(self, item: Item) -> None:
        """Removes the bar of a file and prints its result."""
        task = self._files.pop(item.name, None)
        if task is not None:
            self.remove_task(task)
        if item.status == "present":
            text = "already here"
        elif item.status == "downloaded":
            text = f"{item.size / 1e6:,.1f} MB" + f", {item.images} pictures" * bool(item.images)
        elif item.error is None:
            text = "not tried"
        else:
            text = str(item.error)
        self.console.print(printable(f"{item.name}: {text}"), markup=False, emoji=False)
