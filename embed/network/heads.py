"""Heads: pooling and the neck between a backbone and the embedding. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from lmk.embed.network.config import EmbedderConfig


class GeM(nn.Module):
    """Generalised-mean pooling: per channel (mean(max(x, eps)^p))^(1/p).

    Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019,
    with one p for all channels. The computation is in fp32, as eps^p underflows fp16.

    Shape: float [n, c, h, w] -> float32 [n, c].
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features pooled over height and width."""
        return x.float().clamp(min=self.eps).pow(self.p).mean(dim=(2, 3)).pow(1 / self.p)


class Mean(nn.Module):
    """Average pooling. Shape: float [n, c, h, w] -> float32 [n, c]."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features pooled over height and width."""
        return x.float().mean(dim=(2, 3))


class Neck(nn.Sequential):
    """Linear, BatchNorm and optional PReLU: [n, c] -> embedding [n, dim], not of length 1.

    The winners of the Google Landmark Recognition contest of 2020 used the PReLU.
    """

    def __init__(self, channels: int, dim: int, *, prelu: bool = True) -> None:
        super().__init__(nn.Linear(channels, dim), nn.BatchNorm1d(dim))
        if prelu:
            self.append(nn.PReLU())


class CentredNeck(nn.Module):
    """(unit(x) - mean) @ matrix: [n, c] -> embedding [n, dim], not of length 1.

    This is the form of a PCA-whitening, so training can start from one. As the features are
    centred, the matrix has no common direction that would rotate all embeddings. The computation
    is in fp32, as the weak components of a whitening are small differences.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.matrix = nn.Parameter(torch.empty(channels, dim))
        nn.init.orthogonal_(self.matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the embeddings of pooled features."""
        with torch.autocast(x.device.type, enabled=False):
            return (functional.normalize(x.float()) - self.mean) @ self.matrix


class EmbeddingNetwork(nn.Module):
    """Network from pictures to features: normalisation, backbone, pooling and an optional neck.

    Shape: uint8 [n, size, size, 3] (RGB) -> float32 [n, dim], not of length 1.

    The features of convolutional backbones are pooled by GeM or the mean. A transformer, whose
    features are tokens, uses its own pooling.
    """

    def __init__(self, backbone: nn.Module, config: EmbedderConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = GeM(config.gem_p) if config.pooling == "gem" else Mean()
        self.channels = int(backbone.num_features)  # type: ignore[arg-type]
        self.dim = config.neck or self.channels
        self.neck = _neck(config, self.channels)
        self._size = config.size
        self._sides = [round(config.size * scale) for scale in config.scales]
        self._flip = config.flip
        self.register_buffer("mean", torch.tensor(config.mean) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.std) * 255, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Returns features of a batch of pictures; for several views, the sum of unit features."""
        x = ((pictures.float() - self.mean) / self.std).permute(0, 3, 1, 2)  # type: ignore[operator]
        views = [x if side == self._size else _resized(x, side) for side in self._sides]
        views += [view.flip(3) for view in views if self._flip]
        if len(views) == 1:
            return self._features(views[0])
        return torch.stack([functional.normalize(self._features(view)) for view in views]).sum(0)

    def _features(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone.forward_features(x)  # type: ignore[operator]
        if features.ndim != 4:
            pooled: Tensor = self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
        elif features.shape[1] == self.channels:
            pooled = self.pool(features)
        else:  # channels last, as in Swin
            pooled = self.pool(features.permute(0, 3, 1, 2))
        result: Tensor = self.neck(pooled)
        return result


class Ensemble(nn.Module):
    """Backbone that concatenates the unit features of several networks.

    Shape: float [n, 3, size, size], pixels from 0 to 255 -> float32 [n, sum of the members' dims].
    """

    def __init__(self, members: Sequence[EmbeddingNetwork], sizes: Sequence[int]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_features = sum(member.dim for member in members)
        self._sizes = tuple(sizes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns features [n, num_features]; each member gets the pictures at its own size."""
        each = []
        for member, size in zip(self.members, self._sizes, strict=True):
            own = x if x.shape[2] == size else _resized(x, size)
            each.append(functional.normalize(member(own.permute(0, 2, 3, 1))))
        return torch.cat(each, dim=1)

    def forward_head(self, features: Tensor, pre_logits: bool) -> Tensor:
        """Returns the features unchanged, as they need no pooling."""
        return features


def _neck(config: EmbedderConfig, channels: int) -> nn.Module:
    if config.neck is None:
        return nn.Identity()
    if config.neck_form == "centred":
        return CentredNeck(channels, config.neck)
    return Neck(channels, config.neck, prelu=config.neck_activation == "prelu")


def _resized(x: Tensor, side: int) -> Tensor:
    return functional.interpolate(x, (side, side), mode="bilinear", antialias=False)
