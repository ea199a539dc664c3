"""Options that the commands of `lmk eval` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lmk.eval.files.truth import RetrievalTruth, Truth


_seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Random seed for the draws."
)
_resamples = click.option(
    "--resamples",
    type=click.IntRange(min=0),
    default=1000,
    help="Number of bootstrap draws for the intervals; 0 for no intervals.",
)


def bootstrap(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options --resamples and --seed to a command."""
    return _resamples(_seed(command))


def parts(truth: Truth | RetrievalTruth) -> list[tuple[str, str | None]]:
    """Returns the parts to score as (name, usage): all, then Public and Private if present."""
    usages = [usage for usage in ("Public", "Private") if usage in truth.usage]
    return [("all", None), *((usage, usage) for usage in usages)]
