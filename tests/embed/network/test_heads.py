"""GeM, the neck, and networks of every kind of backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lmk.embed.embeddings import unit_rows
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.backbone import build_backbone
from lmk.embed.network.config import EmbedderConfig
from lmk.embed.network.heads import EmbeddingNetwork, GeM, Neck
from lmk.embed.network.whitening import Whitening


def features(seed: int = 0, shape: tuple[int, ...] = (2, 5, 4, 3)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("p", [1.0, 2.5, 3.0, 6.0])
def test_gem_is_the_formula(p: float) -> None:
    x = features()
    clamped = np.maximum(x.numpy().astype(np.float64), 1e-6)
    expected = (clamped**p).mean(axis=(2, 3)) ** (1 / p)
    np.testing.assert_allclose(GeM(p)(x).detach().numpy(), expected, rtol=2e-6)


def test_gem_of_known_numbers() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, -4.0]]]])
    assert GeM(3.0)(x).item() == pytest.approx((36 / 4) ** (1 / 3))
    assert GeM(1.0)(x).item() == pytest.approx(6 / 4)
    assert GeM(50.0)(x).item() == pytest.approx(3, rel=0.03)


def test_gem_computes_in_fp32() -> None:
    """1e-6 cubed is 0 in half precision, and so would its gradient be."""
    x = torch.full((1, 1, 2, 2), 1e-6, dtype=torch.float16)
    result = GeM()(x)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(1e-6, rel=0.1)


def test_gem_is_trained() -> None:
    x = features().requires_grad_()
    pool = GeM()
    pool(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    assert pool.p.grad is not None and pool.p.grad.item() != 0
    with torch.no_grad():
        step = 1e-3
        up, down = GeM(3 + step)(x).sum(), GeM(3 - step)(x).sum()
    assert pool.p.grad.item() == pytest.approx((up - down).item() / (2 * step), rel=0.02)


def test_neck() -> None:
    neck = Neck(6, 4).eval()
    x = features(shape=(3, 6))
    linear, norm, prelu = neck
    y = linear(x)
    y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    expected = torch.where(y > 0, y, prelu.weight * y)
    torch.testing.assert_close(neck(x), expected)


class ChannelsLast(nn.Module):
    """What Swin gives: [n, h, w, c]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.num_features = inner.num_features

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.forward_features(x).permute(0, 2, 3, 1)


def network(backbone: nn.Module, neck: int | None = None, **settings: Any) -> EmbeddingNetwork:
    config = EmbedderConfig(
        name="test",
        backbone="",
        weights="file",
        size=64,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        gem_p=3.0,
        neck=neck,
        **settings,
    )
    return EmbeddingNetwork(backbone, config).eval()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))


@torch.inference_mode()
def test_convolutional(pictures: torch.Tensor) -> None:
    backbone = build_backbone("test_resnet", None)
    net = network(backbone)
    scaled = pictures.numpy().transpose(0, 3, 1, 2) / 255
    channels = (1, 3, 1, 1)
    scaled -= np.reshape((0.5, 0.4, 0.3), channels)
    scaled /= np.reshape((0.2, 0.3, 0.4), channels)
    maps = backbone.forward_features(torch.from_numpy(scaled).float()).numpy()
    expected = (np.maximum(maps, 1e-6).astype(np.float64) ** 3).mean(axis=(2, 3)) ** (1 / 3)
    np.testing.assert_allclose(net(pictures).numpy(), expected, rtol=1e-3, atol=1e-6)
    assert net.dim == net.channels == 96


@torch.inference_mode()
def test_channels_last(pictures: torch.Tensor) -> None:
    backbone = build_backbone("test_resnet", None)
    plain, last = network(backbone), network(ChannelsLast(backbone))
    torch.testing.assert_close(plain(pictures), last(pictures))


@torch.inference_mode()
def test_transformer(pictures: torch.Tensor) -> None:
    net = network(build_backbone("test_vit", None))
    tokens = net.backbone.forward_features(
        ((pictures.float() - net.mean) / net.std).permute(0, 3, 1, 2)
    )
    assert tokens.ndim == 3
    expected = net.backbone.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(net(pictures), expected)
    assert net(pictures).shape == (2, 64)


@torch.inference_mode()
def test_with_a_neck(pictures: torch.Tensor) -> None:
    net = network(build_backbone("test_resnet", None), neck=7)
    assert net.dim == 7 and net.channels == 96
    torch.testing.assert_close(net(pictures), net.neck(network(net.backbone)(pictures)))


@torch.inference_mode()
def test_a_neck_without_its_activation(pictures: torch.Tensor) -> None:
    net = network(build_backbone("test_resnet", None), neck=7, neck_activation=None)
    assert [type(part).__name__ for part in net.neck] == ["Linear", "BatchNorm1d"]
    assert (net(pictures) < 0).any()


@torch.inference_mode()
def test_average_pooling(pictures: torch.Tensor) -> None:
    net = network(build_backbone("test_resnet", None), pooling="avg")
    x = ((pictures.float() - net.mean) / net.std).permute(0, 3, 1, 2)
    expected = net.backbone.forward_features(x).mean(dim=(2, 3))
    torch.testing.assert_close(net(pictures), expected)
    assert "pool.p" not in net.state_dict()


@torch.inference_mode()
def test_a_centred_neck_is_a_whitening(pictures: torch.Tensor) -> None:
    """(unit(x) - mean) @ matrix, as Whitening has it but for the length; in fp32 under autocast."""
    net = network(build_backbone("test_resnet", None), neck=7, neck_form="centred")
    rng = np.random.default_rng(0)
    mean, matrix = rng.normal(size=96).astype(np.float32), rng.normal(size=(96, 7))
    whitening = Whitening(mean, matrix.astype(np.float32))
    net.neck.mean.copy_(torch.from_numpy(whitening.mean))
    net.neck.matrix.copy_(torch.from_numpy(whitening.matrix))
    pooled = network(net.backbone)(pictures)
    got = functional.normalize(net(pictures)).numpy()
    np.testing.assert_allclose(got, whitening.apply(pooled.numpy()), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.neck(pooled), net.neck(pooled.float()))


def test_a_centred_neck_in_a_folder(tmp_path: Path) -> None:
    """OpenVINO runs it, and an embedder without one keeps its fingerprint."""
    net = network(build_backbone("test_resnet", None), neck=7, neck_form="centred")
    config = EmbedderConfig(
        name="test",
        backbone="test_resnet",
        weights="file",
        size=64,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        gem_p=3.0,
        neck=7,
        neck_form="centred",
        neck_activation=None,
    )
    assert config.moving()["neck_form"] == "centred"
    assert "neck_form" not in config.model_copy(update={"neck_form": "norm"}).moving()
    Embedder.of(config, net).save(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (from_graph,) = Embedder.load(tmp_path).features([picture])
    with torch.inference_mode():
        plain = net(torch.from_numpy(picture)[None])[0].numpy()
    assert unit_rows(from_graph[None])[0] @ unit_rows(plain[None])[0] > 0.999
