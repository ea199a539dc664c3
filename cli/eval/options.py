"""Options that the commands of `lmk eval` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lmk.eval.files.truth import RetrievalTruth, Truth


@dataclass(frozen=True)
class Draws:
    """The number and the random seed of the bootstrap draws for the intervals of a command."""

    resamples: int
    seed: int

    def bounds_of_mean(self, values: NDArray[np.float64]) -> list[float] | None:
        """Returns the bounds of the mean of float64 values [q] for JSON; None without draws."""
        from lmk.eval.scores.bootstrap import mean_interval

        if not self.resamples:
            return None
        interval = mean_interval(values, resamples=self.resamples, seed=self.seed)
        return [interval.low, interval.high]

    def note(self) -> str:
        """Returns the line that explains the brackets of a table."""
        if not self.resamples:
            return "no intervals (--resamples 0)"
        draws = f"{self.resamples:,} bootstrap draws of the queries, seed {self.seed}"
        return f"[ ]: 95 % interval of {draws}"


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
    """Adds the options --resamples and --seed to a command, which receives them as `draws`."""

    @wraps(command)
    def with_draws(*, resamples: int, seed: int, **values: Any) -> Any:
        return command(draws=Draws(resamples, seed), **values)

    return _resamples(_seed(with_draws))


def parts(truth: Truth | RetrievalTruth) -> list[tuple[str, str | None]]:
    """Returns the scored parts as (name, usage): all, then Public and Private if present."""
    usages = [usage for usage in ("Public", "Private") if usage in truth.usage]
    return [("all", None), *((usage, usage) for usage in usages)]
