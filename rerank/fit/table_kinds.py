"""The tables that are fitted to a gallery, all with one protocol.

A table provides one input of the steps (see rerank/steps/step.py). A table that is updated after a
change equals a newly computed table. It is renumbered when removed rows are dropped, and saved as
arrays of the gallery. `KINDS` has the class for each input. A new kind of table is a subclass of
FittedTable and an entry in `KINDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lmk.embed.progress import CountOfTotal
from lmk.index.vectors.neighbours import NO_ROW
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.fit.neighbour_table import NearestTable
from lmk.rerank.steps.hits import HitTable, Mask, Sides

_AUGMENTED = 30  # products of a search take as long as one of comparing neighbourhoods


@dataclass(frozen=True, eq=False)
class Change:
    """A change of a gallery.

    Attributes:
        before: the rows of pictures and distractors before the change.
        gallery: the pictures after the change, over the vectors of all rows.
        distractors: the distractors after the change.
        search: returns an exact searcher of a view.
        gallery_searcher: an opened search over the pictures of the gallery, or None.
    """

    before: Sides
    gallery: View
    distractors: View
    search: Callable[[View], Searcher]
    gallery_searcher: Searcher | None = None

    @property
    def after(self) -> Sides:
        """The rows of pictures and distractors after the change."""
        return Sides(self.gallery.mask, self.distractors.mask)


class FittedTable(ABC):
    """A table of one state of a gallery, which can be updated to the next state.

    Attributes:
        need: the input of steps that the table provides.
        stage: the name of its part of a fit, for progress.
        arrays: names of the arrays of the gallery that hold the table, and their numbers of axes.
        only_for_changes: whether only the next change reads the arrays, and no answer.
        saved_values: names of the arrays of the gallery that hold values of a PipelineContext, by
            the name of the value. Answers read these arrays instead of the table.
    """

    need: ClassVar[str]
    stage: ClassVar[str]
    arrays: ClassVar[Mapping[str, int]]
    only_for_changes: ClassVar[bool] = False
    saved_values: ClassVar[Mapping[str, str]] = {}

    @property
    @abstractmethod
    def size(self) -> int:
        """The length of a list of the table (Step.table_size)."""

    @classmethod
    @abstractmethod
    def empty(cls, size: int) -> Self:
        """Returns the table of a gallery without rows."""

    @abstractmethod
    def updated(self, change: Change, on_progress: CountOfTotal) -> Self:
        """Returns the table after a change."""

    @abstractmethod
    def renumbered(self, alive: Mask) -> Self:
        """Returns the table when only the rows alive, bool [rows], are left."""

    @abstractmethod
    def to_arrays(self) -> tuple[NDArray[Any], ...]:
        """Returns the arrays to save, one for each name of `arrays`."""

    @classmethod
    @abstractmethod
    def of_arrays(cls, arrays: Sequence[NDArray[Any]], size: int) -> Self | None:
        """Returns the table that `to_arrays` saved, or None for other arrays."""

    @abstractmethod
    def value(self, gallery: View, distractors: View) -> Any:
        """Returns the value from which a step makes its values of the context.

        Step.context_values receives it. The value is None if the gallery lacks the pictures or
        distractors for the table.
        """

    @classmethod
    def cost(cls, size: int, pictures: int, distractors: int, compared: int) -> int:
        """Returns the products of vectors that the table adds to those that every fit counts.

        Args:
            size: the size of the table.
            pictures, distractors: numbers of pictures and distractors of the gallery.
            compared: number of pairs of a query and a neighbour that a fit compares.
        """
        return 0


@dataclass(frozen=True, eq=False)
class DistractorHits(FittedTable):
    """The hits of distractors on gallery pictures.

    Attributes:
        table: the hits of all rows.
        top: number of gallery pictures that each distractor hits.
    """

    need = "hits"
    stage = "picks of distractors"
    arrays = {"picks": 2, "worst picks": 1}  # noqa: RUF012
    only_for_changes = True
    saved_values = {"penalty": "penalty"}  # noqa: RUF012

    table: HitTable
    top: int

    @property
    def size(self) -> int:
        """The number of gallery pictures that each distractor hits."""
        return self.top

    @classmethod
    def empty(cls, size: int) -> Self:
        """Returns the table of a gallery without rows."""
        return cls(HitTable.empty(0), size)

    def updated(self, change: Change, on_progress: CountOfTotal) -> Self:
        """Returns the table after a change."""
        gallery = change.gallery
        before = change.before.grown(gallery.stored.rows)
        either = replace(gallery, mask=gallery.mask | before.gallery)
        table = self.table.updated(
            change.gallery_searcher or change.search(either),
            gallery.stored,
            gallery.fingerprint,
            before=before,
            after=change.after,
            top=self.top,
            on_progress=on_progress,
        )
        return replace(self, table=table)

    def renumbered(self, alive: Mask) -> Self:
        """Returns the table when only the rows alive, bool [rows], are left."""
        return replace(self, table=self.table.renumbered(alive))

    def to_arrays(self) -> tuple[NDArray[Any], ...]:
        """Returns the counts and sums of the hits, float64 [rows, 2], and their `worst`."""
        counts = self.table.counts.astype(float)
        return np.stack([counts, self.table.sums], axis=1), self.table.worst

    @classmethod
    def of_arrays(cls, arrays: Sequence[NDArray[Any]], size: int) -> Self | None:
        """Returns the table that `to_arrays` saved, or None for other arrays."""
        hits, worst = arrays
        if hits.shape[1] != 2:
            return None
        return cls(HitTable(hits[:, 0].astype(np.int64), hits[:, 1].copy(), worst), size)

    def value(self, gallery: View, distractors: View) -> Any:
        """Returns the Hits of the gallery."""
        pictures, others = int(gallery.mask.sum()), int(distractors.mask.sum())
        if not pictures or not others:
            return None
        return self.table.hits(distractors=others, gallery=pictures, top=self.top)


@dataclass(frozen=True, eq=False)
class _Lists(FittedTable):
    """The nearest rows of each gallery picture; `among` names their side (a field of Sides)."""

    among: ClassVar[str]

    table: NearestTable

    @property
    def size(self) -> int:
        return self.table.n

    @classmethod
    def empty(cls, size: int) -> Self:
        return cls(NearestTable.empty(0, size))

    def updated(self, change: Change, on_progress: CountOfTotal) -> Self:
        table = self.table.updated(
            change.search,
            change.gallery.stored,
            change.gallery.fingerprint,
            before=change.before,
            after=change.after,
            among=self.among,
            on_progress=on_progress,
        )
        return replace(self, table=table)

    def renumbered(self, alive: Mask) -> Self:
        return replace(self, table=self.table.renumbered(alive))

    def to_arrays(self) -> tuple[NDArray[Any], ...]:
        return self.table.rows, self.table.scores

    @classmethod
    def of_arrays(cls, arrays: Sequence[NDArray[Any]], size: int) -> Self | None:
        rows, scores = arrays
        if rows.shape != scores.shape or rows.shape[1] != size or rows.dtype.kind != "i":
            return None
        if rows.size and not (rows.min() >= NO_ROW and rows.max() < len(rows)):
            return None
        return cls(NearestTable(rows.astype(np.int32, copy=False), scores))


class NearestPictures(_Lists):
    """The nearest gallery pictures of each gallery picture."""

    need = "neighbours"
    stage = "neighbourhoods"
    arrays = {"neighbours": 2, "neighbours cosines": 2}  # noqa: RUF012
    among = "gallery"

    def value(self, gallery: View, distractors: View) -> Any:
        """Returns int32 [rows, size + 1], each picture in front of its nearest pictures."""
        return self.table.itself_first(gallery.mask)

    @classmethod
    def cost(cls, size: int, pictures: int, distractors: int, compared: int) -> int:
        """Returns the products of vectors that it takes to make and use the table."""
        return pictures * pictures + _AUGMENTED * compared * size


class NearestDistractors(_Lists):
    """The nearest distractors of each gallery picture."""

    need = "distractor_similarity"
    stage = "likeness to distractors"
    arrays = {"likeness": 2, "likeness cosines": 2}  # noqa: RUF012
    among = "distractors"

    def value(self, gallery: View, distractors: View) -> Any:
        """Returns float32 [rows, size], the largest cosines of each picture to distractors."""
        return self.table.scores if distractors.mask.any() else None

    @classmethod
    def cost(cls, size: int, pictures: int, distractors: int, compared: int) -> int:
        """Returns the products of vectors that it takes to make and use the table.

        The table is made twice, because half of the distractors at a time are left out.
        """
        return 2 * distractors * pictures


KINDS: Mapping[str, type[FittedTable]] = {
    kind.need: kind for kind in (DistractorHits, NearestPictures, NearestDistractors)
}
