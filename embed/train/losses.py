"""Losses of classes: margin softmaxes with margins and weights by the sizes of the classes.

ArcFace, sub-centre ArcFace and CosFace are those of pytorch-metric-learning, whose margins are in
degrees. The loss with a margin for each class is implemented here. All losses take embeddings of
any length and compute in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss, SubCenterArcFaceLoss
from pytorch_metric_learning.reducers import DoNothingReducer
from torch import Tensor, nn
from torch.nn import functional

from lmk.embed.train.task_config import Classes, MarginByPower, MarginByRank

_NEAR_ONE = 1 - 1e-6  # the slope of acos is infinite at 1
_LARGEST_MARGIN = 3.0  # radians; at pi every angle would be past the fallback


def class_margins(
    settings: MarginByRank | MarginByPower, counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the margin of each class, in radians.

    Args:
        settings: the formula, see MarginByRank and MarginByPower.
        counts: int [c], the number of pictures of each class; 0 counts as 1.
    """
    n = np.maximum(counts, 1).astype(np.float64)
    if isinstance(settings, MarginByPower):
        return np.clip(settings.a * n**-settings.b + settings.c, 0, _LARGEST_MARGIN)
    u = n**-settings.power
    spread = u.max() - u.min()
    place = (u - u.min()) / spread if spread > 0 else np.zeros_like(u)
    return settings.low + (settings.high - settings.low) * place


def class_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns 1 / log(1 + n) for each class, scaled to a mean of 1; n = 0 counts as 1."""
    weights = 1 / np.log1p(np.maximum(counts, 1).astype(np.float64))
    scaled: NDArray[np.float64] = weights * len(weights) / weights.sum()
    return scaled


class MarginArcFace(nn.Module):
    """ArcFace with a margin for each class, and sub-centres.

    The target's logit is s cos(t + m), or s (cos t - m sin m) where t > pi - m; the others' are
    s cos t. t is the angle to the nearest of the class's K centres: Deng et al., "ArcFace", 2019,
    and "Sub-center ArcFace", 2020; margins as Ha et al., 2020.

    Args:
        dim: components of an embedding.
        margins: float [c], in radians.
        scale: s.
        sub_centers: K.
    """

    def __init__(
        self, dim: int, margins: NDArray[np.float64], scale: float, sub_centers: int = 1
    ) -> None:
        super().__init__()
        self.scale = scale
        self.sub_centers = sub_centers
        self.W = nn.Parameter(torch.randn(dim, len(margins) * sub_centers))
        angles = torch.from_numpy(margins).float()
        self.register_buffer("margins", angles, persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Returns cross entropies float32 [n] of embeddings [n, dim] and labels int64 [n]."""
        centres = functional.normalize(self.W, dim=0)
        cosines = functional.normalize(embeddings.float()) @ centres
        if self.sub_centers > 1:
            cosines = cosines.view(len(cosines), -1, self.sub_centers).amax(dim=2)
        margins: Tensor = self.margins[labels]  # type: ignore[index]
        own = cosines.gather(1, labels[:, None])[:, 0].clamp(-_NEAR_ONE, _NEAR_ONE)
        angle = own.acos()
        past = own - margins * margins.sin()
        target = torch.where(angle <= torch.pi - margins, (angle + margins).cos(), past)
        logits = self.scale * cosines.scatter(1, labels[:, None], target[:, None])
        return functional.cross_entropy(logits, labels, reduction="none")


class Linear(nn.Module):
    """A linear classifier with softmax, the baseline of the margin losses."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, classes)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Returns cross entropies float32 [n] of embeddings [n, dim] and labels int64 [n]."""
        return functional.cross_entropy(self.linear(embeddings.float()), labels, reduction="none")


class _Clamped:
    """Keeps the angles of pytorch-metric-learning away from 0, where the gradient is infinite."""

    def get_angles(self, cosines: Tensor) -> Tensor:
        angles: Tensor = super().get_angles(cosines.clamp(-_NEAR_ONE, _NEAR_ONE))  # type: ignore[misc]
        return angles


class _ArcFace(_Clamped, ArcFaceLoss):  # type: ignore[misc]
    pass


class _SubCenterArcFace(_Clamped, SubCenterArcFaceLoss):  # type: ignore[misc]
    pass


class _Library(nn.Module):
    """A loss of pytorch-metric-learning, without a reduction over pictures."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Returns cross entropies float32 [n] of embeddings [n, dim] and labels int64 [n]."""
        losses: Tensor = self.loss(embeddings.float(), labels)["loss"]["losses"]
        return losses


def class_loss(settings: Classes, counts: NDArray[np.int64], dim: int) -> nn.Module:
    """Returns the loss of the settings: a module (embeddings [n, dim], labels [n]) -> losses [n].

    Args:
        settings: the settings of the loss.
        counts: int [c], the number of pictures of each class.
        dim: number of components of an embedding.
    """
    if settings.loss == "softmax":
        return Linear(dim, len(counts))
    sub_centers = settings.sub_centers if settings.loss == "subcenter" else 1
    if settings.dynamic_margin is not None:
        margins = class_margins(settings.dynamic_margin, counts)
        return MarginArcFace(dim, margins, settings.scale, sub_centers)
    options: dict[str, Any] = {
        "num_classes": len(counts),
        "embedding_size": dim,
        "scale": settings.scale,
        "reducer": DoNothingReducer(),
    }
    if settings.loss == "cosface":
        return _Library(CosFaceLoss(margin=settings.margin, **options))
    options["margin"] = float(np.degrees(settings.margin))
    if settings.loss == "subcenter":
        return _Library(_SubCenterArcFace(sub_centers=sub_centers, **options))
    return _Library(_ArcFace(**options))
