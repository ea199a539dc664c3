"""A table of the nearest rows of each row, which small changes update at little cost.

Each gallery picture has a list of its n nearest rows, without itself. The lists of gallery pictures
give the neighbourhoods; the lists of distractors give B(g). When rows are added or removed, a row
is searched again only if its list holds a removed row, or if an added row is nearer than the last
of its list. The table after a change is therefore the one that a new search would give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.progress import CountOfTotal, no_count_of_total
from lmk.index.vectors.neighbours import NO_ROW
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import View
from lmk.rerank.steps.hits import Mask, Rows, Sides, blocks, nearer


@dataclass(frozen=True, eq=False)
class NearestTable:
    """The n nearest rows of each row of a gallery.

    Attributes:
        rows: int32 [rows, n], nearest first; ties go to the lower row. NO_ROW fills a list with
            fewer rows, and the places of a row without a list.
        scores: float32 [rows, n], the cosines of `rows`; -inf where there is no row.
    """

    rows: NDArray[np.int32]
    scores: NDArray[np.float32]

    @classmethod
    def empty(cls, rows: int, n: int) -> NearestTable:
        """Returns the table of a gallery in which no row has a list."""
        return cls(np.full((rows, n), NO_ROW, np.int32), np.full((rows, n), -np.inf, np.float32))

    @property
    def n(self) -> int:
        """The length of a list."""
        return int(self.rows.shape[1])

    def updated(
        self,
        search: Callable[[View], Searcher],
        stored: Vectors,
        fingerprint: str,
        *,
        before: Sides,
        after: Sides,
        among: str,
        on_progress: CountOfTotal = no_count_of_total,
    ) -> NearestTable:
        """Returns the table of a gallery after a change.

        Args:
            search: makes an exact searcher of a view.
            stored: the vectors of all rows, the removed ones too.
            fingerprint: the fingerprint of the embedder.
            before: the sides that the table was made for, with at most as many rows as now.
            after: the sides now. Each gallery row has a list.
            among: the side whose rows are in the lists, "gallery" or "distractors".
            on_progress: called with (done, total) rows before the first block of searched rows and
                after each block. Not called where no row is searched.
        """
        before = before.grown(len(after.gallery))
        more = NearestTable.empty(len(after.gallery) - len(self.rows), self.n)
        table = NearestTable(
            np.concatenate([self.rows, more.rows]), np.concatenate([self.scores, more.scores])
        )
        rows = table._outdated(stored, before, after, among)
        table.rows[~after.gallery], table.scores[~after.gallery] = NO_ROW, -np.inf
        if rows.size:
            view = View(stored, getattr(after, among), fingerprint)
            on_progress(0, len(rows))  # the construction of a searcher may take a while
            table._search(search(view), view, rows, on_progress)
        return table

    def renumbered(self, alive: Mask) -> NearestTable:
        """Returns the table when only some of the rows are left, numbered from 0 on.

        Args:
            alive: bool [rows], the rows left. No other row has a list or is in one.
        """
        number = np.cumsum(alive, dtype=np.int32) - np.int32(1)
        rows = self.rows[alive]
        return NearestTable(np.where(rows == NO_ROW, NO_ROW, number[rows]), self.scores[alive])

    def _outdated(self, stored: Vectors, before: Sides, after: Sides, among: str) -> Rows:
        """Returns the rows whose lists must be searched."""
        old, now = getattr(before, among), getattr(after, among)
        again = after.gallery & ~before.gallery
        stays = after.gallery & before.gallery
        gone, new = old & ~now, now & ~old
        if gone.any():
            again |= stays & (gone[self.rows] & (self.rows != NO_ROW)).any(axis=1)
        if new.any():
            rows = np.flatnonzero(stays & ~again)
            again[nearer(stored, rows, self.scores[rows, -1], np.flatnonzero(new))] = True
        return np.flatnonzero(again)

    def _search(
        self, searcher: Searcher, view: View, rows: Rows, on_progress: CountOfTotal
    ) -> None:
        """Searches the lists of some rows and writes them into the table."""
        done = 0
        for block in blocks(rows):
            near = searcher.search(view.embeddings(block), self.n + 1)
            # The row itself comes last, if the search returns it.
            order = np.argsort(near.rows == block[:, None], axis=1, kind="stable")[:, : self.n]
            self.rows[block] = np.take_along_axis(near.rows, order, axis=1)
            self.scores[block] = np.take_along_axis(near.scores, order, axis=1)
            done += len(block)
            on_progress(done, len(rows))

    def itself_first(self, pictures: Mask) -> NDArray[np.int32]:
        """Returns int32 [rows, n + 1], each gallery picture in front of its own list.

        Args:
            pictures: bool [rows], the gallery pictures.
        """
        own = np.where(pictures, np.arange(len(self.rows), dtype=np.int32), np.int32(NO_ROW))
        return np.column_stack([own, self.rows])
