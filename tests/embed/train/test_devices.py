"""Which device, which precision, which process; half precision and its scaler."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lmk.embed.data.manifest import Manifest
from lmk.embed.errors import UsageError
from lmk.embed.train.build_tasks import build_tasks
from lmk.embed.train.config import TrainConfig
from lmk.embed.train.dataset import TrainingPictures
from lmk.embed.train.devices import World, chosen_device, chosen_precision, joined
from lmk.embed.train.learner import Learner
from lmk.embed.train.network import start_network
from lmk.embed.train.reading import Batch

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("able", [True, False])
def test_precision_on_a_gpu(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    assert chosen_precision("auto", GPU) == (torch.bfloat16 if able else torch.float16)
    assert chosen_precision("fp16", GPU) == torch.float16
    assert chosen_precision("fp32", GPU) == torch.float32
    if not able:
        with pytest.raises(UsageError, match="this GPU has no bf16"):
            chosen_precision("bf16", GPU)


@pytest.mark.parametrize("able", [True, False])
def test_precision_on_a_cpu(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 without AMX is slower than fp32, so it must be asked for."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: able)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    assert chosen_precision("auto", CPU) == (torch.bfloat16 if able else torch.float32)
    if able:
        assert chosen_precision("bf16", CPU) == torch.bfloat16
    else:
        with pytest.raises(UsageError, match="this CPU has no bf16"):
            chosen_precision("bf16", CPU)


def test_the_device_is_this_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert chosen_device("auto") == chosen_device("cuda") == torch.device("cuda", 3)
    assert used == [torch.device("cuda", 3)] * 2
    assert chosen_device("cpu") == CPU


def test_one_process_is_a_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(CPU) as world:
        assert world == World(0, 1) and world.first
        assert world.gather("x") == ["x"] and world.sum(torch.ones(2)).tolist() == [1, 1]
        world.wait()


def learner(config: TrainConfig, manifest: Manifest, folder: object) -> Learner:
    network = start_network(config)
    pictures = TrainingPictures.of([manifest])
    tasks, _ = build_tasks(
        config, [manifest], pictures, network.dim, teacher=folder, features=folder, world=World()
    )  # type: ignore[arg-type]
    return Learner(config, network, tasks, device=CPU, precision=torch.float16, world=World())


def batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    pictures = torch.from_numpy(rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8))
    return Batch(pictures, rng.integers(0, 20, 6), ())


def test_half_precision(
    small: Callable[..., TrainConfig], gallery: Manifest, tmp_path: object
) -> None:
    """Gradients that overflow are left out, and the scale that comes of it is kept."""
    config = small(clip=1.0)
    first = learner(config, gallery, tmp_path)
    start = {name: part.clone() for name, part in first.network.state_dict().items()}
    first.step(0, [batch(0)], 1.0)  # the first scale, 65536, is too much for a 16-bit gradient
    for number in range(1, 12):
        assert torch.isfinite(first.step(number, [batch(number)], 1.0)).all()
    tensors, numbers = first.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    assert any(not torch.equal(start[n], p) for n, p in first.network.named_parameters())
    assert all(torch.isfinite(p).all() for p in first.network.parameters())
    second = learner(config, gallery, tmp_path)
    second.load(tensors, numbers)
    assert second.state()[1] == numbers and numbers["scaler"]["scale"] > 0
    losses = [each.step(12, [batch(12)], 1.0) for each in (first, second)]
    assert torch.equal(losses[0], losses[1])
    for one, other in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, other)
