"""Memory bank: recent embeddings of all training pictures, for comparison with a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class Memory:
    """Memory bank with a unit vector for each picture, a moving average of its embeddings.

    The memory of Wang et al., "Cross-Batch Memory for Embedding Learning", 2020, contains the last
    batches. This memory has a place for each picture, so it contains every landmark at any time.

    Args:
        vectors: float32 [n, dim], of any length; zeros for a picture that cannot be read.
        keep: the weight of the old vector in an update, 0 to 1.
        device: the device of the vectors. Default: that of `vectors`.

    Attributes:
        vectors: float32 [n, dim], of length 1 or 0.
        known: bool [n], False for zeros.
    """

    def __init__(self, vectors: Tensor, keep: float, device: torch.device | None = None) -> None:
        self._keep = keep
        self.vectors = functional.normalize(vectors.float().to(device or vectors.device))
        self.known = self.vectors.any(dim=1)

    def set(self, vectors: Tensor) -> None:
        """Restores the vectors of a checkpoint in place, without rounding."""
        self.vectors.copy_(vectors)
        self.known.copy_(self.vectors.any(dim=1))

    def update(self, numbers: Tensor, embeddings: Tensor) -> None:
        """Sets each vector to unit(keep * old + (1 - keep) * mean of the new unit vectors).

        Args:
            numbers: int64 [m], the number of each embedding's picture; numbers may repeat.
            embeddings: float [m, dim], of any length.
        """
        new = functional.normalize(embeddings.detach().to(self.vectors))
        seen = numbers.to(new.device)
        rows, place, times = torch.unique(seen, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(rows), new.shape[1], device=new.device).index_add_(0, place, new)
        mixed = self._keep * self.vectors[rows] + (1 - self._keep) * sums / times[:, None]
        self.vectors[rows] = functional.normalize(mixed)
        self.known[rows] = True
