"""Tuning: the effort that an approximate index needs for a recall, measured on a gallery's rows.

Recall@k is the share of the k nearest rows that a search returns. The queries are pictures of the
gallery, each without itself, and exact search gives their nearest rows. One half of the sample
chooses the efforts, and the other half measures their recall.

Most queries have their k nearest rows among pictures of one landmark, close together, and need
little effort; the others need many times more. Therefore there are two efforts: a query is searched
a second time, with the greater effort, when its k-th score is below a limit. The limit is chosen
with the efforts, for the least expected work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.index.exact.flat import FlatSearcher
from lmk.index.vectors.view import View

SAMPLE = 384  # queries in each half
_FACTORS = {10: (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64), 100: (1, 2, 3, 4, 6, 8, 12, 16)}
_MARGINS = tuple(i / 10 + 0.05 for i in range(10))  # of what the goal leaves, aimed at beyond it
_TIES = 32
_MISSING = 2**62  # a place beyond all
_NEVER = -2.0  # below every score

# Names of fields of Tuned in the files of an index, which older versions wrote.
_SAVED_NAMES = {"second_effort": "more", "rescore_below": "sure", "second_share": "again"}

# The nearest rows of vectors, best first, -1 where there are fewer: (vectors, depth, effort).
Propose = Callable[[NDArray[np.float32], int, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Tuned:
    """Settings of a search for up to k neighbours, with its measured recall.

    Attributes:
        k: number of neighbours that the settings are tuned for.
        effort: effort of the first search; see faiss_factory.efforts.
        second_effort: effort of a second search; `effort` if there is none.
        rescore_below: queries whose k-th score is below this score are searched a second time.
            Below every score where there is no second search.
        factor: number of candidates that are scored, for each neighbour wanted.
        second_share: share of the sample that was searched twice.
        recall: recall@k on the half of the sample that chose nothing.
    """

    k: int
    effort: int
    second_effort: int
    rescore_below: float
    factor: int
    second_share: float
    recall: float

    def __post_init__(self) -> None:
        counts = (self.k, self.effort, self.second_effort, self.factor)
        if not all(isinstance(count, int | np.integer) and 0 < count < 2**31 for count in counts):
            raise ValueError(f"k, efforts and factor must be counts, got {self}")
        if not (
            0 <= self.second_share <= 1 and 0 <= self.recall <= 1 and self.rescore_below < math.inf
        ):
            raise ValueError(f"shares and a score are wanted, got {self}")

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object to save."""
        values = asdict(self)
        return {_SAVED_NAMES.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_json(cls, saved: Any) -> Tuned:
        """Returns the settings of a JSON object (TypeError, ValueError for any other value)."""
        if not isinstance(saved, dict):
            raise TypeError(f"settings must be an object, got {type(saved).__name__}")
        names = {saved_name: name for name, saved_name in _SAVED_NAMES.items()}
        return cls(**{names.get(name, str(name)): value for name, value in saved.items()})


def tune(
    view: View, propose: Propose, efforts: Sequence[int], goal: float, *, scored: bool = False
) -> tuple[Tuned, ...]:
    """Returns the efforts and candidates that reach a recall with the least work.

    If none reach it, the greatest effort and number of candidates are returned.

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
    """Queries from the gallery, and their nearest other rows `true` [q, n] with their scores."""

    def __init__(self, view: View) -> None:
        rows = np.flatnonzero(view.mask)
        self.available = len(rows) - 1  # rows that a query can find
        count = min(2 * SAMPLE, len(rows))
        self.rows = np.random.default_rng(0).choice(rows, count, replace=False)
        queries = view.embeddings(self.rows)
        self.vectors = queries.vectors
        deepest = min(self.available, max(_FACTORS) + _TIES)
        exact = FlatSearcher(view, hold=False).search(queries, deepest + 1)
        own = exact.rows == self.rows[:, None]
        own[~own.any(axis=1), -1] = True  # not among so many equal ones
        self.true = exact.rows[~own].reshape(count, deepest)
        self.scores = exact.scores[~own].reshape(count, deepest)


class _Trials:
    """The k nearest rows that each effort proposes, for one k.

    `tried` has the efforts up to the first that finds enough with all candidates. `places` has for
    each of them int64 [q, n], the place of each true neighbour among the candidates or _MISSING.
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
        self.factors = (1,) if scored else _FACTORS[k]  # candidates for each neighbour
        self._wanted = min(k, sample.available)
        self._scores = sample.scores
        self._right = sample.scores >= sample.scores[:, self._wanted - 1 : self._wanted]
        depth = min(k * self.factors[-1], sample.available) + 1
        self.tried: list[int] = []
        self.places: list[NDArray[np.int64]] = []
        for effort in efforts:
            self.tried.append(effort)
            self.places.append(_places(sample, propose(sample.vectors, depth, effort)))
            if self.hits(len(self.tried) - 1, self.factors[-1]).mean() >= goal + 0.95 * (1 - goal):
                break

    def hits(self, trial: int, factor: int) -> NDArray[np.float64]:
        """Returns the recall of each query with so many candidates, [q]."""
        proposed = self.places[trial] < self.k * factor
        right = np.minimum(np.count_nonzero(proposed & self._right, axis=1), self._wanted)
        share: NDArray[np.float64] = right / self._wanted
        return share

    def last_scores(self, trial: int, factor: int) -> NDArray[np.float32]:
        """Returns the k-th score proposed for each query, or a bound above it, [q].

        Where fewer than k of the known true neighbours are proposed, the k-th score is below the
        scores of all of them.
        """
        proposed = self.places[trial] < self.k * factor
        last = proposed & (np.cumsum(proposed, axis=1) == self._wanted)
        place = np.where(last.any(axis=1), last.argmax(axis=1), last.shape[1] - 1)
        scores: NDArray[np.float32] = self._scores[np.arange(len(place)), place]
        return scores


def _places(sample: _Sample, proposed: NDArray[np.int64]) -> NDArray[np.int64]:
    places = np.full(sample.true.shape, _MISSING, np.int64)
    for i, row in enumerate(sample.rows):
        others = proposed[i][(proposed[i] != row) & (proposed[i] >= 0)]
        if not len(others):
            continue
        order = np.argsort(others)
        at = np.minimum(np.searchsorted(others, sample.true[i], sorter=order), len(others) - 1)
        place = order[at]
        places[i] = np.where(others[place] == sample.true[i], place, _MISSING)
    return places


def _tuned(trials: _Trials, goal: float) -> Tuned:
    """Returns the settings chosen on one half of the sample, measured on the other half."""
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


_Choice = tuple[float, int, int, float, int]  # work, two trials, rescore_below, factor


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
                    share = float(enough[0] + 1) / len(order)
                    below = np.nextafter(scores[order[enough[0]]], np.float32(2))
                    work = _work(trials, effort, trials.tried[second], share, candidates)
                    yield work, first, second, float(below), factor


def _work(
    trials: _Trials, effort: int, second_effort: int, second_share: float, candidates: int
) -> float:
    """Returns the expected work of a query."""
    if trials.scored:
        # Many pairs take about the same work; the best is that of the least in six of ten queries.
        six_of_ten = effort if second_share <= 0.4 else second_effort
        return effort + second_share * (second_effort - effort) + six_of_ten
    return effort + candidates + second_share * (second_effort + candidates)


def _measured(trials: _Trials, choice: _Choice, half: slice) -> Tuned:
    _, first, second, rescore_below, factor = choice
    twice = (trials.last_scores(first, factor) < rescore_below)[half]
    hits = np.where(twice, trials.hits(second, factor)[half], trials.hits(first, factor)[half])
    return Tuned(
        k=trials.k,
        effort=trials.tried[first],
        second_effort=trials.tried[second],
        rescore_below=rescore_below,
        factor=factor,
        second_share=float(twice.mean()),
        recall=float(hits.mean()),
    )
