"""Tasks that compare a batch with the memory of all pictures, or with the classes' centres."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lmk.embed.errors import ManifestError
from lmk.embed.train.distillation import TeacherVectors
from lmk.embed.train.memory_bank import Memory
from lmk.embed.train.task_config import Contrast, Neighbours, Repulsion
from lmk.embed.train.tasks import Task, class_repeats

_NEVER = -1e9  # a logit whose exponential is 0 and whose differences are finite


class ContrastTask(Task):
    """Supervised contrastive loss of the pictures of a landmark against all others.

    Args:
        settings: the settings of the loss.
        codes: int64 [pictures], the class of each; -1 for none. Such a picture is its own class.
        memory: the memory of all pictures, which the Learner updates.
    """

    name = "contrast"

    def __init__(self, settings: Contrast, codes: NDArray[np.int64], memory: Memory) -> None:
        super().__init__()
        self.loss_weight = settings.loss_weight
        self._temperature = settings.temperature
        self._codes = codes
        self._memory = memory
        own = np.arange(len(codes)) + codes.max(initial=0) + 1
        self._labels = torch.from_numpy(np.where(codes < 0, own, codes)).to(memory.vectors.device)

    def weights(self, targets: Tensor) -> Tensor:
        """Returns 1 for each picture: float32 [n]."""
        return torch.ones(len(targets), device=targets.device)

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Returns -mean over positives p of log(exp(cos_p / t) / sum_j exp(cos_j / t)) [n].

        j runs over the whole memory and the rest of the batch. p runs over the members of both that
        have the class of the picture, including the picture's own place in the memory.
        """
        own = functional.normalize(embeddings.float())
        itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
        labels, known = self._labels[targets], self._memory.known
        remembered = (own @ self._memory.vectors.T).masked_fill(~known, _NEVER)
        beside = (own @ own.T).masked_fill(itself, _NEVER)
        logits = torch.cat([remembered, beside], dim=1) / self._temperature
        same = (labels[:, None] == self._labels) & known
        positive = torch.cat([same, (labels[:, None] == labels) & ~itself], dim=1)
        losses = -functional.log_softmax(logits, dim=1).masked_fill(~positive, 0)
        return losses.sum(dim=1) / positive.sum(dim=1).clamp(min=1)

    def repeats(self, sampling: str) -> NDArray[np.float64]:
        """Returns the average occurrences of each picture in an epoch: float64 [pictures].

        A picture without a class occurs once.
        """
        return class_repeats(self._codes, sampling)


class NeighboursTask(Task):
    """Distillation of a teacher's similarities to pictures without a label.

    Args:
        settings: the settings of the loss.
        codes: int64 [pictures], the class of each; -1 for none.
        teacher: the teacher's vectors of all pictures.
        memory: the memory of all pictures.

    Raises:
        ManifestError: fewer than two readable pictures have no label.
    """

    name = "neighbours"

    def __init__(
        self,
        settings: Neighbours,
        codes: NDArray[np.int64],
        teacher: TeacherVectors,
        memory: Memory,
    ) -> None:
        super().__init__()
        self.loss_weight = settings.loss_weight
        self._temperature = settings.temperature
        self._memory = memory
        device = memory.vectors.device
        self._known = teacher.known
        columns = np.flatnonzero((codes < 0) & teacher.known & memory.known.cpu().numpy())
        if len(columns) < 2:
            what = f"{len(columns)} pictures without a label are too few for the task of neighbours"
            remedy = "add pictures of no landmark by one more --data FOLDER, or leave that out"
            raise ManifestError(what, where="--data", remedy=remedy)
        self._columns = torch.from_numpy(columns).to(device)
        self._teacher = torch.from_numpy(teacher.vectors).to(device)

    def weights(self, targets: Tensor) -> Tensor:
        """Returns 1 for a picture with a vector of the teacher, else 0: float32 [n]."""
        return self._teacher[targets].any(dim=1).float()

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Returns sum_j t_j log(t_j / s_j) over the other pictures without a label [n]."""
        own = functional.normalize(embeddings.float())
        itself = targets[:, None] == self._columns

        def logs(one: Tensor, others: Tensor) -> Tensor:
            logits = (one @ others.T / self._temperature).masked_fill(itself, _NEVER)
            return functional.log_softmax(logits, dim=1)

        taught = logs(self._teacher[targets].float(), self._teacher[self._columns].float())
        learnt = logs(own, self._memory.vectors[self._columns])
        return functional.kl_div(learnt, taught, reduction="none", log_target=True).sum(dim=1)

    def repeats(self, sampling: str) -> NDArray[np.float64]:
        """Returns 1 for a picture with a vector of the teacher, else 0: float64 [pictures]."""
        return self._known.astype(np.float64)


class RepulsionTask(Task):
    """Repulsion of pictures without a label from the landmarks' centres.

    Args:
        settings: the settings of the loss.
        codes: int64 [pictures], the class of each; -1 for none.
        centres: returns the classes' centres [dim, c], of any length.
    """

    name = "repulsion"

    def __init__(
        self, settings: Repulsion, codes: NDArray[np.int64], centres: Callable[[], Tensor]
    ) -> None:
        super().__init__()
        self.loss_weight = settings.loss_weight
        self._settings = settings
        self._codes = codes
        self._centres = centres

    def targets(self, pictures: NDArray[np.int64]) -> Tensor:
        """Returns class numbers int64 [n], -1 for a picture without a class."""
        return torch.from_numpy(self._codes[pictures])

    def weights(self, targets: Tensor) -> Tensor:
        """Returns 1 for a picture without a label, else 0: float32 [n]."""
        return (targets < 0).float()

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Returns softplus(s (log(sum_c exp(s cos_c)) / s - margin)) / s [n]."""
        scale = self._settings.scale
        cosines = functional.normalize(embeddings.float()) @ functional.normalize(
            self._centres(), dim=0
        )
        nearest = torch.logsumexp(scale * cosines, dim=1) / scale
        return functional.softplus(scale * (nearest - self._settings.margin)) / scale

    def repeats(self, sampling: str) -> NDArray[np.float64]:
        """Returns the average occurrences of each picture in an epoch: float64 [pictures].

        A picture without a class occurs once.
        """
        return class_repeats(self._codes, sampling)
