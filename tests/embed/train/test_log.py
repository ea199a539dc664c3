"""Logs and checkpoints: cut back to where a run goes on; everything comes back as it was."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmk.embed.errors import LmkError
from lmk.embed.train import log as log_module
from lmk.embed.train.checkpoint import (
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    part,
    prefixed,
    save_checkpoint,
)
from lmk.embed.train.log import Log, read_log


def row(step: int) -> dict[str, Any]:
    return {"step": step, "loss": f"{step / 7:.9g}"}


def test_a_log_is_cut_back_to_where_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    assert read_log(path) == []
    log = Log(path, ("step", "loss"), 0)
    log.add([row(0), row(1)])
    log.add([row(2)])
    assert path.read_text() == "step,loss\n0,0\n1,0.142857143\n2,0.285714286\n"
    with path.open("a") as file:
        file.write("3")  # the process was killed while it wrote
    again = Log(path, ("step", "loss"), 2)
    again.add([row(2)])
    again.close()
    assert [int(each["step"]) for each in again.rows()] == [0, 1, 2]


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed it gets the same numbers."""
    seen: list[Any] = []

    class Writer:
        def __init__(self, folder: Path, purge_step: int) -> None:
            seen.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((name, value, step))

        def close(self) -> None:
            seen.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(log_module, "find_spec", lambda name: object())
    log = Log(tmp_path / "epochs.csv", ("epoch", "loss", "gap"), 3, tmp_path / "board")
    log.add([{"epoch": 3, "loss": "0.5", "gap": ""}])
    log.close()
    assert seen == [(tmp_path / "board", 3), ("epochs/loss", 0.5, 3), "closed"]


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "find_spec", lambda name: None)
    log = Log(tmp_path / "steps.csv", ("step", "loss"), 0, tmp_path / "board")
    log.add([row(0)])
    log.close()
    assert not (tmp_path / "board").exists() and len(log.rows()) == 1


def test_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    tensors = {"a": torch.arange(6).reshape(2, 3).T, "b": torch.tensor(2.5)}
    state = {"step": 3, "value": float("-inf"), "names": ["ä\udcff"]}
    save_checkpoint(path, tensors, state)
    loaded, numbers = load_checkpoint(path)
    assert numbers == state and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert prefixed("x", {"y": tensors["b"]}).keys() == {"x.y"}
    assert part("x", {"x.y": tensors["b"], "xx.y": tensors["b"]}).keys() == {"y"}


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(content)
    with pytest.raises(LmkError, match="is not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "kind",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1),
    ],
)
def test_an_optimizer_goes_on(kind: Any) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizers = [kind(first.parameters()), kind(second.parameters())]

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()

    step(first, optimizers[0], 1)
    second.load_state_dict(first.state_dict())
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizers[0]).items()}
    load_optimizer(optimizers[1], kept)
    for module, optimizer in zip((first, second), optimizers, strict=True):
        step(module, optimizer, 2)
    assert torch.equal(first.weight, second.weight)
