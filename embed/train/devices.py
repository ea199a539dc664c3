"""The device, the precision and the processes of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lmk.embed.errors import UsageError

# The other processes wait while the first one validates and writes.
_PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class World:
    """The processes of a run that torchrun has started.

    Attributes:
        rank: number of this process.
        size: number of processes.
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def first(self) -> bool:
        """True if this process is the one that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum over all processes, in every process."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in every process."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def wait(self) -> None:
        """Returns when all processes have called it."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Joins the other processes of the run, if torchrun has started any."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield World(dist.get_rank(), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    finally:
        dist.destroy_process_group()


def chosen_device(name: str) -> torch.device:
    """Returns the device for "auto", "cpu" or "cuda" (that of this process, under torchrun).

    Raises:
        UsageError: the name is "cuda" and there is no CUDA device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        remedy = "train on the CPU with --device cpu, or check nvidia-smi"
        raise UsageError("there is no GPU that torch can use", where="--device cuda", remedy=remedy)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def chosen_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the number format of the network's arithmetic.

    Args:
        name: "fp32", "bf16", "fp16" or "auto" (see TrainConfig).
        device: the device.

    Raises:
        UsageError: the device does not support the format.
    """
    on_gpu = device.type == "cuda"
    if name == "auto":
        if on_gpu:
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
    if name == "fp16" and not on_gpu:
        raise UsageError("needs a GPU", where="precision fp16", remedy="choose bf16 or fp32")
    if name == "bf16":
        able = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
        if not able:
            what = f"this {'GPU' if on_gpu else 'CPU'} has no bf16 arithmetic"
            remedy = "choose fp32, or auto"
            raise UsageError(what, where="precision bf16", remedy=remedy)
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
