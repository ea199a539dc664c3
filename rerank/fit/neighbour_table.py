"""A table of the nearest rows of each row, which small changes update at little cost.

Each querying row has a list of the n nearest among the rows that may be found, without itself.
Gallery pictures among each other give the neighbourhoods; gallery pictures among the distractors
give B(g). When rows are added or removed, a row is searched again only if its list holds a removed
row, or if an added row is nearer than the last of its list. The table after a change is therefore
the one that a new search would give.
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
from lmk.rerank.steps.hits import Mask, Rows, blocks, nearer


@dataclass(frozen=True, eq=False)
class Parties:
    """The two kinds of rows of a NearestTable.

    Attributes:
        asking: bool [rows], the rows that have a list.
        found: bool [rows], the rows that may be in a list.
    """

    asking: Mask
    found: Mask

    def grown(self, rows: int) -> Parties:
        """Returns the same parties among more rows."""
        more = np.zeros(rows - len(self.asking), np.bool_)
        return Parties(np.concatenate([self.asking, more]), np.concatenate([self.found, more]))


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
        before: Parties,
        after: Parties,
        on_progress: CountOfTotal = no_count_of_total,
    ) -> NearestTable:
        """Returns the table of a gallery after a change.

        Args:
            search: makes an exact searcher of a view.
            stored: the vectors of all rows, the removed ones too.
            fingerprint: of the embedder.
            before: what the table was made for, of no more rows than there are now.
            after: who asks and who may be found now.
            on_progress: called with (done, total) rows before the first and after each block of
                those that ask; not at all where none has to.
        """
        before = before.grown(len(after.asking))
        more = NearestTable.empty(len(after.asking) - len(self.rows), self.n)
        table = NearestTable(
            np.concatenate([self.rows, more.rows]), np.concatenate([self.scores, more.scores])
        )
        asked = table._again(stored, before, after)
        silent = ~after.asking
        table.rows[silent], table.scores[silent] = NO_ROW, -np.inf
        if asked.size:
            there = View(stored, after.found, fingerprint)
            on_progress(0, len(asked))  # making a searcher may take a while
            table._ask(search(there), there, asked, on_progress)
        return table

    def renumbered(self, alive: Mask) -> NearestTable:
        """Returns the table when only some of the rows are left, numbered from 0 on.

        Args:
            alive: bool [rows], those left; none of the others asks or is in a list.
        """
        number = np.cumsum(alive, dtype=np.int32) - np.int32(1)
        rows = self.rows[alive]
        return NearestTable(np.where(rows == NO_ROW, NO_ROW, number[rows]), self.scores[alive])

    def _again(self, stored: Vectors, before: Parties, after: Parties) -> Rows:
        """Returns the rows whose lists must be searched."""
        again = after.asking & ~before.asking
        stays = after.asking & before.asking
        gone, new = before.found & ~after.found, after.found & ~before.found
        if gone.any():
            again |= stays & (gone[self.rows] & (self.rows != NO_ROW)).any(axis=1)
        if new.any():
            asking = np.flatnonzero(stays & ~again)
            again[nearer(stored, asking, self.scores[asking, -1], np.flatnonzero(new))] = True
        return np.flatnonzero(again)

    def _ask(self, searcher: Searcher, there: View, asked: Rows, on_progress: CountOfTotal) -> None:
        """Searches the lists of some rows and writes them into the table."""
        done = 0
        for chosen in blocks(asked):
            found = searcher.search(there.embeddings(chosen), self.n + 1)
            # itself last, where it is found at all
            order = np.argsort(found.rows == chosen[:, None], axis=1, kind="stable")[:, : self.n]
            self.rows[chosen] = np.take_along_axis(found.rows, order, axis=1)
            self.scores[chosen] = np.take_along_axis(found.scores, order, axis=1)
            done += len(chosen)
            on_progress(done, len(asked))

    def itself_first(self, asking: Mask) -> NDArray[np.int32]:
        """Returns int32 [rows, n + 1], each picture that asks in front of its own list.

        Args:
            asking: bool [rows], as of Parties.
        """
        own = np.where(asking, np.arange(len(self.rows), dtype=np.int32), np.int32(NO_ROW))
        return np.column_stack([own, self.rows])
