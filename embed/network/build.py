"""The torch network of a config: backbone, Global Context, pooling, neck. Imports torch."""

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
    """The network of a config, in eval mode.

    Args:
        config: what it is made of.
        weights: a file, where config.weights is "file"; None for random weights there.
        whole: `weights` is a file of an embedder's folder, neck and pooling included.

    Raises:
        ModelError: weights that cannot be had or do not fit.
    """
    kept = whole and weights is not None and (weights.exists() or config.weights in (HUB, FILE))
    shipped = config.weights == SHIPPED and not kept
    source = None if kept or shipped else weights if config.weights == FILE else config.weights
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
    elif kept and weights is not None:
        load_weights(network, read_state(weights), weights, what=_NO_FIT, remedy=_REBUILD)
    return network.eval()


def try_network(network: EmbeddingNetwork, config: EmbedderConfig) -> None:
    """Runs one grey picture: some models take pictures of one size only.

    Raises:
        ModelError: it fails, or gives features that are not finite.
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
        raise ModelError(
            f"cannot take pictures of {config.size} px: {reason}",
            where=config.name,
            remedy="give another --size, or leave it out",
        ) from error
    if not finite:
        raise ModelError(
            "its weights give no finite features", where=config.name, remedy="give other --weights"
        )
