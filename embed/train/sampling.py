"""Selection and order of the pictures of an epoch, as a function of the seed and the epoch.

The functions have no state. A resumed run therefore shows exactly the rest of an epoch, and every
process knows the order of all pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import ManifestError
from lmk.embed.train.config import Groups


def epoch_order(repeats: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Returns the pictures of an epoch, in order: int64 [round(sum of repeats)].

    Each picture occurs floor(r) or ceil(r) times, and r times on average over the epochs
    (systematic sampling along a random order). If r = 1 for all, the result is a permutation.

    Args:
        repeats: float64 [n], the average number of occurrences r; 0 or more and not all 0.
        seed, epoch: integers, 0 or more.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(repeats))
    ends = np.cumsum(repeats[order])
    total = max(round(float(ends[-1])), 1)
    ends *= total / ends[-1]
    marks = np.floor(ends + rng.random()).astype(np.int64)
    times = np.diff(marks, prepend=0)
    times[-1] += total - times.sum()  # corrects the rounding of the last end
    drawn = np.repeat(order, times)
    rng.shuffle(drawn)
    return drawn.astype(np.int64)


def class_draws(sizes: NDArray[np.float64], sampling: str) -> NDArray[np.float64]:
    """Returns the relative frequencies at which classes are drawn: float64 [c].

    Args:
        sizes: float64 [c], the number of pictures of each class.
        sampling: "natural": proportional to the size; "sqrt": to its square root; "balanced":
            equal.
    """
    power = {"natural": 1.0, "sqrt": 0.5, "balanced": 0.0}[sampling]
    return np.where(sizes > 0, np.maximum(sizes, 1) ** power, 0.0)


def grouped_micro_batches(
    codes: NDArray[np.int64], groups: Groups, sampling: str, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Returns the micro-batches of an epoch, each with several pictures of several classes.

    The result is int64 [micro_batches, batch]. First come the classes' pictures, class by class,
    then those without a label, view by view.

    Args:
        codes: int64 [n], the class of each picture; -1 for none.
        groups: the composition of a micro-batch.
        sampling: see class_draws.
        seed, epoch: whole numbers, 0 or more.

    Raises:
        ManifestError: there are fewer classes, or pictures without one, than a micro-batch takes.
    """
    order = np.argsort(codes, kind="stable")
    names, starts = np.unique(codes[order], return_index=True)
    parts = np.split(order, starts[1:])
    members = [part for name, part in zip(names, parts, strict=True) if name >= 0]
    without = np.flatnonzero(codes < 0)
    for count, needed, what in (
        (len(members), groups.classes, "landmarks"),
        (len(without), groups.unlabelled, "pictures without a landmark"),
    ):
        if count < needed:
            raise ManifestError(
                f"there are {count} {what}, but a batch needs {needed}",
                where="--data",
                remedy="add some, or change groups and batch",
            )
    draws = class_draws(np.array([len(part) for part in members], np.float64), sampling)
    rng = np.random.default_rng([seed, epoch])
    micro_batches = np.empty((groups.micro_batches, groups.batch), np.int64)
    for row in micro_batches:
        classes = rng.choice(len(members), groups.classes, replace=False, p=draws / draws.sum())
        drawn = [
            rng.choice(members[c], groups.pictures, replace=len(members[c]) < groups.pictures)
            for c in classes
        ]
        others = rng.choice(without, groups.unlabelled, replace=False)
        row[:] = np.concatenate([*drawn, np.repeat(others, groups.views)])
    return micro_batches


def micro_batches_of(order: NDArray[np.int64], batch: int) -> NDArray[np.int64]:
    """Returns an epoch cut into micro-batches: int64 [micro_batches, batch].

    The last one is filled up from the epoch's beginning, so that all have the same size and no
    picture is left out.
    """
    count = -(-len(order) // batch)
    return np.resize(order, (count, batch))


def rank_slice(micro_batches: NDArray[np.int64], rank: int, world: int) -> NDArray[np.int64]:
    """Returns the slice of each micro-batch for a rank: [micro_batches, batch / world]."""
    each = micro_batches.shape[1] // world
    return micro_batches[:, rank * each : (rank + 1) * each]
