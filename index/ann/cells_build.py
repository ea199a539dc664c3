"""Cells: the codes of exact search sorted by cell, so that near vectors lie together.

FAISS trains the cells by spherical k-means; each vector belongs to the cell with the nearest
centre. A cell is represented by the mean of its vectors, whose length determines their spread: the
root mean square distance of vectors of length 1 from their mean m is sqrt(1 - |m|^2).
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from lmk.embed.plain_files import open_plain
from lmk.embed.progress import Message
from lmk.index.ann import index_files
from lmk.index.ann.faiss_factory import CELLS, number_of_cells, rows_to_train
from lmk.index.ann.index_files import StoredIndex
from lmk.index.exact.codes import Forms, code_block, in_memory, is_whole, size_of, split
from lmk.index.exact.flat import blas
from lmk.index.exact.tiles import PANEL
from lmk.index.vectors.neighbours import NO_ROW
from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import View

faiss: Any = typed_faiss  # its stubs do not know all classes

_MARK = 0x31736C6C6563  # "cells1", the version of the layout
_HEADER = 64  # bytes; the codes begin at a cache line
_ROUNDS = 8  # of k-means; more rounds move few vectors
_BLOCK_ROWS = 16_384  # assigned to cells at a time
_BLOCK_PANELS = 128  # coded at a time


@dataclass(frozen=True, eq=False)
class Cells:
    """The codes of vectors, sorted by cell, then by row; each cell begins with a panel.

    Attributes:
        codes: uint8 [panels, steps, PANEL, 4], see PartCodes.
        scales, errors: float32 [panels, PANEL], see PartCodes.
        rows: int64 [panels, PANEL], the row numbers; NO_ROW fills a cell's last panel.
        firsts: int64 [cells + 1], the first panel of each cell, and the number of panels.
        means: float32 [cells, dim], the mean of the vectors of each cell.
        file: the mapped file, or None.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    errors: NDArray[np.float32]
    rows: NDArray[np.int64]
    firsts: NDArray[np.int64]
    means: NDArray[np.float32]
    file: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.means)

    @property
    def whole(self) -> bool:
        """True if the file was not cut since it was mapped."""
        return is_whole(self.file)

    @property
    def spreads(self) -> NDArray[np.float32]:
        """The root mean square distance of each cell's vectors from their mean, float32 [cells]."""
        squares = np.einsum("ij,ij->i", self.means, self.means)
        return np.asarray(np.sqrt(np.maximum(1 - squares, 0)), np.float32)


@dataclass(frozen=True, eq=False)
class _Sorted:
    """The vectors of each cell; see Cells."""

    rows: NDArray[np.int64]
    firsts: NDArray[np.int64]
    means: NDArray[np.float32]

    def write(self, stored: Vectors, append: Callable[[Any], object]) -> None:
        """Appends header, codes, scales, errors, rows, firsts and means."""
        header = np.zeros(_HEADER // 8, "<i8")
        header[:4] = _MARK, len(self.rows), len(self.means), stored.dim
        append(header)
        scales = np.zeros(self.rows.shape, np.float32)
        errors = np.zeros(self.rows.shape, np.float32)
        for start in range(0, len(self.rows), _BLOCK_PANELS):
            piece = slice(start, start + _BLOCK_PANELS)
            rows = self.rows[piece]
            there = rows != NO_ROW
            vectors = np.zeros((*rows.shape, stored.dim), np.float32)
            vectors[there] = stored.read(rows[there])
            codes = np.full((len(rows), -(-stored.dim // 4), PANEL, 4), 128, np.uint8)
            flat = vectors.reshape(rows.size, stored.dim)
            flat[~there.reshape(-1)] = 1  # any vector that can be coded; it is never returned
            numbers = scales[piece].reshape(-1), errors[piece].reshape(-1)
            code_block(flat, codes, *numbers)
            append(codes)
        for array in (scales, errors, self.rows, self.firsts, self.means):
            append(np.ascontiguousarray(array))


def load_or_build(view: View, on_message: Message) -> StoredIndex:
    """Returns the cells of a view (StoredIndex.index), from a suitable file or built.

    Raises:
        GalleryDamaged: see Vectors.read.
    """
    return index_files.load(view, CELLS, partial(_read, view.dim, len(view.mask))) or build(
        view, on_message
    )


def build(view: View, on_message: Message) -> StoredIndex:
    """Builds and saves the cells of a view."""
    rows = np.flatnonzero(view.mask)
    factory = f"Cells{number_of_cells(len(rows))}"
    sorted_vectors = _sorted(view.stored, rows, _centres(view.stored, rows, factory, on_message))
    stem, described = index_files.describe(view, CELLS, factory)
    on_message(f"coding {len(rows)} vectors for {factory}")

    def write(path: Path) -> None:
        with path.open("wb") as file:
            sorted_vectors.write(view.stored, lambda array: file.write(array.data))

    path = index_files.save(view, stem, described, write)
    cells = None if path is None else _read(view.dim, len(view.mask), path, len(rows))
    if cells is None:
        forms = _forms(len(sorted_vectors.rows), len(sorted_vectors.means), view.dim)
        size = _HEADER + size_of(forms)
        cells = _cells(in_memory(size, partial(sorted_vectors.write, view.stored)), view.dim)
    return StoredIndex(cells, rows, view.mask, stem, factory)


def _centres(
    stored: Vectors, rows: NDArray[np.int64], factory: str, on_message: Message
) -> NDArray[np.float32]:
    """Returns trained centres of cells, float32 [cells, dim] of length 1."""
    cells = number_of_cells(len(rows))
    count = rows_to_train(cells, len(rows))
    on_message(f"training {factory} with {count} of {len(rows)} vectors")
    sample = np.sort(np.random.default_rng(0).choice(rows, count, replace=False))
    means = faiss.Kmeans(stored.dim, cells, niter=_ROUNDS, spherical=True, seed=0)
    with blas(count):
        means.train(stored.read(sample))
    return np.asarray(means.centroids)


def _sorted(stored: Vectors, rows: NDArray[np.int64], centres: NDArray[np.float32]) -> _Sorted:
    """Sorts rows by the cell with the nearest centre; empty cells are left out."""
    nearest = faiss.IndexFlatIP(stored.dim)
    nearest.add(centres)
    cell = np.empty(len(rows), np.int64)
    sums = np.zeros(centres.shape)
    for start in range(0, len(rows), _BLOCK_ROWS):
        piece = slice(start, start + _BLOCK_ROWS)
        vectors = stored.read(rows[piece])
        with blas(len(vectors)):
            cell[piece] = nearest.search(vectors, 1)[1][:, 0]
        order = np.argsort(cell[piece], kind="stable")
        here, first = np.unique(cell[piece][order], return_index=True)
        sums[here] += np.add.reduceat(vectors[order], first, axis=0)
    counts = np.bincount(cell, minlength=len(centres))
    there = counts > 0
    means = (sums[there] / counts[there, None]).astype(np.float32)
    panels = -(-counts[there] // PANEL)
    firsts = np.concatenate([[0], np.cumsum(panels)])
    slots = np.full((firsts[-1], PANEL), NO_ROW, np.int64)
    order = np.argsort(cell, kind="stable")
    of_cell = np.repeat(firsts[:-1] * PANEL, counts[there])
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    slots.reshape(-1)[of_cell + within] = rows[order]
    return _Sorted(slots, firsts, means)


def _read(dim: int, rows_of_gallery: int, path: Path, rows: int) -> Cells | None:
    """Returns the cells in a file if they have `rows` rows of the gallery, else None."""
    with os.fdopen(open_plain(path, below=path.parent), "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cells = _cells(np.frombuffer(mapped, np.uint8), dim, mapped)
    within = rows_of_gallery > int(cells.rows.max(initial=NO_ROW))
    return cells if within and np.count_nonzero(cells.rows != NO_ROW) == rows else None


def _forms(panels: int, cells: int, dim: int) -> Forms:
    """Returns shapes and types of codes, scales, errors, rows, firsts and means."""
    of_panels = [((panels, PANEL), kind) for kind in ("<f4", "<f4", "<i8")]
    codes = (panels, math.ceil(dim / 4), PANEL, 4)
    return [(codes, "u1"), *of_panels, ((cells + 1,), "<i8"), ((cells, dim), "<f4")]


def _cells(data: NDArray[np.uint8], dim: int, file: mmap.mmap | None = None) -> Cells:
    """Returns the cells in the data of a file (ValueError if they have another dim)."""
    if len(data) < _HEADER:
        raise ValueError("no header")
    mark, panels, count, of_dim = (int(number) for number in data[:_HEADER].view("<i8")[:4])
    forms = _forms(panels, count, dim)
    if mark != _MARK or of_dim != dim or len(data) != _HEADER + size_of(forms):
        raise ValueError("not the cells of this dim")
    cells = Cells(*[*split(data[_HEADER:], forms), file])
    # Compiled code uses these numbers without a check, and a file may come from somebody else.
    firsts = cells.firsts
    if firsts[0] != 0 or firsts[-1] != panels or (np.diff(firsts) < 0).any():
        raise ValueError("the panels do not fit the cells")
    if (cells.rows < NO_ROW).any():
        raise ValueError("a row number is negative")
    return cells
