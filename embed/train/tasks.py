"""Training tasks. Each task has its targets, head, loss and sampling in one class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lmk.embed.errors import ManifestError
from lmk.embed.train.devices import World
from lmk.embed.train.losses import class_loss, class_weights
from lmk.embed.train.sampling import class_draws
from lmk.embed.train.task_config import Classes

BACKGROUND = "(none)"


class Task(nn.Module, ABC):
    """A training task on the embeddings of pictures.

    The loss of a step is sum(weight * loss) / sum(weight) over all micro-batches and processes, so
    it does not depend on their number. The parameters of a task are trained with the network's.

    Attributes:
        name: name of the loss in logs.
        loss_weight: the weight of this loss in the sum of all tasks.
    """

    name: str
    loss_weight: float

    def targets(self, pictures: NDArray[np.int64]) -> Tensor:
        """Returns the targets [n, ...] of pictures, given by their numbers in the training set.

        They are the numbers int64 [n] themselves, unless a task overrides this method.
        """
        return torch.from_numpy(pictures)

    def step_targets(
        self, number: int, micro_batches: Sequence[NDArray[np.int64]], world: World
    ) -> list[Tensor]:
        """Returns the targets of each micro-batch of a step, in order.

        A task whose targets depend on the whole step overrides this method.

        Args:
            number: number of the step, from 0.
            micro_batches: this process's pictures of each micro-batch, int64 [n], equally long.
            world: the processes.
        """
        return [self.targets(pictures) for pictures in micro_batches]

    @abstractmethod
    def weights(self, targets: Tensor) -> Tensor:
        """Returns the weight of each picture: float32 [n], 0 for a picture without a target."""

    @abstractmethod
    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Returns losses float32 [n] of embeddings float32 [n, dim], not of length 1."""

    @abstractmethod
    def repeats(self, sampling: str) -> NDArray[np.float64]:
        """Returns the average occurrences of each picture in an epoch: float64 [pictures]."""


class ClassTask(Task):
    """Classification of landmarks; the landmark of a picture is its first label.

    Args:
        settings: the settings of the loss.
        labels: the labels of each picture of the training set.
        dim: number of components of an embedding.

    Raises:
        ManifestError: there are fewer than two classes.
    """

    name = "classes"

    def __init__(self, settings: Classes, labels: Sequence[tuple[str, ...]], dim: int) -> None:
        super().__init__()
        self.loss_weight = settings.loss_weight
        self.classes, self._codes = class_codes(labels, settings.unlabelled == "background")
        if len(self.classes) < 2:
            what = f"the pictures have {len(self.classes)} landmarks, but at least two are needed"
            remedy = "give a CSV with a column landmark_id, or one sub-folder for each landmark"
            raise ManifestError(what, where="--data", remedy=remedy)
        counts = np.bincount(self._codes[self._codes >= 0], minlength=len(self.classes))
        self.loss = class_loss(settings, counts, dim)
        weights = class_weights(counts) if settings.class_weights else np.ones(len(counts))
        self.register_buffer("class_weights", torch.from_numpy(weights).float(), persistent=False)

    def centres(self) -> Tensor:
        """Returns the centres of the classes, of any length: [dim, c] or [dim, c * sub_centers].

        A softmax loss has no centres.
        """
        loss: Any = self.loss
        centres: Tensor = loss.W if hasattr(loss, "W") else loss.loss.W
        return centres

    def start_from(self, vectors: Tensor) -> None:
        """Sets each class's centre to the mean of its pictures' vectors float32 [pictures, dim]."""
        codes = torch.from_numpy(self._codes)
        own = codes >= 0
        sums = torch.zeros(len(self.classes), vectors.shape[1])
        sums.index_add_(0, codes[own], vectors.cpu()[own])
        with torch.no_grad():
            self.centres().copy_(functional.normalize(sums).T)

    def targets(self, pictures: NDArray[np.int64]) -> Tensor:
        """Returns class numbers int64 [n], -1 for a picture without a class."""
        return torch.from_numpy(self._codes[pictures])

    def weights(self, targets: Tensor) -> Tensor:
        """Returns the weight of each picture by its class: float32 [n], 0 without a class."""
        weights: Tensor = self.class_weights[targets.clamp(min=0)]  # type: ignore[index]
        return torch.where(targets >= 0, weights, torch.zeros_like(weights))

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Returns losses float32 [n]: 0 for a picture without a class."""
        losses: Tensor = self.loss(embeddings, targets.clamp(min=0))
        return torch.where(targets >= 0, losses, torch.zeros_like(losses))

    def repeats(self, sampling: str) -> NDArray[np.float64]:
        """Returns the average occurrences of each picture in an epoch: float64 [pictures].

        A picture without a class occurs once.
        """
        return class_repeats(self._codes, sampling)


def class_codes(
    labels: Sequence[tuple[str, ...]], background: bool
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Returns the classes, sorted by name, and each picture's class: int64 [n], -1 for none.

    Args:
        labels: the labels of each picture; the first one counts.
        background: True if pictures without a label form the last class.
    """
    names = sorted(Counter(own[0] for own in labels if own))
    number = {name: i for i, name in enumerate(names)}
    without = len(names) if background else -1
    codes = np.array([number[own[0]] if own else without for own in labels], np.int64)
    return (*names, BACKGROUND) if (codes == len(names)).any() else tuple(names), codes


def class_repeats(codes: NDArray[np.int64], sampling: str) -> NDArray[np.float64]:
    """Returns the average occurrences of each picture in an epoch: float64 [n], with the sum n.

    Args:
        codes: int [n], the class of each picture; -1 for none. Such a picture occurs once.
        sampling: "natural": once; "sqrt": classes by the square root of their size; "balanced":
            all classes equally often.
    """
    repeats = np.ones(len(codes))
    of_class = codes >= 0
    if sampling == "natural" or not of_class.any():
        return repeats
    sizes = np.bincount(codes[of_class]).astype(np.float64)
    draws = class_draws(sizes, sampling)
    factor = draws / draws.sum() * of_class.sum() / np.maximum(sizes, 1)
    repeats[of_class] = factor[codes[of_class]]
    return repeats
