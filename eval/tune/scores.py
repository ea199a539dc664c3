"""Predictions of pipelines for labelled photos, and their scores on folds, for `lmk tune`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import UsageError
from lmk.embed.progress import Count, no_count
from lmk.eval.files.submission import Submission
from lmk.eval.files.truth import Truth
from lmk.eval.scores.gap import contest_gap, gap_of_judged
from lmk.eval.scores.judged import Judged, judge
from lmk.eval.tune.grid import choose, fold_scores, name_of, stratified_folds
from lmk.eval.tune.labelled_photos import LabelledPhotos
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import QueryBatch
from lmk.rerank.steps.voting import VoteStep

PLAIN = Pipeline(steps=(VoteStep(k=1),), candidates=1)  # the label of the nearest picture
_SCORES: dict[str, Callable[[Judged], float]] = {
    "gap": lambda judged: gap_of_judged(judged).value,
    "accuracy": Judged.accuracy,
    "contest_gap": lambda judged: contest_gap(judged).value,
}
Scores = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Tuning:
    """Scores of pipelines on folds of the photos, and the choice among them.

    Attributes:
        pipelines: the saved one, the plain one (PLAIN), then the others of the grid.
        scores: by name, float64 [pipelines, folds]; contest_gap is missing if there are fewer
            photos without a landmark than folds.
        best: the number of the pipeline with the best mean GAP, the first among equals; the saved
            one unless the gain is more than one standard error.
        nested: int64 [folds], the pipeline that the same rule chooses on the other folds of each.
    """

    pipelines: tuple[Pipeline, ...]
    scores: dict[str, NDArray[np.float64]]
    best: int
    nested: NDArray[np.int64]

    def of(self, pipeline: int | None) -> Scores:
        """Returns mean scores of a pipeline, and the standard deviation of GAP over folds.

        With None, each fold is scored with the pipeline chosen on the other folds; these scores are
        unbiased.
        """
        folds = np.arange(len(self.nested))
        chosen = self.nested if pipeline is None else np.full(len(folds), pipeline)
        means: Scores = dict.fromkeys(_SCORES)
        means |= {name: float(table[chosen, folds].mean()) for name, table in self.scores.items()}
        return means | {"gap_sd": float(self.scores["gap"][chosen, folds].std(ddof=1))}

    def as_dict(self) -> dict[str, Any]:
        """Returns the scores and choices as JSON values."""
        return {
            "folds": len(self.nested),
            "plain": self.of(self.pipelines.index(PLAIN)),
            "saved": self.of(0),
            "tuned": self.of(None),
            "best": {"name": name_of(self.pipelines[self.best])} | self.of(self.best),
            "choices": [name_of(self.pipelines[number]) for number in self.nested],
            "pipelines": [
                {"name": name_of(pipeline), "steps": pipeline.model_dump(mode="json")["steps"]}
                | self.of(number)
                | {"gap_of_folds": self.scores["gap"][number].tolist()}
                for number, pipeline in enumerate(self.pipelines)
            ],
        }


def candidates(saved: Pipeline, grid: Sequence[Pipeline]) -> tuple[Pipeline, ...]:
    """Returns the pipelines to compare: the saved one, the plain one and the grid, each once.

    Thresholds are removed, since GAP ranks all answers.
    """
    return tuple(dict.fromkeys(each.with_threshold(None) for each in (saved, PLAIN, *grid)))


def try_pipelines(
    recognizer: Recognizer,
    pipelines: Sequence[Pipeline],
    photos: LabelledPhotos,
    *,
    on_progress: Count = no_count,
) -> list[Predictions]:
    """Returns the predictions of each pipeline; the photos are searched once.

    Args:
        recognizer: the opened index; its own pipeline is not used.
        pipelines: the pipelines to try. Tables that a pipeline needs and the index has not saved
            are fitted, once for all pipelines with the same needs.
        photos: the queries.
        on_progress: called with the number of pipelines done.
    """
    depth = max(pipeline.candidates for pipeline in pipelines)
    neighbours = recognizer.search(photos.embeddings, depth)
    contexts: dict[Hashable, PipelineContext] = {}
    predictions = []
    for done, pipeline in enumerate(pipelines, 1):
        other = recognizer.with_pipeline(pipeline)
        key = pipeline.context_key()
        if key not in contexts:
            contexts[key] = other.context
        queries = QueryBatch(photos.embeddings, features=other.features_of(photos.files))
        predictions.append(pipeline.predict(queries, neighbours, contexts[key]))
        on_progress(done)
    return predictions


def tuning_of(
    pipelines: Sequence[Pipeline],
    predictions: Sequence[Predictions],
    photos: LabelledPhotos,
    *,
    folds: int,
    seed: int,
) -> Tuning:
    """Returns the scores of pipelines on folds stratified by landmark, and the choice.

    Args:
        pipelines: the pipelines to compare.
        predictions: the predictions of each pipeline for `photos`.
        photos: the photos with their labels.
        folds, seed: the number of folds, and the random seed for them.

    Raises:
        UsageError: fewer photos than folds (copies counted once) show a landmark.
    """
    judged = [judged_of(each, photos) for each in predictions]
    number = photos.photo
    labels = _labels_by_photo(photos, number)
    if sum(map(bool, labels.values())) < folds:
        # There are too few photos without near-copies, so only equal files count as copies.
        number = photos.content
        labels = _labels_by_photo(photos, number)
    landmarks = sum(map(bool, labels.values()))
    others = len(labels) - landmarks
    if landmarks < folds:
        raise UsageError(
            f"--folds {folds}, but only {landmarks} of {len(labels)} photos show a landmark",
            remedy="give more photos, or fewer folds",
        )
    kinds = [" ".join(sorted(labels[each])) for each in number.tolist()]
    fold = stratified_folds(kinds, folds, seed, number)

    def on_folds(by: Callable[[Judged], float]) -> NDArray[np.float64]:
        def score(pipeline: int, rows: NDArray[np.int64]) -> float:
            return by(part(judged[pipeline], rows))

        return fold_scores(len(judged), fold, score)

    scores = {
        name: on_folds(by)
        for name, by in _SCORES.items()
        if name != "contest_gap" or others >= folds
    }
    choice = choose(scores["gap"], current=0)
    return Tuning(tuple(pipelines), scores, choice.best, choice.nested)


def _labels_by_photo(photos: LabelledPhotos, number: NDArray[np.int64]) -> dict[int, set[str]]:
    """Returns the labels of each photo by number, with the labels of all its copies."""
    labels: dict[int, set[str]] = {}
    for each, own in zip(number.tolist(), photos.labels, strict=True):
        labels.setdefault(each, set()).update(own)
    return labels


def judged_of(predictions: Predictions, photos: LabelledPhotos) -> Judged:
    """Returns predictions joined with the labels of the photos; rows are in ascending id order."""
    ids = photos.embeddings.ids
    truth = Truth(ids, photos.labels, (None,) * len(ids))
    return judge(Submission.from_predictions(predictions), truth)


def part(judged: Judged, rows: NDArray[np.int64]) -> Judged:
    """Returns some rows of judged answers; the row numbers must ascend."""
    return Judged(
        tuple(judged.query_ids[row] for row in rows.tolist()),
        judged.has_landmark[rows],
        judged.answered[rows],
        judged.correct[rows],
        judged.confidence[rows],
    )


def scores_of(judged: Judged) -> Scores:
    """Returns the scores of one pipeline on all photos; None if a score is not defined."""
    some = not judged.has_landmark.all()
    return {
        name: by(judged) if some or name != "contest_gap" else None for name, by in _SCORES.items()
    }
