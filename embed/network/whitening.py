"""Whitening: PCA of a gallery's own features, with the strong components scaled down.

Jégou and Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA and
whitening", ECCV 2012. A power below 1 whitens partly. The fit needs no labels: it uses the
features of gallery and distractors, and takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import unit_rows

WHITENING_VERSION = 1  # part of every embedder's fingerprint; increase it when vectors change


@dataclass(frozen=True, eq=False)
class Whitening:
    """Centring and linear map: unit(x) -> unit((unit(x) - mean) @ matrix).

    Attributes:
        mean: float32 [d_in].
        matrix: float32 [d_in, d_out].
    """

    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.matrix.ndim != 2 or len(self.mean) != len(self.matrix):
            raise ValueError(f"shapes {self.mean.shape} and {self.matrix.shape} do not fit")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.matrix).all()):
            raise ValueError("a whitening must be finite")

    @property
    def dim(self) -> int:
        """The number of output components."""
        return int(self.matrix.shape[1])

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns unit vectors [n, d_out] of raw features [n, d_in] of any length."""
        return unit_rows((unit_rows(features) - self.mean) @ self.matrix)


WHITENED_DIM = 512
POWER = 0.5
LEAST_PICTURES = 1000  # with fewer, whitening makes the rejection worse (docs/results.md)
MOST_PICTURES = 100_000  # more pictures do not improve the fit


def fit_whitening(
    features: NDArray[np.float32], dim: int = WHITENED_DIM, power: float = POWER
) -> Whitening:
    """Returns a PCA of unit(features), each component divided by its eigenvalue ** (power / 2).

    Args:
        features: float32 [n, d], of any length.
        dim: number of components; at most the rank that n features can have.
        power: 1 is full whitening, 0 is PCA alone.
    """
    rows = unit_rows(features)
    mean = rows.mean(axis=0)
    centred = rows - mean
    values, vectors = np.linalg.eigh((centred.T @ centred / len(rows)).astype(np.float64))
    keep = np.argsort(-values, kind="stable")[: max(1, min(dim, len(rows) - 1, rows.shape[1]))]
    # The sign of an eigenvector is arbitrary; it is fixed here, so that runs agree.
    signs = np.sign(vectors[np.abs(vectors[:, keep]).argmax(axis=0), keep])
    scale = np.maximum(values[keep], 1e-9) ** (-power / 2)
    return Whitening(mean.astype(np.float32), (vectors[:, keep] * signs * scale).astype(np.float32))


def save_whitening(whitening: Whitening, path: Path) -> None:
    """Writes a whitening as safetensors."""
    from safetensors.numpy import save

    matrix = np.ascontiguousarray(whitening.matrix)
    path.write_bytes(save({"mean": whitening.mean, "matrix": matrix}))


def load_whitening(path: Path, feature_dim: int) -> Whitening | None:
    """Returns the whitening of a file, or None if the file does not exist.

    Raises:
        ValueError: the file is damaged, or is for features of another dimension.
    """
    if not path.exists():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(path.read_bytes())
        whitening = Whitening(tensors["mean"], tensors["matrix"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"damaged whitening: {error}") from error
    if len(whitening.mean) != feature_dim:
        raise ValueError(f"a whitening of {len(whitening.mean)} components, not {feature_dim}")
    return whitening
