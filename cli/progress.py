"""Progress bars on stderr, shown on a terminal only."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from lmk.embed.printable import printable
from lmk.embed.progress import Count


class StageProgress(Progress):
    """Progress bars, one for each stage of the work; called with (stage, done, total)."""

    def __init__(self) -> None:
        description = TextColumn("{task.description}", markup=False)
        columns = (description, BarColumn(), MofNCompleteColumn(), TimeLeft())
        console = Console(stderr=True)
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self._stages: dict[str, TaskID] = {}

    def stage(self, name: str, total: int) -> Count:
        """Returns a function that updates the bar of a stage, called with the number done."""
        return lambda done: self(name, done, total)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Updates the bar of a stage."""
        if stage not in self._stages:
            self._stages[stage] = self.add_task(printable(stage), total=total)
        self.update(self._stages[stage], completed=done, total=total)
