"""Several views of a picture, several networks: in torch, in the graph, and in the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from lmk.embed.errors import ModelError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.whitening import Whitening


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (3, 48, 48, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def smaller(tiny_weights: Path) -> Embedder:
    return Embedder.named("test_resnet", weights=tiny_weights, size=36)


def single(embedder: Embedder, pictures: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return functional.normalize(embedder.network()(pictures))


def test_the_sum_of_unit_features(tiny: Embedder, pictures: torch.Tensor) -> None:
    smaller = functional.interpolate(
        pictures.permute(0, 3, 1, 2).float(), (36, 36), mode="bilinear"
    ).permute(0, 2, 3, 1)
    views = [pictures, smaller, pictures.flip(2), smaller.flip(2)]
    expected = sum(single(tiny, view) for view in views)
    both = tiny.with_views(flip=True, scales=(1, 0.75))
    with torch.no_grad():
        torch.testing.assert_close(both.network()(pictures), expected, rtol=1e-4, atol=1e-5)


def test_a_picture_and_its_mirror_image_are_one(tiny: Embedder, pictures: torch.Tensor) -> None:
    embedder = tiny.with_views(flip=True)
    mirrored = pictures.flip(2)
    assert not torch.allclose(single(tiny, pictures), single(tiny, mirrored), atol=1e-4)
    torch.testing.assert_close(single(embedder, pictures), single(embedder, mirrored))


def test_the_folder_and_the_graph(tiny: Embedder, pictures: torch.Tensor, tmp_path: Path) -> None:
    embedder = tiny.with_views(flip=True, scales=(1, 0.75))
    prints = {e.fingerprint for e in (tiny, tiny.with_views(flip=True), embedder)}
    assert len(prints) == 3
    assert tiny.with_views().fingerprint == tiny.fingerprint
    embedder.save(tmp_path)
    loaded = Embedder.load(tmp_path)
    assert loaded.fingerprint == embedder.fingerprint
    from_graph = np.stack(list(loaded.features(list(pictures.numpy()))))
    with torch.no_grad():
        plain = embedder.network()(pictures).numpy()
    np.testing.assert_allclose(from_graph, plain, rtol=0.02, atol=0.02)
    torch.testing.assert_close(loaded.network()(pictures), embedder.network()(pictures))


def test_refusals(tiny: Embedder) -> None:
    for scales in ((), (0.0,), (1.5,)):
        with pytest.raises(ValueError, match="scales"):
            tiny.with_views(scales=scales)
    dim = tiny.feature_dim
    white = tiny.with_whitening(Whitening(np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32)))
    with pytest.raises(ModelError, match="its whitening was fitted on single views"):
        white.with_views(flip=True)


class TestEnsemble:
    def test_unit_features_side_by_side(
        self, tiny: Embedder, smaller: Embedder, pictures: torch.Tensor
    ) -> None:
        both = Embedder.ensemble([tiny, smaller])
        assert both.dim == tiny.dim + smaller.dim and both.config.size == 48
        shrunk = functional.interpolate(
            pictures.permute(0, 3, 1, 2).float(), (36, 36), mode="bilinear"
        ).permute(0, 2, 3, 1)
        expected = torch.cat([single(tiny, pictures), single(smaller, shrunk)], dim=1)
        with torch.no_grad():
            torch.testing.assert_close(both.network()(pictures), expected, rtol=1e-4, atol=1e-5)

    def test_by_name_and_folder(
        self, tiny: Embedder, smaller: Embedder, pictures: torch.Tensor, tmp_path: Path
    ) -> None:
        for name, member in (("one", tiny), ("two", smaller)):
            (tmp_path / name).mkdir()
            member.save(tmp_path / name)
        both = Embedder.named(f"{tmp_path / 'one'}+{tmp_path / 'two'}")
        assert both.fingerprint == Embedder.ensemble([tiny, smaller]).fingerprint
        assert both.fingerprint != Embedder.ensemble([smaller, tiny]).fingerprint
        (tmp_path / "both").mkdir()
        both.save(tmp_path / "both")
        loaded = Embedder.load(tmp_path / "both")
        assert loaded.fingerprint == both.fingerprint
        from_graph = np.stack(list(loaded.features(list(pictures.numpy()))))
        with torch.no_grad():
            np.testing.assert_allclose(
                from_graph, both.network()(pictures).numpy(), rtol=0.02, atol=0.02
            )
            assert torch.equal(loaded.network()(pictures), both.network()(pictures))

    def test_refusals(self, tiny: Embedder, tiny_weights: Path) -> None:
        with pytest.raises(ModelError, match="two members or more"):
            Embedder.ensemble([tiny])
        with pytest.raises(ModelError, match="members have their own weights"):
            Embedder.named("lite0+lite1", weights=tiny_weights)
        with pytest.raises(ModelError, match="frob: is no preset"):
            Embedder.named("lite0+frob", size=64)
