"""FitTables: the tables that are fitted to a gallery, and their context for the steps.

A gallery saves the penalty and, where its steps need them, the nearest pictures and distractors of
each picture. A large gallery also saves how often distractors hit each picture, so that the cost of
a change depends on the number of changed rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from lmk.embed.progress import Progress, no_progress
from lmk.index.gallery.gallery import Gallery
from lmk.index.search.choose import searcher_of
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.fit.background import LandmarkSums, landmark_sums
from lmk.rerank.fit.copies import CopyRule
from lmk.rerank.fit.table_kinds import KINDS, Change, DistractorHits, FittedTable
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.hits import Sides
from lmk.rerank.steps.pipeline import Pipeline

PIPELINE, BACKGROUND = "pipeline", "background"
PENALTY = DistractorHits.saved_values["penalty"]
CALIBRATION = "calibration"
CALIBRATED = "calibrated"  # setting: the data of the calibration, "photos" or "gallery"
COPY_COSINE = "copy cosine"  # setting: the least cosine of two copies of one photo
SHARD = "shard"  # setting: the part of the pictures that a gallery holds
FITTED = "learnt"  # setting: the state that the next change updates (SavedFit)
DISTRACTORS = "bank"  # array: the distractors that were used, if not all were
_MANY = 2000  # queries of a fit at a time

Cosine = Annotated[float, Field(ge=-1, le=1)]


class SavedFit(BaseModel):
    """The setting FITTED.

    Attributes:
        sums: LandmarkSums as JSON.
        weighed: number of pictures when threshold and calibration were fitted.
        changed: number of rows that were added or removed since then.
    """

    sums: dict[str, Any]
    weighed: Annotated[int, Field(ge=0)]
    changed: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, eq=False)
class FitTables:
    """The tables that are fitted to one state of a gallery, and can be updated to the next.

    Attributes:
        gallery: the pictures.
        distractors: the distractors, without files that are gallery pictures too. Such files would
            lower the score of their own landmark.
        sums: the sums for the background.
        tables: the tables by the input of the steps that they provide.
    """

    gallery: View
    distractors: View
    sums: LandmarkSums
    tables: Mapping[str, FittedTable] = field(default_factory=dict)

    @classmethod
    def empty(cls, gallery: View) -> FitTables:
        """Returns the tables of no picture, from which everything is fitted again."""
        none = replace(gallery, mask=np.zeros_like(gallery.mask))
        return cls(none, none, LandmarkSums.none(gallery.dim))

    def updated(
        self,
        pipeline: Pipeline,
        gallery: View,
        distractors: View,
        on_progress: Progress = no_progress,
    ) -> FitTables:
        """Returns the tables for the steps of a pipeline, of a gallery after a change.

        A table that was fitted with other parameters is fitted again.

        Args:
            pipeline: the steps.
            gallery, distractors: the views after the change, over the vectors of all rows.
            on_progress: called with (stage, done, total) pictures, for each table in which a
                picture is searched.
        """
        before = Sides(self.gallery.mask, self.distractors.mask)
        tables = {}
        for need, kind, size in needed_tables(pipeline):
            table, sides = self.tables.get(need), before
            if table is None or table.size != size:
                table, sides = kind.empty(size), Sides.none(0)
            change = Change(sides, gallery, distractors, exact_searcher)
            tables[need] = table.updated(change, partial(on_progress, kind.stage))
        sums = self.sums.updated(before=self.gallery, after=gallery)
        return FitTables(gallery, distractors, sums, tables)

    def renumbered(self, alive: NDArray[np.bool_], gallery: View, distractors: View) -> FitTables:
        """Returns the tables of the same pictures when the removed rows are dropped.

        Args:
            alive: bool [rows], the rows left, numbered from 0 on.
            gallery, distractors: the views over these rows. The used distractors stay the same.
        """
        return replace(
            self,
            gallery=gallery,
            distractors=replace(distractors, mask=self.distractors.mask[alive]),
            tables={need: table.renumbered(alive) for need, table in self.tables.items()},
        )

    def context(self, pipeline: Pipeline) -> PipelineContext:
        """Returns the context for the steps of the pipeline that these tables were fitted for."""
        background = self.sums.mean_cosine()
        return context_of(pipeline, self.gallery, self.distractors, background, self.tables)


def needed_tables(pipeline: Pipeline) -> Iterator[tuple[str, type[FittedTable], int]]:
    """Yields the need, the class and the size of each table that the steps of a pipeline need."""
    for need, kind in KINDS.items():
        step = pipeline.step_that_needs(need)
        if step is not None:
            yield need, kind, step.table_size()


def context_of(
    pipeline: Pipeline,
    gallery: View,
    distractors: View,
    background: float,
    tables: Mapping[str, FittedTable],
    saved_values: Mapping[str, Any] = MappingProxyType({}),
    *,
    batch: int | None = _MANY,
) -> PipelineContext:
    """Returns the context of a gallery for the steps of a pipeline.

    Args:
        pipeline: the steps.
        gallery: the pictures, with labels.
        distractors: the distractors.
        background: the mean cosine of two pictures of different landmarks.
        tables: the tables by input, with the sizes that the steps require.
        saved_values: values of the context that need no table.
        batch: number of queries at a time, if known, for the search of the distractors.
    """
    labels = gallery.labels
    assert labels is not None  # a gallery and its writer have them
    values = dict(saved_values)
    for need, table in tables.items():
        step, value = pipeline.step_that_needs(need), table.value(gallery, distractors)
        if step is not None and value is not None:
            values |= step.context_values(value, background if pipeline.rescales() else 0.0)
    compares = bool(distractors.mask.any()) and "distractors" in pipeline.needs
    return PipelineContext(
        labels.names,
        labels.offsets,
        labels.codes,
        background=background,
        vectors=gallery.stored,
        distractor_searcher=exact_searcher(distractors, batch) if compares else None,
        pictures=gallery.mask,
        **values,
    )


def exact_searcher(view: View, batch: int | None = _MANY) -> Searcher:
    """Returns an exact search, the fastest for the size of the view and of a batch of queries."""
    return searcher_of(view, recall=1.0, batch=batch)


def copy_rule(tables: FitTables) -> CopyRule:
    """Returns the rule by which pictures of a gallery count as copies of one photo.

    In a gallery with fewer than two landmarks the distractors give the background.
    """
    sums, background = tables.sums, tables.sums.mean_cosine(most=1.0)
    if sums.pictures and sums.pairs == sums.pictures**2 and tables.distractors.mask.any():
        others = landmark_sums(tables.distractors)
        pairs = sums.pictures * others.pictures
        background = float(np.clip(sums.total @ others.total / pairs, 0.0, 1.0))
    return CopyRule.for_background(background)


def saved_copy_rule(gallery: Gallery) -> CopyRule:
    """Returns the rule saved with a gallery. Default: the rule for its background."""
    cosine = gallery.setting(COPY_COSINE)
    if cosine is None:
        return CopyRule.for_background(gallery.setting(BACKGROUND) or 0.0)
    return CopyRule(float(cosine))


def saved_array(gallery: Gallery, name: str, axes: int) -> NDArray[Any] | None:
    """Returns a saved array of numbers with an entry for each row of a gallery.

    Returns None if the array is missing, has another shape, or contains other values than numbers.
    """
    array = gallery.array(name)
    if array is None or array.ndim != axes or len(array) != gallery.rows:
        return None
    numbers = array.dtype.kind in "iu" or (array.dtype.kind == "f" and not np.isnan(array).any())
    return array if numbers else None
