"""The network of a run: its initial weights, its frozen weights and its optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, floor, pi
from pathlib import Path

import torch
from torch import nn

from lmk.embed.errors import ModelError, UsageError
from lmk.embed.network.backbone import PACKAGED
from lmk.embed.network.build import build_network
from lmk.embed.network.config import EMBEDDER_FILE, FILE, HUB, EmbedderConfig, timm_data
from lmk.embed.network.heads import EmbeddingNetwork, GeM
from lmk.embed.train.config import NONE, Optimizer, Schedule, TrainConfig
from lmk.embed.weights import load_weights, read_state

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_WEIGHTS = "weights.safetensors"  # of an embedder's folder
_POOL, _NECK = "pool.", "neck."  # beginnings of weights' names


def embedder_config(config: TrainConfig) -> EmbedderConfig:
    """Returns the config of the embedder that results from a run.

    Raises:
        ModelError: timm knows no such backbone.
    """
    model, data = config.model, timm_data(config.model.backbone)
    if data is None:
        remedy = "check model.backbone"
        raise ModelError("timm knows no such model", where=model.backbone, remedy=remedy)
    return EmbedderConfig(
        name=config.name,
        backbone=model.backbone,
        weights=FILE,
        size=config.embedder_size,
        mean=model.mean or data["mean"],
        std=model.std or data["std"],
        gem_p=model.gem_p,
        neck=model.neck,
        neck_form=model.neck_form,
        pooling=model.pooling,
        neck_activation=model.neck_activation,
        global_context=model.global_context,
    )


def starts_with_neck(config: TrainConfig) -> bool:
    """True if the run starts from an embedder's folder whose network has a neck."""
    folder = Path(config.model.weights)
    if not (folder / EMBEDDER_FILE).is_file():
        return False
    return any(name.startswith(_NECK) for name in read_state(folder / _WEIGHTS))


def start_network(config: TrainConfig) -> EmbeddingNetwork:
    """Returns the network with its initial weights; random weights depend on the seed.

    Raises:
        ModelError: the weights cannot be loaded or do not fit.
    """
    wanted, source = embedder_config(config), config.model.weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if source == HUB or source.startswith(PACKAGED):
            network = build_network(wanted.model_copy(update={"weights": source}), None)
        elif source == NONE:
            network = build_network(wanted, None)
        elif (Path(source) / EMBEDDER_FILE).is_file():
            network = _from_folder(wanted, Path(source))
        else:
            network = build_network(wanted, Path(source))
    for module in network.modules():
        if isinstance(module, GeM):
            module.p.requires_grad_(config.model.train_gem)
    _freeze(network, config.freeze)
    return network


def _from_folder(wanted: EmbedderConfig, folder: Path) -> EmbeddingNetwork:
    """Returns a network with the weights of an embedder's folder; other parts start afresh."""
    network = build_network(wanted, None)
    own, given = network.state_dict(), read_state(folder / _WEIGHTS)
    for ending in (_POOL, _NECK):
        fresh = {name: tensor for name, tensor in own.items() if name.startswith(ending)}
        if not fresh or not any(name.startswith(ending) for name in given):
            given = {name: each for name, each in given.items() if not name.startswith(ending)}
            given |= fresh
    what = "this embedder's network is not that of the settings"
    remedy = "give the settings of `model` that this embedder was trained with"
    load_weights(network, given, folder, what=what, remedy=remedy)
    return network


def _freeze(network: nn.Module, beginnings: Sequence[str]) -> None:
    for beginning in beginnings:
        frozen = [p for name, p in network.named_parameters() if name.startswith(beginning)]
        if not frozen:
            first = next(name for name, _ in network.named_parameters())
            what = f"no weight's name begins with {beginning!r} (the first is {first})"
            remedy = "see the names in weights.safetensors"
            raise UsageError(what, where="freeze", remedy=remedy)
        for parameter in frozen:
            parameter.requires_grad_(False)


def set_training(module: nn.Module, *, freeze_norms: bool) -> None:
    """Sets a module to training mode; frozen BatchNorms keep their mean and variance.

    A BatchNorm with frozen weights is frozen with its statistics.
    """
    module.train()
    for each in module.modules():
        if isinstance(each, _NORMS):
            fixed = each.weight is not None and not each.weight.requires_grad
            if freeze_norms or fixed:
                each.eval()


def build_optimizer(
    settings: Optimizer, network: EmbeddingNetwork, tasks: nn.Module
) -> torch.optim.Optimizer:
    """Returns the optimizer; the "scale" of a group multiplies the scheduled learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    scales = {"backbone": settings.backbone_lr, "tasks": settings.head_lr}
    named = [*network.named_parameters(), *tasks.named_parameters(prefix="tasks")]
    for name, parameter in named:
        if parameter.requires_grad:
            scale = scales.get(name.partition(".")[0], 1.0)
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    listed = [
        {"params": params, "scale": scale, "weight_decay": decay}
        for (scale, decay), params in groups.items()
    ]
    if not listed:
        raise UsageError("leaves nothing to train", where="freeze", remedy="freeze less")
    if settings.kind == "adamw":
        return torch.optim.AdamW(listed, lr=settings.lr, betas=(settings.momentum, 0.999))
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(listed, settings.lr, momentum=settings.momentum, nesterov=nesterov)


def lr_factor(settings: Schedule, epoch: float, epochs: int) -> float:
    """Returns the learning rate as a fraction of its peak.

    Args:
        settings: the schedule.
        epoch: number of epochs done, from 0 to `epochs`; may be a fraction.
        epochs: number of epochs of the run.
    """
    if epoch < settings.warmup:
        if settings.warmup_growth is not None:
            return float(settings.warmup_growth ** (floor(epoch) - settings.warmup))
        return epoch / settings.warmup
    if settings.kind == "multistep":
        return float(settings.gamma ** sum(milestone <= epoch for milestone in settings.milestones))
    done = (epoch - settings.warmup) / (epochs - settings.warmup)
    half_wave = 0.5 * (1 + cos(pi * done))
    return settings.floor + (1 - settings.floor) * half_wave
