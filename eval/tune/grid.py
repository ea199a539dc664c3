"""Tuning: which steps answer best on photos with known answers, told honestly.

Several pipelines answer the same photos; each is scored on folds of them. The best one of many
looks better than it is, because it was chosen on what it is scored on. So the score that counts is
nested: for each fold the choice is made on the other folds, and the scores of these choices are
the ones that are averaged (Cawley and Talbot, "On Over-fitting in Model Selection and Subsequent
Selection Bias in Performance Evaluation", JMLR 2010). What is in use stays unless another gains
more than one standard error (Breiman et al., "Classification and Regression Trees", 1984, section
3.4): with few photos the best of many may be best by luck, and worse on others.

A grid is data: a JSON list of places, each a list of alternatives, of which every combination is
one pipeline. An alternative is a step, a list of steps, or null for nothing:

    [[null, {"step": "dba"}], [{"step": "rescale"}], [{"step": "vote", "k": 5}]]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from lmk.embed.errors import UsageError
from lmk.rerank.steps.pipeline import Pipeline

MOST_PIPELINES = 1000  # of a grid: more are a slip, or overfit any photos there are
_FORM = "it must be a list of places, each a list of alternatives: a step, a list of steps or null"

_ROUNDING = 1e-12  # means of the same numbers in another order differ by less

Score = Callable[[int, NDArray[np.int64]], float]


def default_grid(*, geometry: bool = False) -> tuple[Pipeline, ...]:
    """The grid that comes with lmk; with geometry also a few pipelines that match points."""
    names = ("grid.json", "grid_geometry.json") if geometry else ("grid.json",)
    folder = files("lmk.eval.tune")
    found = [pipelines_of(json.loads(folder.joinpath(name).read_text("utf-8"))) for name in names]
    return tuple(pipeline for grid in found for pipeline in grid)


def read_grid(path: Path) -> tuple[Pipeline, ...]:
    """The pipelines of a grid's file.

    Raises:
        UsageError: no such file, no JSON, no grid, a step or parameter that there is not.
    """
    try:
        return pipelines_of(json.loads(path.read_text("utf-8")))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot be read: {reason}", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{part}." for part in first["loc"])[:-1]
        what = first["msg"].removeprefix("Value error, ")
        what = f"{place}: {what}" if place else what
        raise UsageError(what, where=path, remedy="mend the grid") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors too
        raise UsageError(f"is no grid: {error}", where=path, remedy=_FORM) from error


def pipelines_of(grid: Any) -> tuple[Pipeline, ...]:
    """Every combination of a grid's alternatives, the last place changing fastest.

    Args:
        grid: as json.loads gives it (see the module).

    Raises:
        ValueError: for anything else, or too many; pydantic's ValidationError, which is one, for
            steps that cannot be.
    """
    if not isinstance(grid, list) or not all(isinstance(place, list) for place in grid):
        raise ValueError("it is no list of lists")
    if not grid or not all(grid):
        raise ValueError("a place without an alternative leaves no pipeline")
    count = int(np.prod([len(place) for place in grid], dtype=np.float64))
    if count > MOST_PIPELINES:
        raise ValueError(f"it makes {count:,} pipelines, more than {MOST_PIPELINES:,}")
    made = [
        Pipeline.model_validate({"steps": [step for part in choice for step in _steps(part)]})
        for choice in product(*grid)
    ]
    return tuple(dict.fromkeys(made))


def _steps(alternative: Any) -> list[Any]:
    if alternative is None:
        return []
    return alternative if isinstance(alternative, list) else [alternative]


def name_of(pipeline: Pipeline) -> str:
    """The steps in a line, with the parameters that are not the usual ones; no threshold.

    Example: "rescale, penalty, vote k=1 power=1.0".
    """
    words = []
    for step in pipeline.with_threshold(None).steps:
        given = step.model_dump(exclude_defaults=True)
        words.append(" ".join([step.step, *(f"{name}={value}" for name, value in given.items())]))
    return ", ".join(words)


def stratified_folds(
    kinds: Sequence[str] | NDArray[np.int64],
    folds: int,
    seed: int,
    photos: Sequence[int] | NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Deals n photos into folds so that each has its share of every kind: int64 [n].

    The photos of a kind are shuffled and dealt round; the next kind, in rising order, begins
    where the last one ended, so that sizes differ by one at most.

    Args:
        kinds: of each photo, as its landmark.
        folds: their number.
        seed: of the shuffling.
        photos: of each the number of its photo, which copies share. Copies go where the first of
            them goes, and are of its kind: in two folds one would be judged by what the other
            taught. Sizes then differ by what copies add.

    Raises:
        ValueError: for fewer than 2 folds, or fewer photos (copies counted once) than folds.
    """
    if photos is not None:
        _, first, group = np.unique(photos, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))  # photos in the order in which they come
        return stratified_folds(np.asarray(kinds)[np.sort(first)], folds, seed)[rank[group]]
    if not 2 <= folds <= len(kinds):
        raise ValueError(f"{len(kinds)} photos cannot be dealt into {folds} folds")
    codes = np.unique(np.asarray(kinds), return_inverse=True)[1]
    shuffled = np.random.default_rng(seed).permutation(len(kinds))
    fold = np.empty(len(kinds), np.int64)
    fold[shuffled[np.argsort(codes[shuffled], kind="stable")]] = np.arange(len(kinds)) % folds
    return fold


def fold_scores(candidates: int, fold: NDArray[np.int64], score: Score) -> NDArray[np.float64]:
    """The score of each candidate on each fold: float64 [candidates, folds].

    Args:
        candidates: their number.
        fold: int64 [n], the fold of each photo (stratified_folds).
        score: of a candidate on some photos, by their numbers, rising; the higher the better.
    """
    parts = [np.flatnonzero(fold == number) for number in range(int(fold.max()) + 1)]
    return np.array([[score(each, rows) for rows in parts] for each in range(candidates)])


@dataclass(frozen=True, eq=False)
class Choice:
    """Which candidate is best, and how good such a choice is.

    Attributes:
        best: the candidate chosen by all folds.
        nested: int64 [folds], of each fold the candidate that is chosen by the others.
    """

    best: int
    nested: NDArray[np.int64]


def choose(scores: NDArray[np.float64], *, kept: int | None = None) -> Choice:
    """Chooses the candidate with the best mean score over folds; the first one of equals.

    Args:
        scores: float64 [candidates, folds], at least 2 folds (fold_scores).
        kept: a candidate that stays unless the best one gains more than one standard error of
            the gain, both over the folds chosen by; over a single fold any gain will do.

    Raises:
        ValueError: for other shapes, or a score that is not finite.
    """
    if scores.ndim != 2 or not len(scores) or scores.shape[1] < 2:
        raise ValueError(f"scores must be [candidates, at least 2 folds], got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    others = [np.delete(scores, fold, axis=1) for fold in range(scores.shape[1])]
    return Choice(_chosen(scores, kept), np.array([_chosen(some, kept) for some in others]))


def _chosen(scores: NDArray[np.float64], kept: int | None) -> int:
    best = _first_best(scores.mean(axis=1))
    if kept is None:
        return best
    gain, folds = scores[best] - scores[kept], scores.shape[1]
    error = gain.std(ddof=1) / np.sqrt(folds) if folds > 1 else 0.0
    return best if gain.mean() > error + _ROUNDING else kept


def _first_best(scores: NDArray[np.float64]) -> int:
    """The first of those that are best but for rounding, which sums in another order would turn."""
    return int(np.flatnonzero(scores >= scores.max() - _ROUNDING)[0])
