"""Distillation: trains a network on the vectors of an ensemble, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest
from lmk.embed.embeddings import unit_rows
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.network.whitening import fit_whitening
from lmk.embed.progress import Progress, no_progress
from lmk.embed.train.task_config import Distillation, Taught
from lmk.embed.train.tasks import Task
from lmk.embed.train.training_features import require_enough, spread, stored_features

_ROWS = 8192  # number of rows at a time


@dataclass(frozen=True, eq=False)
class TeacherVectors:
    """Vectors of the training set by an ensemble.

    Attributes:
        vectors: float16 [n, dim], of length 1; zeros where `known` is False.
        known: bool [n], False for a picture that cannot be read.
        skipped: the pictures that cannot be read, each with a reason.
    """

    vectors: NDArray[np.float16]
    known: NDArray[np.bool_]
    skipped: tuple[Skipped, ...] = ()


def teacher_vectors(
    settings: Taught,
    manifests: Sequence[Manifest],
    dim: int,
    store: Path,
    *,
    on_progress: Progress = no_progress,
) -> TeacherVectors:
    """Returns the ensemble's vectors; features are stored, so that a stopped run can continue.

    Args:
        settings: the ensemble and its whitening.
        manifests: the training set.
        dim: number of components of the vectors.
        store: the folder of the feature stores, which several runs may share.
        on_progress: called with (stage, done, total).

    Raises:
        ManifestError: there are too few pictures for a whitening of `dim` components.
        ModelError: a teacher cannot be loaded.
    """
    members = []
    for teacher in settings.teachers:
        stores = []
        for size in teacher.sizes:
            embedder = Embedder.named(teacher.model, size=size)
            stage = f"teacher {teacher.model} at {size} px"
            read = stored_features(manifests, embedder, store, stage, on_progress)
            stores.append(read.store)
        members.append(stores)
    rows, sha256s = read.numbers, read.sha256s
    width = sum(stores[0].dim for stores in members)
    require_enough(len(rows), width, dim)
    sample = [sha256s[i] for i in spread(len(rows))]
    whitening = fit_whitening(_ensemble(members, sample), dim, settings.power)
    total = sum(len(manifest) for manifest in manifests)
    vectors = np.zeros((total, dim), np.float16)
    for start in range(0, len(rows), _ROWS):
        piece = slice(start, start + _ROWS)
        vectors[rows[piece]] = whitening.apply(_ensemble(members, sha256s[piece]))
    is_known = np.zeros(total, dtype=bool)
    is_known[rows] = True
    return TeacherVectors(vectors, is_known, read.skipped)


def _ensemble(
    members: Sequence[Sequence[FeatureStore]], sha256s: Sequence[str]
) -> NDArray[np.float32]:
    """Returns the networks' unit features, summed over sizes, concatenated: float32 [n, width]."""
    sums = [np.sum([unit_rows(store.read(sha256s)) for store in stores], 0) for stores in members]
    return np.concatenate([unit_rows(each) for each in sums], axis=1)


class DistillationTask(Task):
    """Distillation of a teacher's vectors and of the cosines between them.

    Args:
        settings: the weights of both losses.
        teacher: the vectors of the training set's pictures.
    """

    name = "distillation"

    def __init__(self, settings: Distillation, teacher: TeacherVectors) -> None:
        super().__init__()
        self.loss_weight = settings.loss_weight
        self._settings = settings
        self._teacher = teacher

    def targets(self, pictures: NDArray[np.int64]) -> Tensor:
        """Returns the teacher's vectors float32 [n, dim]; zeros if it has none."""
        return torch.from_numpy(self._teacher.vectors[pictures].astype(np.float32))

    def weights(self, targets: Tensor) -> Tensor:
        """Returns 1 for a picture with a vector, else 0: float32 [n]."""
        return (targets.abs().amax(dim=1) > 0).float()

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Returns feature (1 - cos(e, t)) + relation mean_j (cos(e, e_j) - cos(t, t_j))^2 [n]."""
        own = functional.normalize(embeddings.float())
        losses = self._settings.feature * (1 - (own * targets).sum(dim=1))
        if self._settings.relation and len(own) > 1:
            known = self.weights(targets)
            pairs = known[:, None] * known * (1 - torch.eye(len(own), device=own.device))
            squares = pairs * (own @ own.T - targets @ targets.T).square()
            relations = squares.sum(dim=1) / pairs.sum(dim=1).clamp(min=1)
            losses = losses + self._settings.relation * relations
        return losses

    def repeats(self, sampling: str) -> NDArray[np.float64]:
        """Returns 1 for a picture with a vector, else 0: float64 [pictures]."""
        return self._teacher.known.astype(np.float64)
