"""Rendered pictures and a small network, shared by the tests of embed/, rerank/ and cli/."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pytest
from PIL import Image

from lmk.embed.extract.embedder import Embedder

# A busy machine is no bug: no case has a limit of its own. The cases of a test follow from its
# name, so that two runs of the same code give the same result.
hypothesis.settings.register_profile("lmk", deadline=None, derandomize=True)
hypothesis.settings.load_profile("lmk")

# A shell's background job ignores Ctrl-C, and what it starts inherits that: `make test &` would
# see commands that cannot be stopped.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Render = Callable[..., np.ndarray]


def _render(seed: int, view: int = 0, width: int = 96, height: int = 72) -> np.ndarray:
    """A place made of coloured shapes; a view shifts it, changes its light and adds noise."""
    place, chance = np.random.default_rng([seed, 0]), np.random.default_rng([seed, view, 1])
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    sky, ground = place.integers(0, 256, (2, 3))
    image = (sky * (1 - y)[..., None] + ground * y[..., None]).astype(np.float32)
    image += 40 * np.sin(x * place.uniform(5, 60) + y * place.uniform(5, 60))[..., None]
    for _ in range(6):
        corner = place.uniform(0, 0.8, 2) * (width, height)
        extent = place.uniform(0.1, 0.4, 2) * (width, height)
        colour = place.integers(0, 256, 3).tolist()
        low, high = corner.astype(int).tolist(), (corner + extent).astype(int).tolist()
        if place.random() < 0.5:
            cv2.rectangle(image, low, high, colour, -1)
        else:
            cv2.circle(image, low, int(extent.min()), colour, -1)
    if view:
        move = np.float32([[1, 0, chance.uniform(-4, 4)], [0, 1, chance.uniform(-4, 4)]])
        image = cv2.warpAffine(image, move, (width, height), borderMode=cv2.BORDER_REFLECT)
        image = image * chance.uniform(0.8, 1.2) + chance.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the user's cache of compiled graphs as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def render() -> Render:
    """render(seed, view=0, width=96, height=72): uint8 [height, width, 3], the same every time."""
    return _render


@pytest.fixture(scope="session")
def write_photos() -> Callable[..., Path]:
    """write_photos(folder, landmarks=5, views=4): JPEGs folder/place N/view.jpg."""

    def write(folder: Path, landmarks: int = 5, views: int = 4, first: int = 0) -> Path:
        for seed in range(first, first + landmarks):
            place = folder / f"place_{seed}"
            place.mkdir(parents=True, exist_ok=True)
            for view in range(views):
                Image.fromarray(_render(seed, view)).save(place / f"{view}.jpg", quality=92)
        return folder

    return write


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    """A folder with gallery/ (5 places of 4 views) and bank/ (8 pictures of none of them)."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "gallery")
    (folder / "bank").mkdir()
    for seed in range(1000, 1008):
        Image.fromarray(_render(seed)).save(folder / "bank" / f"{seed}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random but fixed weights of timm's test_resnet."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_weights: Path) -> Embedder:
    """A network that runs in a millisecond: test_resnet on pictures of 48 px."""
    return Embedder.named("test_resnet", weights=tiny_weights, size=48)


@pytest.fixture(scope="session")
def lite0() -> Embedder:
    """The packaged Lite0, on small pictures."""
    return Embedder.named("lite0", size=96)
