"""Tuning: grids of pipelines, folds of photos, and the choice of a pipeline by nested scores.

Several pipelines answer the same photos and are scored on folds of the photos. The best score of
many is too high, because the pipeline was chosen on the photos that it is scored on. An unbiased
score is nested: for each fold the choice is made on the other folds, and the scores of these
choices are averaged (Cawley and Talbot, "On Over-fitting in Model Selection and Subsequent
Selection Bias in Performance Evaluation", JMLR 2010). The current pipeline stays unless another one
gains more than one standard error (Breiman et al., "Classification and Regression Trees", 1984,
section 3.4): with few photos the best of many may be best by chance, and worse on other photos.

A grid is a JSON list of places, each a list of alternatives. Every combination of alternatives is
one pipeline. An alternative is a step, a list of steps, or null for no step:

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

MOST_PIPELINES = 1000  # in a grid; more are a mistake, or overfit the photos
_FORM = "it must be a list of places, each a list of alternatives: a step, a list of steps or null"

_ROUNDING = 1e-12  # means of the same numbers in another order differ by less

Score = Callable[[int, NDArray[np.int64]], float]


def default_grid(*, geometry: bool = False) -> tuple[Pipeline, ...]:
    """Returns the default grid; with `geometry` also a few pipelines that match points."""
    names = ("grid.json", "grid_geometry.json") if geometry else ("grid.json",)
    folder = files("lmk.eval.tune")
    grids = [pipelines_of(json.loads(folder.joinpath(name).read_text("utf-8"))) for name in names]
    return tuple(pipeline for grid in grids for pipeline in grid)


def read_grid(path: Path) -> tuple[Pipeline, ...]:
    """Returns the pipelines of a grid file.

    Raises:
        UsageError: the file does not exist, is not JSON or is not a grid, or a step or parameter
            does not exist.
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
        raise UsageError(what, where=path, remedy="correct the grid") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors too
        raise UsageError(f"is no grid: {error}", where=path, remedy=_FORM) from error


def pipelines_of(grid: Any) -> tuple[Pipeline, ...]:
    """Returns every combination of a grid's alternatives; the last place changes fastest.

    Args:
        grid: the value that json.loads returns (see the module).

    Raises:
        ValueError: the value is not a grid or makes too many pipelines. An invalid step raises
            pydantic's ValidationError, which is a ValueError.
    """
    if not isinstance(grid, list) or not all(isinstance(place, list) for place in grid):
        raise ValueError("it is no list of lists")
    if not grid or not all(grid):
        raise ValueError("a place without an alternative leaves no pipeline")
    count = int(np.prod([len(place) for place in grid], dtype=np.float64))
    if count > MOST_PIPELINES:
        raise ValueError(f"it makes {count:,} pipelines, more than {MOST_PIPELINES:,}")
    pipelines = [
        Pipeline.model_validate({"steps": [step for part in choice for step in _steps(part)]})
        for choice in product(*grid)
    ]
    return tuple(dict.fromkeys(pipelines))


def _steps(alternative: Any) -> list[Any]:
    if alternative is None:
        return []
    return alternative if isinstance(alternative, list) else [alternative]


def name_of(pipeline: Pipeline) -> str:
    """Returns the steps as one line, with parameters that differ from the default; no threshold.

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
    """Returns the fold of each of n photos, stratified by kind: int64 [n].

    The photos of a kind are shuffled and assigned to the folds in turn. The next kind, in ascending
    order, continues with the next fold, so that sizes differ by one at most. scikit-learn's
    StratifiedKFold cannot be used: it rejects kinds that all have fewer photos than folds, as
    landmarks usually have.

    Args:
        kinds: the kind of each photo, for example its landmark.
        folds: the number of folds.
        seed: random seed of the shuffling.
        photos: the number of each photo, equal for copies. All copies get the fold and the kind of
            the first copy; otherwise a copy in another fold would leak the answer. Fold sizes then
            differ by the number of copies.

    Raises:
        ValueError: there are fewer than 2 folds, or fewer photos (copies counted once) than folds.
    """
    if photos is not None:
        _, first, group = np.unique(photos, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))  # photos by first occurrence
        return stratified_folds(np.asarray(kinds)[np.sort(first)], folds, seed)[rank[group]]
    if not 2 <= folds <= len(kinds):
        raise ValueError(f"{len(kinds)} photos cannot be split into {folds} folds")
    codes = np.unique(np.asarray(kinds), return_inverse=True)[1]
    shuffled = np.random.default_rng(seed).permutation(len(kinds))
    fold = np.empty(len(kinds), np.int64)
    fold[shuffled[np.argsort(codes[shuffled], kind="stable")]] = np.arange(len(kinds)) % folds
    return fold


def fold_scores(candidates: int, fold: NDArray[np.int64], score: Score) -> NDArray[np.float64]:
    """Returns the score of each candidate on each fold: float64 [candidates, folds].

    Args:
        candidates: the number of candidates.
        fold: int64 [n], the fold of each photo (stratified_folds).
        score: returns the score of a candidate on photos, given by row; higher is better.
    """
    parts = [np.flatnonzero(fold == number) for number in range(int(fold.max()) + 1)]
    return np.array([[score(each, rows) for rows in parts] for each in range(candidates)])


@dataclass(frozen=True, eq=False)
class Choice:
    """The best candidate, and the choices that a nested score averages.

    Attributes:
        best: the candidate chosen on all folds.
        nested: int64 [folds], for each fold the candidate chosen on the other folds.
    """

    best: int
    nested: NDArray[np.int64]


def choose(scores: NDArray[np.float64], *, current: int | None = None) -> Choice:
    """Returns the candidate with the best mean score over folds, and the choice without each fold.

    Among candidates with equal scores the first one is chosen.

    Args:
        scores: float64 [candidates, folds], at least 2 folds (fold_scores).
        current: a candidate that is preferred unless the best one gains more than one standard
            error of the gain over the folds used; over a single fold any gain suffices.

    Raises:
        ValueError: the shape is wrong, or a score is not finite.
    """
    if scores.ndim != 2 or not len(scores) or scores.shape[1] < 2:
        raise ValueError(f"scores must be [candidates, at least 2 folds], got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    others = [np.delete(scores, fold, axis=1) for fold in range(scores.shape[1])]
    return Choice(_chosen(scores, current), np.array([_chosen(some, current) for some in others]))


def _chosen(scores: NDArray[np.float64], current: int | None) -> int:
    best = _first_best(scores.mean(axis=1))
    if current is None:
        return best
    gain, folds = scores[best] - scores[current], scores.shape[1]
    error = gain.std(ddof=1) / np.sqrt(folds) if folds > 1 else 0.0
    return best if gain.mean() > error + _ROUNDING else current


def _first_best(scores: NDArray[np.float64]) -> int:
    """Returns the first candidate that is best within rounding errors of the sum."""
    return int(np.flatnonzero(scores >= scores.max() - _ROUNDING)[0])
