"""Progress bars on stderr, which appear on a terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lmk.embed.printable import printable
from lmk.embed.progress import Count

if TYPE_CHECKING:
    from lmk.embed.gldv2.dataset import Item


class StageProgress(Progress):
    """Progress bars, one for each stage of the work; callable with (stage, done, total)."""

    def __init__(self) -> None:
        description = TextColumn("{task.description}", markup=False)
        columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self._stages: dict[str, TaskID] = {}

    def stage(self, name: str, total: int) -> Count:
        """Returns a function that sets the bar of a stage to a number of finished items."""
        return lambda done: self(name, done, total)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Sets the bar of a stage to `done` of `total`, and adds the bar if it is new."""
        if stage not in self._stages:
            self._stages[stage] = self.add_task(printable(stage), total=total)
        self.update(self._stages[stage], completed=done, total=total)


class DownloadProgress(Progress):
    """Progress bars of active downloads, and a line for each finished file; thread-safe."""

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
        """Sets the bar of a file; only one thread may report the same file at a time."""
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
