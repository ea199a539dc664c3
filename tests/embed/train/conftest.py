"""Settings of a run that takes a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lmk.embed.data.manifest import Manifest, read_manifest
from lmk.embed.train.config import TrainConfig

SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"backbone": "test_resnet", "neck": 16},
    "tasks": [{"task": "classes"}],
    "stages": [{"epochs": 3, "size": 64}],
    "batch": 6,
    "optimizer": {"lr": 0.02},
    "workers": 0,
    "save_minutes": 1000,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests run beside each other; and sums over threads may differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small() -> Callable[..., TrainConfig]:
    """small(key=value...): the settings with some of them replaced."""
    return lambda **changes: TrainConfig.model_validate(SMALL | changes)


@pytest.fixture(scope="session")
def gallery(photos: Path) -> Manifest:
    """5 landmarks of 4 pictures."""
    return read_manifest(photos / "gallery")


@pytest.fixture(scope="session")
def bank(photos: Path) -> Manifest:
    """8 pictures without labels."""
    return read_manifest(photos / "bank")
