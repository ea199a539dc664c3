"""Leave-one-out answers: a gallery answers its own pictures, whose landmarks are known.

Three kinds of queries give answers with known verdicts:

- Each labelled picture of a sample, answered without itself. It shows whether an answer is right,
  where its landmark has another photo.
- The same pictures without their whole landmark, as an unknown landmark. Every answer is wrong.
- The distractors. Every answer is wrong. A gallery that was fitted without the distractor answers
  it, because the photo of a user is not among the distractors, and the similarity of the
  distractor to itself would refuse it.

"Without itself" includes all copies of the photo (copies.py), under every landmark and among the
distractors. A distractor that is a copy of a gallery picture shows a landmark, and is no query.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.fit.calibration import AskedPhotos, ScoredAnswers
from lmk.rerank.fit.copies import MOST_COPIES, CopyRule, photo_numbers
from lmk.rerank.fit.tables import exact_searcher
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.hits import blocks
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import QueryBatch, leave_out

SAMPLE = 2000  # pictures of each kind that are asked
MOST_LEFT_OUT = 1000  # neighbours searched beyond the usual number, for the largest landmarks

_NOBODY = AskedPhotos(np.zeros(0, np.float32), np.zeros(0, np.int64))

FittedWithout = Callable[[NDArray[np.int64]], PipelineContext]


def answers_of_gallery(
    pipeline: Pipeline,
    searcher: Searcher,
    context: PipelineContext,
    gallery: View,
    distractors: View,
    fitted_without: FittedWithout,
    rule: CopyRule | None = None,
) -> ScoredAnswers:
    """Returns the answers of a pipeline to the pictures of its own gallery and distractors.

    Steps that need all queries at once are left out. The geometric check needs the files of the
    pictures and is left out, too.

    Args:
        pipeline: the pipeline; its threshold is ignored.
        searcher: an exact search over the pictures of the gallery.
        context: the context of the gallery, by the rows of `gallery`.
        gallery: the labelled and unlabelled pictures of the gallery.
        distractors: the distractors, possibly none.
        fitted_without: returns the context of the gallery fitted without some rows of distractors.
            Up to 2 * SAMPLE distractors are queries in two halves; each half is answered without
            its own rows. From a larger number, SAMPLE distractors are queries.
        rule: the rule for copies of one photo. Default: the rule for the background of `context`.

    Returns:
        The answers and their verdicts; no answers if the gallery has no labelled picture.
    """
    pipeline = pipeline.per_query().with_threshold(None)
    rule = rule or CopyRule.for_background(context.background)
    others = exact_searcher(distractors) if distractors.mask.any() else None
    known, right, unknown_landmark = _of_pictures(
        pipeline, searcher, context, gallery, others, rule
    )
    asked = _NOBODY
    if np.diff(context.label_offsets)[gallery.mask].any():
        asked = answers_of_distractors(
            pipeline, searcher, context, distractors, fitted_without, rule
        )
    return ScoredAnswers.of_gallery(known, right, unknown_landmark, asked)


def answers_of_distractors(
    pipeline: Pipeline,
    searcher: Searcher,
    context: PipelineContext,
    distractors: View,
    fitted_without: FittedWithout,
    rule: CopyRule,
) -> AskedPhotos:
    """Returns the answers to the distractors that are no copies of gallery pictures.

    Args: as of answers_of_gallery.
    """
    if not distractors.mask.any():
        return _NOBODY
    pipeline, others = pipeline.per_query().with_threshold(None), exact_searcher(distractors)
    confidences, photos = [], []
    for part in _parts(distractors, others, rule):
        without = fitted_without(part.left_out) if pipeline.uses_distractors() else context
        asked = distractors.embeddings(part.rows)
        found = searcher.search(asked, pipeline.candidates)
        answers = pipeline.predict(QueryBatch(asked), found, without)
        own = np.array([not copies.size for copies in rule.among(found)], np.bool_)
        confidences.append(answers.confidence[own])
        photos.append(part.photo[own])
    return AskedPhotos(np.concatenate(confidences), np.concatenate(photos))


def _of_pictures(
    pipeline: Pipeline,
    searcher: Searcher,
    context: PipelineContext,
    gallery: View,
    others: Searcher | None,
    rule: CopyRule,
) -> tuple[AskedPhotos, NDArray[np.bool_], AskedPhotos]:
    """Returns answers without the pictures, whether they are right, and without their landmarks."""
    rows = _spread(np.flatnonzero(gallery.mask & (np.diff(context.label_offsets) > 0)))
    if not rows.size:
        return _NOBODY, np.zeros(0, np.bool_), _NOBODY
    k = pipeline.candidates
    own = [context.label_codes[slice(*context.label_offsets[row : row + 2])] for row in rows]
    landmarks = _landmarks(context, rows, own, gallery.mask)
    # As deep as it takes to have k neighbours left when a whole landmark is left out.
    deeper = min(max(len(members) for members in landmarks), MOST_LEFT_OUT)
    asked = gallery.embeddings(rows)
    found = searcher.search(asked, k + deeper)
    copies = [np.union1d(row, more) for row, more in zip(rows, rule.among(found), strict=True)]
    unused = None if others is None else rule.among(others.search(asked, MOST_COPIES))

    def answered(without: list[NDArray[np.int64]]) -> Predictions:
        queries = QueryBatch(asked, without, without_distractors=unused)
        return pipeline.predict(queries, leave_out(found, without, k), context)

    answers = answered(copies)
    right = [
        label in {context.label_names[code] for code in codes}
        for label, codes in zip(answers.labels, own, strict=True)
    ]
    both = list(zip(landmarks, copies, strict=True))
    several = np.array([not np.isin(*pair).all() for pair in both], np.bool_)
    unknown_landmark = answered([np.union1d(*pair) for pair in both])
    photo = photo_numbers(rows, copies)
    return (
        AskedPhotos(answers.confidence[several], photo[several]),
        np.array(right, np.bool_)[several],
        AskedPhotos(unknown_landmark.confidence, photo),
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """Distractors that are queries together."""

    rows: NDArray[np.int64]
    left_out: NDArray[np.int64]  # distractors that the gallery is fitted without
    photo: NDArray[np.int64]  # the number of the photo that each of `rows` shows


def _parts(distractors: View, others: Searcher, rule: CopyRule) -> list[_Part]:
    """Returns the parts in which distractors are queries; copies of a photo stay together."""
    rows = np.flatnonzero(distractors.mask)
    # Checksums decide: row numbers differ between an index that grew and one built at once.
    chance = [
        zlib.crc32(vector.tobytes())
        for block in blocks(rows)
        for vector in distractors.stored.read(block)
    ]
    rows = rows[np.argsort(np.array(chance, np.int64), kind="stable")]
    whole = len(rows) <= 2 * SAMPLE
    rows = rows if whole else rows[:SAMPLE]
    copies = rule.among(others.search(distractors.embeddings(rows), MOST_COPIES))
    photo = photo_numbers(rows, copies)
    first = np.unique(photo, return_index=True)[1][photo]  # where the first of its copies stands
    half, order = first <= first[(len(rows) - 1) // 2], np.argsort(rows)
    if not whole:
        return [_Part(rows[order], np.unique(np.concatenate([rows, *copies])), photo[order])]
    parts = [order[half[order]], order[~half[order]]]
    return [_Part(rows[part], rows[part], photo[part]) for part in parts if part.size]


def _spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns SAMPLE evenly spread rows, or all rows if there are fewer."""
    if len(rows) <= SAMPLE:
        return rows
    places = np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64))
    return np.asarray(rows[places], np.int64)


def _landmarks(
    context: PipelineContext,
    rows: NDArray[np.int64],
    own: list[NDArray[np.int32]],
    gallery: NDArray[np.bool_],
) -> list[NDArray[np.int64]]:
    """Returns for each row itself and the gallery rows of its landmarks (`own`, label codes)."""
    row_of = np.repeat(np.arange(len(context.label_offsets) - 1), np.diff(context.label_offsets))
    order = np.argsort(context.label_codes, kind="stable")
    order = order[gallery[row_of[order]]]
    row_of, codes = row_of[order], context.label_codes[order]
    landmarks = []
    for row, wanted in zip(rows, own, strict=True):
        first, last = (np.searchsorted(codes, wanted, side) for side in ("left", "right"))
        members = [row_of[start:stop] for start, stop in zip(first, last, strict=True)]
        landmarks.append(np.unique(np.concatenate([[row], *members])))
    return landmarks
