"""Heads: GeM pooling and the neck between a backbone and the embedding. Imports torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GeM(nn.Module):
    """Generalised-mean pooling: per channel (mean(max(x, eps)^p))^(1/p).

    Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019,
    with one p for all channels. Computed in fp32, as eps^p underflows fp16.

    Shape: float [n, c, h, w] -> float32 [n, c].
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Pools the height and width away."""
        return x.float().clamp(min=self.eps).pow(self.p).mean(dim=(2, 3)).pow(1 / self.p)


class Neck(nn.Sequential):
    """Linear, BatchNorm, PReLU: features [n, c] to an embedding [n, dim], not of length 1.

    As the winners of the Google Landmark Recognition contest of 2020 had it.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__(nn.Linear(channels, dim), nn.BatchNorm1d(dim), nn.PReLU())


class EmbeddingNetwork(nn.Module):
    """Pictures to features: normalises, runs the backbone, pools, and applies the neck if any.

    Shape: uint8 [n, size, size, 3] (RGB) -> float32 [n, dim], not of length 1.

    Convolutional backbones are pooled by GeM; a transformer, whose features are tokens, by its
    own pooling.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        gem_p: float,
        neck: int | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = GeM(gem_p)
        self.channels = int(backbone.num_features)  # type: ignore[arg-type]
        self.neck = nn.Identity() if neck is None else Neck(self.channels, neck)
        self.dim = self.channels if neck is None else neck
        self.register_buffer("mean", torch.tensor(mean) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std) * 255, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features of a batch of pictures."""
        x = (pictures.float() - self.mean) / self.std  # type: ignore[operator]
        features: Tensor = self.backbone.forward_features(x.permute(0, 3, 1, 2))  # type: ignore[operator]
        if features.ndim != 4:
            pooled: Tensor = self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
        elif features.shape[1] == self.channels:
            pooled = self.pool(features)
        else:  # channels last, as Swin has it
            pooled = self.pool(features.permute(0, 3, 1, 2))
        result: Tensor = self.neck(pooled)
        return result
