"""Vectors on GPUs, distributed evenly, which FAISS searches in float32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.neighbours import RowScores

faiss: Any = typed_faiss  # the stubs of FAISS lack functions that only some builds have

LEAST_ROWS = 100_000  # fewer rows are searched faster without a GPU
MOST_NEIGHBOURS = 2048  # limit of FAISS on a GPU


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows on one GPU.

    Attributes:
        rows: int64 [n], the row numbers.
        index: the FAISS index on the GPU.
        resources: resources of the index, which must exist as long as the index.
    """

    rows: NDArray[np.int64]
    index: Any
    resources: Any


def load(blocks: Iterable[RowScores], rows: int, dim: int) -> list[Shard]:
    """Returns shards of the vectors on all GPUs; none without a GPU or enough memory on the GPUs.

    Args:
        blocks: row numbers [n] and vectors [n, dim].
        rows: total number of rows in the blocks.
        dim: number of components of a vector.
    """
    count = min(faiss.get_num_gpus(), rows // LEAST_ROWS)
    if not count:
        return []
    try:
        indexes = [_empty(device, dim) for device in range(count)]
        held: list[list[NDArray[np.int64]]] = [[] for _ in range(count)]
        done = 0
        for numbers, vectors in blocks:
            device = done * count // rows
            indexes[device][0].add(vectors)
            held[device].append(numbers)
            done += len(numbers)
    except RuntimeError:  # FAISS raises it for errors of CUDA, such as a lack of memory
        return []
    return [
        Shard(np.concatenate(numbers), index, resources)
        for numbers, (index, resources) in zip(held, indexes, strict=True)
        if numbers
    ]


def search(shards: list[Shard], queries: NDArray[np.float32], depth: int) -> RowScores:
    """Returns the rows of highest float32 score with descending scores, [q, depth]."""
    answers = [
        (shard, *shard.index.search(queries, min(depth, len(shard.rows)))) for shard in shards
    ]
    scores = np.concatenate([scores for _, scores, _ in answers], axis=1)
    rows = np.concatenate([shard.rows[places] for shard, _, places in answers], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def _empty(device: int, dim: int) -> tuple[Any, Any]:
    resources = faiss.StandardGpuResources()
    config = faiss.GpuIndexFlatConfig()
    config.device = device
    return faiss.GpuIndexFlatIP(resources, dim, config), resources
