"""Scores: the number that every search returns for a query and a stored vector."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SUMS = 16


def padded(vectors: NDArray[np.float32], rows: int = 0) -> NDArray[np.float32]:
    """Returns the vectors with zeros up to a multiple of SUMS components, and up to `rows` rows."""
    n, dim = vectors.shape
    whole = np.zeros((max(n, rows), -(-dim // SUMS) * SUMS), np.float32)
    whole[:n, :dim] = vectors
    return whole


def scores(query: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the float64 dot products of a query, or of several, and vectors, rounded to float32.

    A product of two float32 is exact in float64. The sums are added in a fixed order (SUMS partial
    sums of every SUMS-th product, added by halves), which the compiled search uses too. A vector
    therefore gets the same score alone and with others, on any processor.

    Args:
        query: float32 [dim], or [n, dim] for a query of its own for each vector.
        vectors: float32 [n, dim], as Vectors.read returns them.

    Returns:
        float32 [n].
    """
    products = padded(vectors).astype(np.float64)
    products *= padded(np.atleast_2d(query))
    # numpy adds along an axis that is not the last one number by number, in order
    sums = np.add.reduce(products.reshape(len(vectors), -1, SUMS), axis=1)
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return np.asarray(sums[:, 0], np.float32)
