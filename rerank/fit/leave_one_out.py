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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.fit.calibration import AskedPhotos, ScoredAnswers
from lmk.rerank.fit.copies import MOST_COPIES, CopyRule, photo_numbers
from lmk.rerank.fit.tables import FitTables, copy_rule, exact_searcher
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.hits import blocks
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import QueryBatch, leave_out

SAMPLE = 2000  # queries of each kind
MOST_LEFT_OUT = 1000  # neighbours searched beyond the usual number, for the largest landmarks

_NOBODY = AskedPhotos(np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """A gallery that answers its own pictures and distractors.

    Steps that need all queries at once are left out. The geometric check needs the files of the
    pictures and is left out, too.

    Attributes:
        pipeline: the steps; the threshold is ignored.
        searcher: an exact search over the pictures of the gallery.
        context: the context of the gallery, by the rows of `gallery`.
        gallery: the labelled and unlabelled pictures of the gallery.
        distractors: the distractors, possibly none.
        fitted_without: returns the context of the gallery fitted without some rows of distractors.
            Up to 2 * SAMPLE distractors are queries in two halves; each half is answered without
            its own rows. From a larger number, SAMPLE distractors are queries.
        rule: the rule for copies of one photo.
    """

    pipeline: Pipeline
    searcher: Searcher
    context: PipelineContext
    gallery: View
    distractors: View
    fitted_without: Callable[[NDArray[np.int64]], PipelineContext]
    rule: CopyRule

    @classmethod
    def of_tables(
        cls, pipeline: Pipeline, tables: FitTables, context: PipelineContext | None = None
    ) -> LeaveOneOut:
        """Returns the gallery of tables that were fitted for a pipeline; `context` is theirs."""
        gallery, distractors = tables.gallery, tables.distractors

        def without(rows: NDArray[np.int64]) -> PipelineContext:
            left = distractors.mask.copy()
            left[rows] = False
            others = replace(distractors, mask=left)
            return tables.updated(pipeline, gallery, others).context(pipeline)

        searcher, rule = exact_searcher(gallery), copy_rule(tables)
        context = context or tables.context(pipeline)
        return cls(pipeline, searcher, context, gallery, distractors, without, rule)

    def answers(self) -> ScoredAnswers:
        """Returns the answers and their verdicts; no answers without a labelled picture."""
        known, right, unknown_landmark = self._of_pictures()
        others = _NOBODY
        if np.diff(self.context.label_offsets)[self.gallery.mask].any():
            others = self.answers_to_distractors()
        return ScoredAnswers.of_gallery(known, right, unknown_landmark, others)

    def answers_to_distractors(self) -> AskedPhotos:
        """Returns the answers to the distractors that are no copies of gallery pictures."""
        if not self.distractors.mask.any():
            return _NOBODY
        pipeline, confidences, photos = self._steps, [], []
        for part in _parts(self.distractors, exact_searcher(self.distractors), self.rule):
            context = self.context
            if pipeline.uses_distractors():
                context = self.fitted_without(part.left_out)
            queries = self.distractors.embeddings(part.rows)
            near = self.searcher.search(queries, pipeline.candidates)
            answers = pipeline.predict(QueryBatch(queries), near, context)
            own = np.array([not copies.size for copies in self.rule.among(near)], np.bool_)
            confidences.append(answers.confidence[own])
            photos.append(part.photo[own])
        return AskedPhotos(np.concatenate(confidences), np.concatenate(photos))

    @property
    def _steps(self) -> Pipeline:
        return self.pipeline.per_query().with_threshold(None)

    def _of_pictures(self) -> tuple[AskedPhotos, NDArray[np.bool_], AskedPhotos]:
        """Returns answers without the pictures, their verdicts, and those without landmarks."""
        pipeline, context, mask = self._steps, self.context, self.gallery.mask
        rows = _spread(np.flatnonzero(mask & (np.diff(context.label_offsets) > 0)))
        if not rows.size:
            return _NOBODY, np.zeros(0, np.bool_), _NOBODY
        k = pipeline.candidates
        own = [context.label_codes[slice(*context.label_offsets[row : row + 2])] for row in rows]
        landmarks = _landmarks(context, rows, own, mask)
        # As deep as it takes to have k neighbours left when a whole landmark is left out.
        deeper = min(max(len(members) for members in landmarks), MOST_LEFT_OUT)
        queries = self.gallery.embeddings(rows)
        near = self.searcher.search(queries, k + deeper)
        copies = [
            np.union1d(row, more) for row, more in zip(rows, self.rule.among(near), strict=True)
        ]
        unused = None
        if self.distractors.mask.any():
            others = exact_searcher(self.distractors).search(queries, MOST_COPIES)
            unused = self.rule.among(others)

        def answered(without: list[NDArray[np.int64]]) -> Predictions:
            batch = QueryBatch(queries, without, without_distractors=unused)
            return pipeline.predict(batch, leave_out(near, without, k), context)

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
