"""Learner: a network with its tasks and optimizer, which trains step by step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lmk.embed.network.heads import EmbeddingNetwork
from lmk.embed.train.checkpoint import load_optimizer, optimizer_tensors, part, prefixed
from lmk.embed.train.config import TrainConfig
from lmk.embed.train.devices import World
from lmk.embed.train.memory_bank import Memory
from lmk.embed.train.network import build_optimizer, set_training
from lmk.embed.train.reading import Batch
from lmk.embed.train.tag_task import TagTask
from lmk.embed.train.tasks import Task


class _Forward(nn.Module):
    """Module from pictures and targets to the weighted sum of each task's losses."""

    def __init__(
        self, network: EmbeddingNetwork, tasks: nn.ModuleList, precision: torch.dtype
    ) -> None:
        super().__init__()
        self.network = network
        self.tasks = tasks
        self._precision = precision

    def forward(
        self, pictures: Tensor, targets: list[Tensor], weights: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns sums float32 [tasks] over pictures uint8 [n, size, size, 3], and embeddings."""
        kind = pictures.device.type
        reduced = self._precision != torch.float32
        with torch.autocast(kind, self._precision, enabled=reduced):
            embeddings = self.network(pictures)
        each = zip(self.tasks, targets, weights, strict=True)
        sums = [(task(embeddings.float(), wanted) * weight).sum() for task, wanted, weight in each]
        return torch.stack(sums), embeddings.detach().float()


class Learner:
    """Trains a network in steps of one or more micro-batches.

    A step's loss is, for each task, sum(weight * loss) / sum(weight) over all its micro-batches
    in all processes, so accumulated micro-batches and several processes give the gradients of one
    large batch. BatchNorm is the exception: its statistics are those of one micro-batch, on GPUs
    over all processes.

    Args:
        config: the settings of the run.
        network: the network with its initial weights.
        tasks: the tasks.
        device, precision, world: the device, the number format and the processes.
        memory: the memory, which is updated after each step, or None.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: EmbeddingNetwork,
        tasks: Sequence[Task],
        *,
        device: torch.device,
        precision: torch.dtype,
        world: World,
        memory: Memory | None = None,
    ) -> None:
        self._config = config
        self._memory = memory
        self._device = device
        self._world = world
        if world.size > 1 and device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network
        self.tasks = tuple(tasks)
        modules = nn.ModuleList(tasks).to(device)
        self._modules = modules
        forward = _Forward(network, modules, precision)
        self._forward: nn.Module = forward
        if world.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            self._forward = DistributedDataParallel(forward, device_ids=ids)
        self._optimizer = build_optimizer(config.optimizer, network, modules)
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.tag_task = next((task for task in tasks if isinstance(task, TagTask)), None)
        self._ema = self._ema_head = None
        if config.ema:
            self._ema = ModelEmaV3(network, config.ema, use_warmup=True)
            if self.tag_task is not None:
                self._ema_head = ModelEmaV3(self.tag_task.head, config.ema, use_warmup=True)

    def result(self) -> dict[str, Tensor]:
        """Returns the weights to validate and save: the moving average if there is one.

        The weights of the tags' head are named "tags.weight" and "tags.bias"; all others belong to
        the network.
        """
        network = self.network if self._ema is None else self._ema.module
        if self.tag_task is None:
            return network.state_dict()
        head = self.tag_task.head if self._ema_head is None else self._ema_head.module
        return {**network.state_dict(), **prefixed("tags", head.state_dict())}

    def step(self, number: int, batches: Sequence[Batch], lr_factor: float) -> Tensor:
        """Takes one step.

        Args:
            number: number of the step, from 0. With the seed it determines all random numbers.
            batches: this process's slice of each micro-batch.
            lr_factor: the learning rate as a fraction of its peak.

        Returns:
            The mean loss of each task over the whole step, float32 [tasks], on the device.
        """
        _seed(self._config.seed, number, self._world.rank)
        set_training(self._forward, freeze_norms=self._config.freeze_norms)
        numbers = [batch.numbers for batch in batches]
        each = [task.step_targets(number, numbers, self._world) for task in self.tasks]
        targets = zip(*each, strict=True)
        prepared = [self._prepare(*both) for both in zip(batches, targets, strict=True)]
        weights = torch.stack([torch.stack([w.sum() for w in each[2]]) for each in prepared])
        whole = self._world.sum(weights.sum(dim=0)).clamp(min=1e-12)
        loss_weights = (
            torch.tensor([task.loss_weight for task in self.tasks], device=self._device) / whole
        )
        totals = torch.zeros_like(whole)
        seen: list[Tensor] = []
        for i, inputs in enumerate(prepared):
            last = i == len(prepared) - 1
            ddp = isinstance(self._forward, DistributedDataParallel)
            # DistributedDataParallel averages gradients over processes, but the loss is a sum.
            with nullcontext() if last or not ddp else self._forward.no_sync():  # type: ignore[operator]
                sums, embeddings = self._forward(*inputs)
                self._scaler.scale((sums * loss_weights).sum() * self._world.size).backward()
            totals += sums.detach()
            seen.append(embeddings)
        self._update(number, lr_factor)
        self._remember(batches, seen)
        return self._world.sum(totals) / whole

    def _remember(self, batches: Sequence[Batch], seen: Sequence[Tensor]) -> None:
        """Updates the memory with the embeddings of all processes."""
        if self._memory is None:
            return
        numbers = np.concatenate([batch.numbers for batch in batches])
        own = (numbers, torch.cat(list(seen)).cpu().numpy())
        each = self._world.gather(own)
        self._memory.update(
            torch.from_numpy(np.concatenate([numbers for numbers, _ in each])),
            torch.from_numpy(np.concatenate([vectors for _, vectors in each])),
        )

    def _prepare(
        self, batch: Batch, targets: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        pictures = batch.pictures.to(self._device, non_blocking=True)
        moved = [own.to(self._device) for own in targets]
        weights = [task.weights(own) for task, own in zip(self.tasks, moved, strict=True)]
        return pictures, moved, weights

    def _update(self, number: int, lr_factor: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.optimizer.lr * group["scale"] * lr_factor
        if self._config.clip is not None:
            self._scaler.unscale_(self._optimizer)
            moved = [p for group in self._optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(moved, self._config.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.update(self.network, step=number + 1)
        if self._ema_head is not None and self.tag_task is not None:
            self._ema_head.update(self.tag_task.head, step=number + 1)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns everything that the next step depends on: tensors by name, and numbers."""
        tensors = prefixed("network", self.network.state_dict())
        tensors |= prefixed("tasks", self._modules.state_dict())
        tensors |= prefixed("optimizer", optimizer_tensors(self._optimizer))
        if self._ema is not None:
            tensors |= prefixed("ema", self._ema.module.state_dict())
        if self._ema_head is not None:
            tensors |= prefixed("ema_tags", self._ema_head.module.state_dict())
        if self._memory is not None:
            tensors["memory"] = self._memory.vectors
        return tensors, {"scaler": self._scaler.state_dict()}

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Restores a state."""
        self.network.load_state_dict(part("network", tensors))
        self._modules.load_state_dict(part("tasks", tensors))
        load_optimizer(self._optimizer, part("optimizer", tensors))
        if self._ema is not None:
            self._ema.module.load_state_dict(part("ema", tensors))
        if self._ema_head is not None:
            self._ema_head.module.load_state_dict(part("ema_tags", tensors))
        if self._memory is not None:
            self._memory.set(tensors["memory"])
        if numbers["scaler"]:
            self._scaler.load_state_dict(numbers["scaler"])


def _seed(*parts: int) -> None:
    """Seeds torch's random numbers from integers."""
    torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1))
