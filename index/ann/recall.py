"""Tuning: how hard an approximate index must search for a recall, measured on a gallery's rows.

Recall@k is the share of the k nearest rows that are found. Pictures of the gallery are the queries,
each without itself; the nearest rows are those of exact search. One half of the sample chooses,
the other half measures what was chosen.

Most queries have their k nearest among pictures of one landmark, close together and found with
little effort; the others need many times more. So there are two efforts: queries whose k-th
neighbour found is not near enough are searched again with the greater one. The score that is near
enough is chosen with the efforts, for the least expected work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.exact.flat import FlatSearcher
from lmk.index.vectors.view import View

SAMPLE = 384  # queries in each half
_FACTORS = {10: (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64), 100: (1, 2, 3, 4, 6, 8, 12, 16)}
_MARGINS = tuple(i / 10 + 0.05 for i in range(10))  # of what the goal leaves, aimed at beyond it
_TIES = 32
_MISSING = 2**62  # a place beyond all
_NEVER = -2.0  # below every score

# The rows found for vectors, best first, -1 where there are fewer: (vectors, depth, effort).
Propose = Callable[[NDArray[np.float32], int, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Tuned:
    """How to search for up to k neighbours.

    Attributes:
        k: the neighbours it was tuned for.
        effort: of the first search; see faiss_recipes.efforts.
        more: of the second, for queries whose k-th score is below `sure`; `effort` if none.
        sure: a score; below all others where there is no second search.
        factor: candidates scored again, for each neighbour wanted.
        again: share of the sample that was searched twice.
        recall: recall@k on the half of the sample that chose nothing.
    """

    k: int
    effort: int
    more: int
    sure: float
    factor: int
    again: float
    recall: float

    def __post_init__(self) -> None:
        counts = (self.k, self.effort, self.more, self.factor)
        if not all(isinstance(count, int | np.integer) and 0 < count < 2**31 for count in counts):
            raise ValueError(f"k, efforts and factor must be counts, got {self}")
        if not (0 <= self.again <= 1 and 0 <= self.recall <= 1 and self.sure < math.inf):
            raise ValueError(f"shares and a score are wanted, got {self}")


def tune(
    view: View, propose: Propose, efforts: Sequence[int], goal: float, *, scored: bool = False
) -> tuple[Tuned, ...]:
    """Returns the efforts and candidates that reach a recall with the least work.

    Where none do, the greatest of each, with the recall they have.

    Args:
        view: the rows that `propose` finds, at least 2.
        propose: returns row numbers, int64 [q, depth].
        efforts: rising.
        goal: recall wanted, from 0 to 1.
        scored: whether `propose` gives the nearest of all it looks at, so that no more candidates
            than neighbours are needed, and a second search goes on from the first.

    Returns:
        One for k = 10, and one for k = 100 where there are 400 rows.
    """
    sample = _Sample(view)
    return tuple(
        _tuned(_Trials(sample, propose, k, efforts, goal, scored), goal)
        for k in _FACTORS
        if k == 10 or 4 * k <= sample.available
    )


class _Sample:
    """Queries from the gallery and their true neighbours.

    Attributes:
        available: rows that a query can find.
        rows: int64 [q], the query's own.
        vectors: float32 [q, dim].
        true: int64 [q, n], the nearest other rows, best first.
        scores: float32 [q, n], theirs.
    """

    def __init__(self, view: View) -> None:
        rows = np.flatnonzero(view.mask)
        self.available = len(rows) - 1
        count = min(2 * SAMPLE, len(rows))
        self.rows = np.random.default_rng(0).choice(rows, count, replace=False)
        self.vectors = view.stored.read(self.rows)
        names = tuple(map(str, range(count)))
        queries = Embeddings(self.vectors, names, view.fingerprint)
        deepest = min(self.available, max(_FACTORS) + _TIES)
        exact = FlatSearcher(view, hold=False).search(queries, deepest + 1)
        own = exact.rows == self.rows[:, None]
        own[~own.any(axis=1), -1] = True  # not among so many equal ones
        self.true = exact.rows[~own].reshape(count, deepest)
        self.scores = exact.scores[~own].reshape(count, deepest)


class _Trials:
    """What each effort finds of the k nearest, for one k.

    Attributes:
        k: the neighbours wanted.
        scored: see tune.
        factors: candidates for each neighbour, to choose from, rising.
        tried: the efforts tried, rising, up to the first that finds enough with all candidates.
        places: for each of them int64 [q, n], the place of each true neighbour among the
            candidates; _MISSING if it is none of them.
    """

    def __init__(
        self,
        sample: _Sample,
        propose: Propose,
        k: int,
        efforts: Sequence[int],
        goal: float,
        scored: bool,
    ) -> None:
        self.k = k
        self.scored = scored
        self.factors = (1,) if scored else _FACTORS[k]
        self._wanted = min(k, sample.available)
        self._scores = sample.scores
        self._right = sample.scores >= sample.scores[:, self._wanted - 1 : self._wanted]
        depth = min(k * self.factors[-1], sample.available) + 1
        self.tried: list[int] = []
        self.places: list[NDArray[np.int64]] = []
        for effort in efforts:
            found = propose(sample.vectors, depth, effort)
            self.tried.append(effort)
            self.places.append(_places(sample, found))
            if self.hits(len(self.tried) - 1, self.factors[-1]).mean() >= goal + 0.95 * (1 - goal):
                break

    def hits(self, trial: int, factor: int) -> NDArray[np.float64]:
        """Returns the recall of each query with so many candidates, [q]."""
        found = self.places[trial] < self.k * factor
        right = np.minimum(np.count_nonzero(found & self._right, axis=1), self._wanted)
        share: NDArray[np.float64] = right / self._wanted
        return share

    def last_scores(self, trial: int, factor: int) -> NDArray[np.float32]:
        """Returns the k-th score found for each query, or a bound above it, [q].

        Where fewer than k of the true neighbours known are found, the k-th is below all of those.
        """
        found = self.places[trial] < self.k * factor
        last = found & (np.cumsum(found, axis=1) == self._wanted)
        place = np.where(last.any(axis=1), last.argmax(axis=1), last.shape[1] - 1)
        scores: NDArray[np.float32] = self._scores[np.arange(len(place)), place]
        return scores


def _places(sample: _Sample, found: NDArray[np.int64]) -> NDArray[np.int64]:
    places = np.empty(sample.true.shape, np.int64)
    for i, row in enumerate(sample.rows):
        others = found[i][(found[i] != row) & (found[i] >= 0)]
        order = np.argsort(others)
        at = np.minimum(np.searchsorted(others, sample.true[i], sorter=order), len(others) - 1)
        if len(others):
            place = order[at]
            places[i] = np.where(others[place] == sample.true[i], place, _MISSING)
        else:
            places[i] = _MISSING
    return places


def _tuned(trials: _Trials, goal: float) -> Tuned:
    """Chooses with every second query, and measures with the others."""
    choosing, measuring = slice(0, None, 2), slice(1, None, 2)
    best = None
    for margin in _MARGINS:
        want = goal + margin * (1 - goal)
        choices = list(_choices(trials, choosing, want))
        if not choices:
            break
        best = _measured(trials, min(choices), measuring)
        if best.recall >= goal:
            return best
    last, factor = len(trials.tried) - 1, trials.factors[-1]
    most = _measured(trials, (0.0, last, last, _NEVER, factor), measuring)
    return most if best is None or most.recall > best.recall else best


_Choice = tuple[float, int, int, float, int]  # work, first and second trial, sure, factor


def _choices(trials: _Trials, half: slice, want: float) -> Iterator[_Choice]:
    """Yields for every two efforts and number of candidates the least work that gives a recall."""
    for factor in trials.factors:
        hits = [trials.hits(trial, factor)[half] for trial in range(len(trials.tried))]
        candidates = trials.k * factor  # each is about the work of a cell or a node
        for first, effort in enumerate(trials.tried):
            if hits[first].mean() >= want:
                yield effort + candidates, first, first, _NEVER, factor
                break
            scores = trials.last_scores(first, factor)[half]
            order = np.argsort(scores, kind="stable")
            for second in range(first + 1, len(trials.tried)):
                gained = np.cumsum((hits[second] - hits[first])[order])
                enough = np.flatnonzero(hits[first].sum() + gained >= want * len(order))
                if enough.size:
                    again = float(enough[0] + 1) / len(order)
                    sure = np.nextafter(scores[order[enough[0]]], np.float32(2))
                    work = _work(trials, effort, trials.tried[second], again, candidates)
                    yield work, first, second, float(sure), factor


def _work(trials: _Trials, effort: int, more: int, again: float, candidates: int) -> float:
    """The work expected of a query.

    Where the second search goes on from the first, many pairs of efforts take about as much; of
    those the better one is that in which six of ten queries, asked alone, wait for less.
    """
    if trials.scored:
        six_of_ten = effort if again <= 0.4 else more
        return effort + again * (more - effort) + six_of_ten
    return effort + candidates + again * (more + candidates)


def _measured(trials: _Trials, choice: _Choice, half: slice) -> Tuned:
    _, first, second, sure, factor = choice
    unsure = (trials.last_scores(first, factor) < sure)[half]
    hits = np.where(unsure, trials.hits(second, factor)[half], trials.hits(first, factor)[half])
    effort, more = trials.tried[first], trials.tried[second]
    recall = float(hits.mean())
    return Tuned(trials.k, effort, more, sure, factor, float(unsure.mean()), recall)
