"""Embeddings: the vectors of pictures with their ids and the fingerprint of their embedder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORM_TOLERANCE = 1e-3
_LEAST_NORM = 1e-15  # below it float32 cannot hold the squares


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Unit vectors of pictures; cosine similarity is their dot product.

    Attributes:
        vectors: float32 [n, d], each row of length 1 (within 1e-3).
        ids: the n picture ids, unique, in row order.
        fingerprint: fingerprint of their embedder (Embedder.fingerprint).

    Raises:
        ValueError: a shape or dtype is wrong, a number is not finite, a row has another length
            than 1, or an id is repeated.
    """

    vectors: NDArray[np.float32]
    ids: tuple[str, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            got = f"{self.vectors.dtype} {self.vectors.shape}"
            raise ValueError(f"embeddings must be float32 [n, d], got {got}")
        if len(self.ids) != len(self.vectors):
            raise ValueError(f"{len(self.vectors)} vectors but {len(self.ids)} ids")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("picture ids are repeated")
        norms = np.linalg.norm(self.vectors, axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))  # NaN compares false
        if wrong.size:
            row = int(wrong[0])
            raise ValueError(f"row {row} ({self.ids[row]}) has length {norms[row]}, not 1")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """The number of components of a vector."""
        return int(self.vectors.shape[1])


def unit_rows(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Returns the rows of [n, d] scaled to length 1; a row of zeros becomes (1, 0, 0, ...).

    A black picture can have a feature of zeros. An arbitrary unit vector avoids a NaN and is not
    similar to other pictures.
    """
    rows = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    some = norms > _LEAST_NORM
    units = np.where(some, rows / np.where(some, norms, 1), 0)
    units[~some[:, 0], 0] = 1
    return units.astype(np.float32, copy=False)
