"""Tuning: how hard an approximate index must search for a recall, measured on a gallery's rows.

Recall@k is the share of the k nearest rows that are found. Pictures of the gallery are the queries,
each without itself; the nearest rows are those of exact search. One half of the sample chooses,
the other half measures what was chosen.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.faiss_search import FlatSearcher
from lmk.index.view import View

SAMPLE = 256  # queries in each half
_FACTORS = {10: (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64), 100: (1, 2, 3, 4, 6, 8, 12, 16)}
_MARGIN = 0.2  # of what the goal leaves: aimed at beyond it, so that the other half reaches it too
_TIES = 32

# The positions found for vectors, best first, -1 where there are fewer: (vectors, depth, effort).
Propose = Callable[[NDArray[np.float32], int, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Tuned:
    """How to search for up to k neighbours.

    Attributes:
        k: the neighbours it was tuned for.
        effort: see faiss_recipes.efforts.
        factor: candidates scored again, for each neighbour wanted.
        recall: recall@k that this had on the half of the sample that did not choose it.
    """

    k: int
    effort: int
    factor: int
    recall: float


def tune(view: View, propose: Propose, efforts: Sequence[int], goal: float) -> tuple[Tuned, ...]:
    """Returns the least effort, and with it the fewest candidates, that reach a recall.

    Where none does, the greatest of both, with the recall they have.

    Args:
        view: the rows that `propose` finds.
        propose: returns row numbers, int64 [q, depth].
        efforts: rising.
        goal: recall wanted, from 0 to 1.

    Returns:
        One for k = 10, and one for k = 100 where there are 400 rows.
    """
    trial = _Trial(view, propose)
    return tuple(
        trial.tuned(k, efforts, goal) for k in _FACTORS if k == 10 or 4 * k <= trial.available
    )


class _Trial:
    """The sample, its true neighbours, and what was proposed at each effort."""

    def __init__(self, view: View, propose: Propose) -> None:
        rows = np.flatnonzero(view.mask)
        self.available = len(rows) - 1
        count = min(2 * SAMPLE, len(rows))
        self._rows = np.random.default_rng(0).choice(rows, count, replace=False)
        self._vectors = view.stored.read(self._rows)
        names = tuple(map(str, range(count)))
        sample = Embeddings(self._vectors, names, view.fingerprint)
        true = FlatSearcher(view, hold=False).search(sample, max(_FACTORS) + _TIES + 1)
        self._true = [
            (found[found != row], scores[found != row])
            for row, found, scores in zip(self._rows, true.rows, true.scores, strict=True)
        ]
        self._propose = propose
        self._proposed: dict[tuple[int, int], NDArray[np.int64]] = {}

    def tuned(self, k: int, efforts: Sequence[int], goal: float) -> Tuned:
        """Returns the setting for k."""
        choosing, measuring = slice(0, None, 2), slice(1, None, 2)
        want = goal + _MARGIN * (1 - goal)
        deepest = _FACTORS[k][-1]

        def setting(place: int) -> Tuned:
            effort = efforts[min(place, len(efforts) - 1)]
            enough = (f for f in _FACTORS[k] if self._recall(k, effort, f, choosing) >= want)
            factor = next(enough, deepest)
            return Tuned(k, effort, factor, self._recall(k, effort, factor, measuring))

        place = bisect_left(
            range(len(efforts)),
            True,
            key=lambda place: self._recall(k, efforts[place], deepest, choosing) >= want,
        )
        best = setting(place)
        while place + 1 < len(efforts):
            place += 1
            more = setting(place)
            if best.recall >= goal and more.factor * 2 > best.factor:
                break
            best = more
        return best

    def _recall(self, k: int, effort: int, factor: int, half: slice) -> float:
        candidates = self._candidates(k, effort)[half]
        hits, wanted = 0, 0
        for row, found, (true, scores) in zip(
            self._rows[half], candidates, self._true[half], strict=True
        ):
            least = scores[: min(k, self.available)][-1]
            right = true[scores >= least]  # ties at the k-th place are as good
            others = found[found != row][: k * factor]
            hits += min(k, int(np.isin(right, others).sum()))
            wanted += min(k, self.available)
        return hits / wanted

    def _candidates(self, k: int, effort: int) -> NDArray[np.int64]:
        key = (k, effort)
        if key not in self._proposed:
            depth = min(k * _FACTORS[k][-1] + 1, self.available + 1)
            self._proposed[key] = self._propose(self._vectors, depth, effort)
        return self._proposed[key]
