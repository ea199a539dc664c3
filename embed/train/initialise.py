"""Initial state of a run besides its weights: the neck's whitening and the memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.config import EmbedderConfig
from lmk.embed.network.heads import CentredNeck, EmbeddingNetwork
from lmk.embed.network.whitening import fit_whitening
from lmk.embed.progress import Progress, no_progress
from lmk.embed.train.checkpoint import computed_once
from lmk.embed.train.config import TrainConfig
from lmk.embed.train.devices import World
from lmk.embed.train.memory_bank import Memory
from lmk.embed.train.network import embedder_config, starts_with_neck
from lmk.embed.train.training_features import require_enough, spread, stored_features

_MEAN, _MATRIX, _VECTORS = "neck.mean", "neck.matrix", "vectors"


@dataclass(frozen=True, eq=False)
class Start:
    """Result of `prepare_start`.

    Attributes:
        memory: the memory with the vectors of the initial network; None if no task needs it.
        skipped: the pictures that cannot be read, each with a reason.
    """

    memory: Memory | None
    skipped: tuple[Skipped, ...]


def prepare_start(
    config: TrainConfig,
    network: EmbeddingNetwork,
    manifests: Sequence[Manifest],
    *,
    stored: Path,
    features: Path,
    device: torch.device,
    world: World,
    on_progress: Progress = no_progress,
) -> Start:
    """Initialises the neck with a whitening and fills the memory, if the settings need it.

    Args:
        config: the settings of the run.
        network: the network; its neck is changed in place.
        manifests: the training set.
        stored: the file that stores both results, for a resumed run.
        features: the folder of the features.
        device: the device of the memory.
        world: the processes; the first one computes.
        on_progress: called with (stage, done, total).

    Raises:
        ManifestError: there are too few pictures for a whitening.
    """
    whitened = config.model.neck_form == "centred" and not starts_with_neck(config)
    if not whitened and not config.remembers:
        return Start(None, ())

    def compute() -> tuple[dict[str, Tensor], tuple[Skipped, ...]]:
        tensors: dict[str, Tensor] = {}
        skipped: tuple[Skipped, ...] = ()
        wanted = embedder_config(config)
        if whitened:
            tensors, skipped = _whiten(config, wanted, network, manifests, features, on_progress)
        if config.remembers:
            embedder, stage = Embedder.of(wanted, copy.deepcopy(network)), "the starting network"
            read = stored_features(manifests, embedder, features, stage, on_progress)
            vectors = torch.zeros(sum(map(len, manifests)), network.dim)
            vectors[read.numbers] = torch.from_numpy(read.store.read(read.sha256s))
            tensors, skipped = tensors | {_VECTORS: vectors}, read.skipped
        return tensors, skipped

    tensors, skipped = computed_once(stored, world, compute)
    if whitened:
        _set_neck(network, tensors)
    memory = None
    if config.remembers:
        memory = Memory(tensors[_VECTORS], config.memory_keep, device)
    return Start(memory, skipped)


def _whiten(
    config: TrainConfig,
    wanted: EmbedderConfig,
    network: EmbeddingNetwork,
    manifests: Sequence[Manifest],
    features: Path,
    on_progress: Progress,
) -> tuple[dict[str, Tensor], tuple[Skipped, ...]]:
    """Fits the whitening of the pooled features, and sets the neck to it."""
    plain = wanted.model_copy(update={"neck": None, "neck_form": "norm"})
    pooled = EmbeddingNetwork(copy.deepcopy(network.backbone), plain).eval()
    pooled.pool.load_state_dict(network.pool.state_dict())
    embedder = Embedder.of(plain, pooled)
    read = stored_features(manifests, embedder, features, "features to whiten", on_progress)
    require_enough(len(read.numbers), pooled.dim, network.dim)
    sample = [read.sha256s[i] for i in spread(len(read.numbers))]
    whitening = fit_whitening(read.store.read(sample), network.dim, config.model.whitening_power)
    arrays = {_MEAN: whitening.mean, _MATRIX: whitening.matrix}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    _set_neck(network, tensors)
    return tensors, read.skipped


def _set_neck(network: EmbeddingNetwork, tensors: dict[str, Tensor]) -> None:
    neck = network.neck
    assert isinstance(neck, CentredNeck)
    neck.load_state_dict({"mean": tensors[_MEAN], "matrix": tensors[_MATRIX]})
