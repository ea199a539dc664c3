"""TagTask: the training task of tags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lmk.embed.tags.head import TagHead
from lmk.embed.train.devices import World
from lmk.embed.train.tag_losses import TencentLoss, binary_cross_entropy, focal, weighted_softmax
from lmk.embed.train.tag_targets import repeat_factors, tag_draws, tag_targets
from lmk.embed.train.task_config import CrossEntropy, Focal, Tags, TagSoftmax, Tencent
from lmk.embed.train.tasks import Task


class TagTask(Task):
    """A linear layer from embeddings to tags, with one of the losses of tags.

    Args:
        settings: the settings of the loss and the labels.
        labels: the labels of each picture of the training set.
        dim: number of components of an embedding.
        seed: seed of the random numbers in the loss.

    Attributes:
        head: the layer; `published` returns it as a TagHead.

    Raises:
        ManifestError: there are fewer than two tags, or a label that needs a weight has none.
    """

    name = "tags"

    def __init__(
        self, settings: Tags, labels: Sequence[tuple[str, ...]], dim: int, seed: int
    ) -> None:
        super().__init__()
        self.loss_weight = settings.loss_weight
        self._settings = settings
        self._seed = seed
        self._softmax = isinstance(settings.loss, TagSoftmax)
        self._of_weights = settings.weighted and not self._softmax
        self._known = tag_targets(
            labels,
            weighted=settings.weighted,
            positive_from=settings.positive_from if self._of_weights else None,
            likely=settings.positive_from is None,
            least=settings.least,
        )
        tags = len(self._known.names)
        self.head = nn.Linear(dim, tags)
        nn.init.zeros_(self.head.bias)
        if isinstance(settings.loss, CrossEntropy | Focal):
            # The initial probability of a tag is its frequency: Lin et al., 2017, 4.1.
            pictures = len(self._known)
            if settings.unlabelled == "skip":
                pictures = self._known.labelled
            frequency = (self._known.mass + 0.5) / (pictures + 1)
            with torch.no_grad():
                self.head.bias.copy_(torch.from_numpy(np.log(frequency / (1 - frequency))))
        self._tencent = (
            TencentLoss(settings.loss, tags) if isinstance(settings.loss, Tencent) else None
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The tags, in the order of the head's outputs."""
        return self._known.names

    def published(self, weight: Tensor, bias: Tensor, feature_fingerprint: str) -> TagHead:
        """Returns the head in the form of an embedder's folder.

        Args:
            weight, bias: the parameters of the head, possibly averaged.
            feature_fingerprint: the feature fingerprint of the embedder.
        """
        rows = weight.detach().cpu().float() * self._scale
        return TagHead(
            names=self.names,
            weight=rows.numpy(),
            bias=bias.detach().cpu().float().numpy(),
            activation="softmax" if self._softmax else "sigmoid",
            unit=self._settings.unit,
            feature_fingerprint=feature_fingerprint,
        )

    @property
    def _scale(self) -> float:
        """Scale of unit features, so that their components are about 1, as those of others."""
        return float(self.head.in_features**0.5) if self._settings.unit else 1.0

    def targets(self, pictures: NDArray[np.int64]) -> Tensor:
        """Returns the known values of each tag float32 [n, t]: see TagTargets.values."""
        return torch.from_numpy(self._known.dense(pictures))

    def step_targets(
        self, number: int, micro_batches: Sequence[NDArray[np.int64]], world: World
    ) -> list[Tensor]:
        """Returns targets [n, t]; for the Tencent loss [n, 2, t], with the weight of each term.

        These weights depend on all pictures of the step, in all processes.
        """
        if self._tencent is None:
            return super().step_targets(number, micro_batches, world)
        whole = np.stack(world.gather(np.stack(micro_batches)), axis=1)  # [micro-batches, ranks, n]
        device = self._tencent.run.device
        values = self.targets(whole.ravel()).to(device)
        generator = torch.Generator(device)
        generator.manual_seed(
            int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        )
        if self._settings.unlabelled == "skip":
            values = values.masked_fill(~(values > 0).any(dim=1, keepdim=True), -1)
        both = torch.stack([values, self._tencent.coefficients(values, generator)], dim=1)
        parts = both.view(*whole.shape, *both.shape[1:])
        return list(parts[:, world.rank])

    def weights(self, targets: Tensor) -> Tensor:
        """Returns the weight of each picture: float32 [n], 0 for a picture without a target."""
        values = targets if self._tencent is None else targets[:, 0]
        if self._softmax or self._settings.unlabelled == "skip":
            return (values > 0).any(dim=1).float()
        return torch.ones(len(values), device=values.device)

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Returns losses float32 [n] of embeddings float32 [n, dim], not of length 1."""
        features = embeddings.float()
        if self._settings.unit:
            features = functional.normalize(features) * self._scale
        logits = self.head(features)
        loss = self._settings.loss
        if self._tencent is not None:
            losses: Tensor = self._tencent(logits, targets[:, 0], targets[:, 1])
            return losses
        if isinstance(loss, Focal):
            return focal(logits, targets, loss.gamma, loss.alpha)
        return (weighted_softmax if self._softmax else binary_cross_entropy)(logits, targets)

    def repeats(self, sampling: str) -> NDArray[np.float64]:
        """Returns the average occurrences of each picture in an epoch: float64 [pictures].

        A picture without tags occurs once.
        """
        repeat = self._settings.repeat
        if repeat is not None:
            return repeat_factors(self._known, repeat.threshold, repeat.phi)
        return tag_draws(self._known, sampling)
