"""Options and arguments that the commands of `lmk eval` have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lmk.eval.files.truth import RetrievalTruth, Truth

FILE = click.Path(path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def bootstrap(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options --resamples and --seed."""
    for option in (
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Of the draws.",
        ),
        click.option(
            "--resamples",
            type=click.IntRange(min=0),
            default=1000,
            show_default=True,
            help="Bootstrap draws of the queries for the intervals; 0 for none.",
        ),
    ):
        command = option(command)
    return command


def parts(truth: Truth | RetrievalTruth) -> list[tuple[str, str | None]]:
    """What is scored apart: (name, usage) of everything, then of Public and Private if there."""
    usages = [usage for usage in ("Public", "Private") if usage in truth.usage]
    return [("all", None), *((usage, usage) for usage in usages)]
