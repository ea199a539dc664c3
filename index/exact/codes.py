"""Codes: stored vectors and queries as bytes, with the error of each code.

A vector x is coded as scale * c, where c are integers from -127 to 127 and the scale is the largest
absolute component divided by 127. For codes x~ of x and q~ of q

    |q . x - q~ . x~|  <=  |q| |x - x~| + |q - q~| |x~|        (Cauchy-Schwarz)

and both differences are known exactly, so a search over the codes can exclude vectors.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lmk.embed.plain_files import open_plain
from lmk.index.exact.tiles import INT8_QUERIES, PANEL
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.vectors import VectorPart, Vectors, lengths

_EDITION = 1  # version of the file layout
_LEAST_ROWS = 1024  # smaller parts have no file, as they are coded fast and soon replaced
_BLOCK_ROWS = 4096  # rows that are coded at a time; a multiple of PANEL
_MAX_LENGTH = 1.001  # largest length of a normalised vector in float32
_ROUNDING = 1e-6  # error of the scan's few float32 operations and of a score: 2 * 4 * 2^-24 each

Forms = Sequence[tuple[tuple[int, ...], str]]  # shape and type of each array


@dataclass(frozen=True, eq=False)
class PartCodes:
    """The codes of one part of the stored vectors.

    Attributes:
        codes: uint8 [panels, steps, PANEL, 4]: in each step four components of PANEL vectors, plus
            128; [0, steps, PANEL, 4] if only the lengths are computed.
        scales: float32 [panels, PANEL].
        errors: float32 [panels, PANEL], at least the length of vector - scale * code.
        lengths: float32 [panels, PANEL], the lengths of the stored vectors.
        file: the mapped file, or None.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    errors: NDArray[np.float32]
    lengths: NDArray[np.float32]
    file: mmap.mmap | None = None

    @property
    def fours(self) -> NDArray[np.uint32]:
        """The codes in groups of four, uint32 [panels, steps, PANEL]."""
        return self.codes.view(np.uint32)[..., 0]

    @property
    def whole(self) -> bool:
        """Whether the file was not truncated since it was mapped."""
        return is_whole(self.file)


def is_whole(file: mmap.mmap | None) -> bool:
    """Returns whether a mapped file is complete; a read past its end would kill the process."""
    return file is None or file.size() == len(file)


def codes_of(
    stored: Vectors, part: VectorPart, derived: DerivedFiles, workers: Executor, *, int8: bool
) -> PartCodes:
    """Returns the codes of a part, from their file if it is intact.

    Args:
        stored: the vectors that the part belongs to.
        part: the part.
        derived: the files of codes. Small parts and parts without a key have no file.
        workers: the threads that code the blocks.
        int8: False computes only the lengths.

    Raises:
        GalleryDamaged: a vector does not have the length of a stored vector.
    """
    panels, steps = -(-part.rows // PANEL), -(-stored.dim // 4)
    forms = [((panels if int8 else 0, steps, PANEL, 4), "u1"), *[((panels, PANEL), "<f4")] * 3]
    size = size_of(forms)
    name = f"{'int8' if int8 else 'lengths'}-{_EDITION}-{part.key}"

    def write(path: Path) -> None:
        with path.open("wb") as file:
            _code(stored, part, workers, int8, lambda block: file.write(block.data))

    path = None
    if part.key and part.rows >= _LEAST_ROWS:
        path = derived.load(name) or derived.save(name, write, [part.key])
    mapped = None if path is None else _mapped(path, size)
    if mapped is None:
        data = in_memory(size, partial(_code, stored, part, workers, int8))
        return PartCodes(*split(data, forms))
    return PartCodes(*[*split(np.frombuffer(mapped, np.uint8), forms), mapped])


def size_of(forms: Forms) -> int:
    """Returns the number of bytes of arrays with these shapes and types."""
    return sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in forms)


def split(data: NDArray[np.uint8], forms: Forms) -> list[Any]:
    """Returns the arrays that `data` stores one after the other."""
    ends = [size_of(forms[: i + 1]) for i in range(len(forms))]
    pieces = zip(np.split(data, ends), forms, strict=False)
    return [piece.view(kind).reshape(shape) for piece, (shape, kind) in pieces]


def _mapped(path: Path, size: int) -> mmap.mmap | None:
    """Returns the mapped file, or None if it does not exist or has another size."""
    try:
        with os.fdopen(open_plain(path, below=path.parent), "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None


def in_memory(
    size: int, write: Callable[[Callable[[NDArray[Any]], object]], object]
) -> NDArray[np.uint8]:
    """Returns memory with the arrays that `write` appends, aligned to a cache line."""
    room = np.empty(size + 63, np.uint8)
    data = room[-room.ctypes.data % 64 :][:size]
    done = 0

    def append(array: NDArray[Any]) -> None:
        nonlocal done
        data[done : done + array.nbytes] = array.reshape(-1).view(np.uint8)
        done += array.nbytes

    write(append)
    return data


def _code(
    stored: Vectors,
    part: VectorPart,
    workers: Executor,
    int8: bool,
    append: Callable[[NDArray[Any]], object],
) -> None:
    """Appends the codes of a part, block by block, then scales, errors and lengths."""
    panels = -(-part.rows // PANEL)
    numbers = np.zeros((3, panels * PANEL), np.float32)
    numbers[2] = 1.0
    steps = -(-stored.dim // 4)

    def code(start: int) -> NDArray[np.uint8]:
        vectors = part.array[start : start + _BLOCK_ROWS].astype(np.float32)
        stop = start + len(vectors)
        norms = lengths(vectors)
        stored.check_lengths(norms, np.arange(start, stop) + part.first_row)
        numbers[2, start:stop] = norms
        block = -(-len(vectors) // PANEL) if int8 else 0
        codes = np.full((block, steps, PANEL, 4), 128, np.uint8)
        if int8:
            vectors /= norms[:, None]
            code_block(vectors, codes, numbers[0, start:stop], numbers[1, start:stop])
        return codes

    part.check()
    starts = range(0, part.rows, _BLOCK_ROWS)
    ahead = 16  # blocks in memory at a time
    for first in range(0, len(starts), ahead):
        for codes in workers.map(code, starts[first : first + ahead]):
            append(codes)
    append(numbers)
    release(part.array)


def release(array: NDArray[Any]) -> None:
    """Releases the memory of the pages of a mapped file; later reads load these pages again.

    Scoring reads few vectors, but the system maps the pages around each vector, and soon the whole
    file.
    """
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


@njit(nogil=True, cache=True)
def code_block(
    vectors: NDArray[np.float32],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    errors: NDArray[np.float32],
) -> None:  # pragma: no cover (compiled)
    """Writes codes, scales and errors of unit vectors float32 [n, dim]; see PartCodes.

    Every code must be 128 before the call.
    """
    for row in range(vectors.shape[0]):
        largest = np.float32(0)
        for j in range(vectors.shape[1]):
            largest = max(largest, abs(vectors[row, j]))
        scale = np.float32(largest / np.float32(127))
        per_step = 1 / np.float64(scale)
        panel, lane = row // PANEL, row % PANEL
        lost = 0.0
        for j in range(vectors.shape[1]):
            value = np.float64(vectors[row, j])
            code = np.rint(value * per_step)
            code = min(max(code, -127.0), 127.0)
            codes[panel, j // 4, lane, j % 4] = np.uint8(code + 128.0)
            lost += (value - np.float64(scale) * code) ** 2
        scales[row] = scale
        errors[row] = np.float32(np.sqrt(lost) * (1 + 1e-6))


@dataclass(frozen=True, eq=False)
class QueryCodes:
    """Queries in the form of the scan.

    Attributes:
        plain: int8 [q + padding queries of the last tile, 4 * steps], the codes.
        codes: int8 [all tiles, each [steps, width, 4] of its width], the same codes.
        starts: int32 [q + padding queries of the last tile], the correction for the offset of 128
            in every code of a vector.
        factors: float32 with the shape of starts, the factors of a vector's error, in units.
        units: float64 [q], the scales.
        slacks: float64 [q]; a score is at most unit * (value of the scan) + slack.
    """

    plain: NDArray[np.int8]
    codes: NDArray[np.int8]
    starts: NDArray[np.int32]
    factors: NDArray[np.float32]
    units: NDArray[np.float64]
    slacks: NDArray[np.float64]

    @classmethod
    def of(cls, queries: NDArray[np.float32]) -> QueryCodes:
        """Returns the codes of queries, float32 [q, dim], of length near 1."""
        count, dim = queries.shape
        widest = INT8_QUERIES[0]
        padded_count = count + widest
        wide = queries.astype(np.float64)
        units = np.abs(wide).max(axis=1) / 127
        codes = np.zeros((padded_count, -(-dim // 4) * 4), np.int8)
        codes[:count, :dim] = np.rint(wide / units[:, None])
        lost = _norms(wide - units[:, None] * codes[:count, :dim])
        length = _norms(wide)
        starts = (-128 * codes.sum(axis=1, dtype=np.int64)).astype(np.int32)
        factors = np.zeros(padded_count, np.float32)
        factors[:count] = (length + lost) / units * (1 + 1e-6)
        slacks = _MAX_LENGTH * lost + _ROUNDING * (length + 2)
        packed = [np.empty(0, np.int8)]
        at = 0
        while at < count:
            left = count - at
            width = min((w for w in INT8_QUERIES if w >= left), default=widest)
            tile = codes[at : at + width].reshape(width, -1, 4)
            packed.append(np.ascontiguousarray(tile.transpose(1, 0, 2)).reshape(-1))
            at += width
        return cls(codes, np.concatenate(packed), starts, factors, units, slacks)


def _norms(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(vectors, axis=1))


def float_slacks(queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the bound of a score minus the scan's float32 value for each query, float64 [q].

    Any float32 sum of d products is within d u / (1 - d u) of the true sum, u = 2^-24, times the
    lengths (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    dim = queries.shape[1]
    length = _norms(queries.astype(np.float64))
    return np.asarray(1.01 * (dim + 8) * 2.0**-24 * length + _ROUNDING * (length + 2))
