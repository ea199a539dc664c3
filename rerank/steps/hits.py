"""How often distractors hit gallery pictures, in a table that small changes update at little cost.

Each distractor hits its `top` nearest gallery pictures; the number of hits of a picture is its
k-occurrence. When pictures are added or removed, a distractor is searched again only if a changed
picture is nearer to it than the last of its hits. The hits of all other distractors stay the same,
so the table after a change is the one that a new count would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.progress import Count, CountOfTotal, no_count, no_count_of_total
from lmk.index.vectors.neighbours import NO_ROW
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.vectors import Vectors, row_blocks
from lmk.index.vectors.view import View

_BATCH = 4096  # rows at a time
_SLACK = 1e-4  # float32 products of stored vectors are nearer to the scores than this

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Hits:
    """The hits of distractors on a gallery.

    Attributes:
        counts: int64 [rows], the hits of each row.
        mean: float32 [rows], mean cosine of these hits; 0 for a row without hits.
        expected: number of hits of each gallery picture if all pictures had equally many.
    """

    counts: NDArray[np.int64]
    mean: NDArray[np.float32]
    expected: float


@dataclass(frozen=True, eq=False)
class Sides:
    """The rows of gallery pictures and the rows of distractors: bool [rows] each."""

    gallery: Mask
    distractors: Mask

    @classmethod
    def none(cls, rows: int) -> Sides:
        """Returns the sides of a gallery without pictures."""
        return cls(np.zeros(rows, np.bool_), np.zeros(rows, np.bool_))

    def grown(self, rows: int) -> Sides:
        """Returns the sides of the same gallery among more rows."""
        more = (0, rows - len(self.gallery))
        return Sides(np.pad(self.gallery, more), np.pad(self.distractors, more))


@dataclass(frozen=True, eq=False)
class HitTable:
    """The hits of distractors, by row of the gallery that holds both.

    Attributes:
        counts: int64 [rows], the hits of each gallery row.
        sums: float64 [rows], the sum of the cosines of those hits.
        worst: float32 [rows], the cosine of the last hit of each distractor; -inf where the
            gallery has fewer than `top` pictures.
    """

    counts: NDArray[np.int64]
    sums: NDArray[np.float64]
    worst: NDArray[np.float32]

    @classmethod
    def empty(cls, rows: int, distractor_rows: int | None = None) -> HitTable:
        """Returns a table without hits.

        Args:
            rows: number of rows of the gallery.
            distractor_rows: number of rows of the distractors, if they have row numbers of their
                own.
        """
        worst = np.full(rows if distractor_rows is None else distractor_rows, -np.inf, np.float32)
        return cls(np.zeros(rows, np.int64), np.zeros(rows), worst)

    def hits(self, *, distractors: int, gallery: int, top: int) -> Hits:
        """Returns the hits of that many distractors on that many gallery pictures."""
        mean = (self.sums / np.maximum(self.counts, 1)).astype(np.float32)
        return Hits(self.counts, mean, distractors * min(top, gallery) / max(gallery, 1))

    def updated(
        self, searcher: Searcher, stored: Vectors, fingerprint: str, *, before: Sides,
        after: Sides, top: int, on_progress: CountOfTotal = no_count_of_total,
    ) -> HitTable:  # fmt: skip
        """Returns the table of a gallery after a change.

        Args:
            searcher: an exact search over every row that is a gallery picture before or after.
            stored: the vectors of all rows, the removed ones too.
            fingerprint: the fingerprint of the embedder.
            before: the sides that the table was made for, with the same number of rows.
            after: the sides of the gallery now.
            top: number of hits of each distractor, the same as before.
            on_progress: called with (done, total) distractors, block by block; a distractor whose
                hits are counted again counts twice. Not called if no distractor is searched.
        """
        more = len(after.gallery) - len(self.counts)
        table = HitTable(
            np.concatenate([self.counts, np.zeros(more, np.int64)]),
            np.concatenate([self.sums, np.zeros(more)]),
            np.concatenate([self.worst, np.full(more, -np.inf, np.float32)]),
        )
        changed = np.flatnonzero(before.gallery != after.gallery)
        stays = np.flatnonzero(before.distractors & after.distractors)
        again = nearer(stored, stays, table.worst[stays], changed)
        gone = np.flatnonzero(before.distractors & ~after.distractors)
        new = np.flatnonzero(after.distractors & ~before.distractors)
        distractors = View(stored, np.ones(stored.rows, np.bool_), fingerprint)
        back, anew = np.concatenate([gone, again]), np.concatenate([new, again])
        asked_back = len(back) if before.gallery.any() else 0
        total = asked_back + (len(anew) if after.gallery.any() else 0)
        if asked_back:
            table.count(
                searcher, distractors, back, top=top, allow=before.gallery, times=-1,
                on_progress=lambda done: on_progress(done, total),
            )  # fmt: skip
        table.worst[back] = -np.inf
        if after.gallery.any():
            table.count(
                searcher, distractors, anew, top=top, allow=after.gallery,
                on_progress=lambda done: on_progress(asked_back + done, total),
            )  # fmt: skip
        table.sums[table.counts == 0] = 0  # removes rounding errors
        return table

    def renumbered(self, alive: Mask) -> HitTable:
        """Returns the table when only the rows alive, bool [rows], are left, numbered from 0 on."""
        return HitTable(self.counts[alive], self.sums[alive], self.worst[alive])

    def count(
        self, searcher: Searcher, distractors: View, queries: Rows, *, top: int,
        allow: Mask | None = None, times: int = 1, on_progress: Count = no_count,
    ) -> None:  # fmt: skip
        """Adds the hits of some distractors to the table.

        Args:
            searcher: a search over the pictures of the gallery.
            distractors: all distractors.
            queries: rows of the distractors to search.
            top: number of hits of each distractor.
            allow: bool [rows], the rows that may be hit. Default: all rows.
            times: 1 to add hits, -1 to subtract them.
            on_progress: called with the number of rows done, after each block.
        """
        rows, done = len(self.counts), 0
        for chosen in blocks(queries):
            near = searcher.search(distractors.embeddings(chosen), top, allow)
            there = near.rows != NO_ROW
            picked = near.rows[there]
            self.counts[:] += times * np.bincount(picked, minlength=rows)
            self.sums[:] += times * np.bincount(picked, near.scores[there], minlength=rows)
            self.worst[chosen] = near.scores[:, -1]
            done += len(chosen)
            on_progress(done)


def nearer(
    stored: Vectors, rows: Rows, worst: NDArray[np.float32], others: Rows
) -> NDArray[np.int64]:
    """Returns rows that may be as near to one of `others` as their `worst` cosine, float32 [n]."""
    if not others.size:
        return others
    near = np.zeros(len(rows), np.bool_)
    for places in blocks(np.arange(len(rows))):
        vectors = stored.read(rows[places])
        for some in blocks(others):
            near[places] |= (vectors @ stored.read(some).T).max(axis=1) >= worst[places] - _SLACK
    return rows[near]


def blocks(rows: Rows) -> Iterator[Rows]:
    """Yields rows, some thousand at a time."""
    return row_blocks(rows, _BATCH)
