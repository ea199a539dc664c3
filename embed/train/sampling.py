"""Which pictures an epoch shows, and in which order: a function of seed and epoch alone.

Nothing here remembers anything, so a run that goes on in the middle of an epoch shows exactly
what is left of it, and every process knows the order of all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def epoch_order(repeats: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """The pictures of an epoch, in order: int64 [round(sum of repeats)].

    Each picture comes floor(r) or ceil(r) times, r times on average over the epochs
    (systematic sampling along a random order), so with r = 1 for all it is a permutation.

    Args:
        repeats: float64 [n], 0 or more and not all 0: how often each picture is to come.
        seed, epoch: whole numbers, 0 or more.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(repeats))
    ends = np.cumsum(repeats[order])
    total = max(round(float(ends[-1])), 1)
    ends *= total / ends[-1]
    marks = np.floor(ends + rng.random()).astype(np.int64)
    times = np.diff(marks, prepend=0)
    times[-1] += total - times.sum()  # the last end is `total` but for rounding
    drawn = np.repeat(order, times)
    rng.shuffle(drawn)
    return drawn.astype(np.int64)


def passes_of(order: NDArray[np.int64], batch: int) -> NDArray[np.int64]:
    """An epoch cut into passes: int64 [passes, batch].

    The last pass is filled up from the epoch's beginning, so that all have the same size and no
    picture is left out.
    """
    passes = -(-len(order) // batch)
    return np.resize(order, (passes, batch))


def share_of(passes: NDArray[np.int64], rank: int, world: int) -> NDArray[np.int64]:
    """The part of each pass that one of `world` processes computes: [passes, batch / world]."""
    each = passes.shape[1] // world
    return passes[:, rank * each : (rank + 1) * each]
