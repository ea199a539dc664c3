"""Builds the torch network of a config: backbone, Global Context, pooling, neck."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lmk.embed.errors import ModelError
from lmk.embed.memory_errors import raise_system_cause
from lmk.embed.network.backbone import build_backbone, insert_global_context
from lmk.embed.network.config import FILE, HUB, SHIPPED, EmbedderConfig, shipped_weights
from lmk.embed.network.heads import EmbeddingNetwork, Ensemble
from lmk.embed.process import start_threads
from lmk.embed.weights import load_weights, read_state

if TYPE_CHECKING:
    from torch import nn

_NO_FIT = "these weights do not fit the model"
_REBUILD = "build the index again with lmk build-index"


def build_network(
    config: EmbedderConfig, weights: Path | None, *, whole: bool = False
) -> EmbeddingNetwork:
    """Returns the network of a config, in eval mode.

    Args:
        config: the settings of the network.
        weights: the weights file if config.weights is "file"; None there means random weights.
        whole: True if `weights` is a file of an embedder's folder, with neck and pooling.

    Raises:
        ModelError: the weights cannot be loaded or do not fit.
    """
    in_folder = (
        whole and weights is not None and (weights.exists() or config.weights in (HUB, FILE))
    )
    shipped = config.weights == SHIPPED and not in_folder
    source = None if in_folder or shipped else weights if config.weights == FILE else config.weights
    if config.members:
        members = [build_network(member, None) for member in config.members]
        backbone: nn.Module = Ensemble(members, [member.size for member in config.members])
    else:
        backbone = build_backbone(config.backbone, source)
    if config.global_context is not None:
        insert_global_context(backbone, config.global_context)
    network = EmbeddingNetwork(backbone, config)
    if shipped:
        file = shipped_weights(config.name)
        load_weights(network, read_state(file), file, remedy="install lmk again")  # widens fp16
    elif in_folder and weights is not None:
        load_weights(network, read_state(weights), weights, what=_NO_FIT, remedy=_REBUILD)
    return network.eval()


def try_network(network: EmbeddingNetwork, config: EmbedderConfig) -> None:
    """Runs one grey picture through a network, as some models support only one size.

    Raises:
        ModelError: the network fails, or its features are not finite.
        ForkedProcess: this process is a fork of one in which a network has run.
    """
    start_threads()
    picture = torch.full((1, max(config.size, 0), max(config.size, 0), 3), 127, dtype=torch.uint8)
    try:
        with torch.inference_mode():
            finite = bool(torch.isfinite(network(picture)).all())
    except Exception as error:
        raise_system_cause(error)
        reason = " ".join(str(error).split()) or type(error).__name__
        what = f"cannot take pictures of {config.size} px: {reason}"
        remedy = "give another --size, or leave it out"
        raise ModelError(what, where=config.name, remedy=remedy) from error
    if not finite:
        raise ModelError(
            "its weights give no finite features", where=config.name, remedy="give other --weights"
        )
