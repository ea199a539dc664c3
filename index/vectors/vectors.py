"""Vectors: the stored vectors of all rows, in memory-mapped parts.

Opening a gallery of a million pictures therefore reads no vectors, and several processes share the
memory. The data of searches (codes, FAISS files) are derived from a part and can be stored under
the key of the part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import GalleryDamaged
from lmk.index.vectors.files import REPAIR

_NORM_TOLERANCE = 1e-2  # rounding to half precision moves a length by less than 1e-3


@dataclass(frozen=True, eq=False)
class VectorPart:
    """The vectors of consecutive rows.

    Attributes:
        first_row: the row number of the first vector.
        array: float16 or float32 [rows, dim], never changed; rows of length 1 within rounding.
        key: identifier of the content: two parts with the same key have the same bytes.
        check: raises GalleryDamaged if the mapped file was cut; reading a mapping past the end of
            its file would end the process.
    """

    first_row: int
    array: NDArray[Any]
    key: str
    check: Callable[[], None] = lambda: None

    @property
    def rows(self) -> int:
        """The number of vectors."""
        return len(self.array)


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of rows 0 to `rows` - 1.

    Attributes:
        parts: the parts in the order of their rows, without a gap.
        dim: number of components of a vector.
        where: the gallery, for errors.

    Raises:
        ValueError: a part has another dim or dtype, or there is a gap.
    """

    parts: tuple[VectorPart, ...]
    dim: int
    where: Path | None = None

    def __post_init__(self) -> None:
        after = 0
        for part in self.parts:
            if part.first_row != after:
                raise ValueError(f"a part begins at row {part.first_row}, row {after} is next")
            if part.array.shape != (part.rows, self.dim) or part.array.dtype not in ("f2", "f4"):
                got = f"{part.array.dtype} {part.array.shape}"
                raise ValueError(f"a part must be float16 or float32 [n, {self.dim}], got {got}")
            after += part.rows

    @classmethod
    def of_array(cls, array: NDArray[np.float32], key: str = "") -> Vectors:
        """Returns vectors in memory, float32 [n, dim]."""
        parts = (VectorPart(0, array, key),) if len(array) else ()
        return cls(parts, array.shape[1])

    @property
    def rows(self) -> int:
        """The number of vectors."""
        return sum(part.rows for part in self.parts)

    def check(self) -> None:
        """Checks that no file behind the parts was cut (GalleryDamaged)."""
        for part in self.parts:
            part.check()

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the vectors of rows (any order, repeats allowed) as unit rows, float32 [n, dim].

        Every search computes scores from these numbers, so that all of them agree.

        Args:
            rows: int64 [n], each from 0 to `rows` - 1.

        Raises:
            GalleryDamaged: a vector does not have a length near 1, as every stored vector has.
        """
        vectors = self.gather(rows)
        norms = lengths(vectors)
        self.check_lengths(norms, rows)
        vectors /= norms[:, None]
        return vectors

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the stored vectors of rows, whose length is 1 within rounding or damage.

        They are for rough scores; `read` returns the vectors for exact ones.

        Args:
            rows: int64 [n], any order, repeats allowed, each from 0 to `rows` - 1.

        Returns:
            float32 [n, dim].
        """
        vectors = np.empty((len(rows), self.dim), np.float32)
        order = np.argsort(rows, kind="stable")
        wanted = rows[order]
        for part, low, high in self._spans(wanted):
            part.check()
            stored = np.asarray(part.array)  # as indexing a memmap takes twice the time
            vectors[order[low:high]] = stored.take(wanted[low:high] - part.first_row, axis=0)
        return vectors

    def check_lengths(self, norms: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Checks that vectors have the length of stored vectors.

        Args:
            norms: float32 [n], a result of `lengths`.
            rows: int64 [n], the rows of the vectors.

        Raises:
            GalleryDamaged: a vector has another length; the error names the first row.
        """
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= _NORM_TOLERANCE))  # NaN compares false
        if wrong.size:
            what = f"the vector of row {rows[wrong[0]]} has length {norms[wrong[0]]:g}, not 1"
            raise GalleryDamaged(what, where=self.where, remedy=REPAIR)

    def _spans(self, wanted: NDArray[np.int64]) -> Iterator[tuple[VectorPart, int, int]]:
        """Yields each part with the range of the ascending rows that lie in it, if any."""
        firsts = [part.first_row for part in self.parts]
        bounds: Sequence[int] = np.searchsorted(wanted, [*firsts, self.rows]).tolist()
        for part, (low, high) in zip(self.parts, pairwise(bounds), strict=True):
            if high > low:
                yield part, low, high


def row_blocks(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Yields rows, `size` of them at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the lengths of vectors, float32 [n]; NaN or inf for too large numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)))
