"""Embedder: pictures to unit vectors, with its folder format and its fingerprint.

A folder holds config.json, weights.safetensors (unless an installed package has them),
whitening.safetensors (when there is one) and graph.xml + graph.bin, the network as OpenVINO
runs it. With the graph at hand torch is never imported.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import EmbedderMismatch, ModelError
from lmk.embed.images import IMAGES_VERSION, Picture, Skipped, decode, read_bytes
from lmk.embed.runtime import (
    OpenVinoRuntime,
    Runtime,
    TorchRuntime,
    export_graph,
    openvino_usable,
)
from lmk.embed.whitening import WHITENING_VERSION, Whitening

if TYPE_CHECKING:
    from lmk.embed.heads import EmbeddingNetwork

DEFAULT = "lite1"
HUB, FILE = "hub", "file"  # where weights come from, beside "package:NAME"
FORMAT = 1
NETWORK_VERSION = 1  # raise it when backbone.py or heads.py compute other features
_CONFIG, _GRAPH, _WEIGHTS, _WHITENING = (
    "config.json",
    "graph.xml",
    "weights.safetensors",
    "whitening.safetensors",
)


class EmbedderConfig(BaseModel):
    """What an embedder is made of, weights and whitening apart.

    Attributes:
        name: the preset's or model's name, for people.
        backbone: the timm model.
        weights: "package:NAME", "hub", or "file" for weights kept in the folder.
        size: side of the square pictures are squashed to, in pixels.
        mean, std: of the pixels in 0..1, as the backbone was trained.
        gem_p: the power of GeM pooling (the start value where it is trained).
        neck: dimension of the neck, or None for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    backbone: str
    weights: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    gem_p: float
    neck: int | None = None


class Embedder:
    """Turns pictures into unit vectors whose dot product is their similarity.

    Made by `Embedder.named` (a preset or timm model), `Embedder.load` (a folder) and
    `with_whitening`; never changed afterwards.

    Attributes:
        config: what it is made of.
        whitening: learnt on a gallery, or None.
        feature_fingerprint: of the network and the preprocessing, without the whitening.
        fingerprint: of everything that moves a vector.
        dim: components of a vector.
    """

    def __init__(
        self,
        config: EmbedderConfig,
        *,
        weights_sha256: str,
        feature_dim: int,
        network: EmbeddingNetwork | None = None,
        folder: Path | None = None,
        whitening: Whitening | None = None,
    ) -> None:
        self.config = config
        self.whitening = whitening
        self.feature_dim = feature_dim
        self.dim = whitening.dim if whitening else feature_dim
        self._weights_sha256 = weights_sha256
        self._network = network
        self._folder = folder
        self._exported: TemporaryDirectory[str] | None = None  # removed with the last embedder
        self._runtime: Runtime | None = None
        self.feature_fingerprint = _feature_fingerprint(config, weights_sha256)
        self.fingerprint = _fingerprint(self.feature_fingerprint, whitening)

    @classmethod
    def named(
        cls,
        name: str = DEFAULT,
        *,
        weights: Path | None = None,
        pretrained: bool = False,
        size: int | None = None,
    ) -> Embedder:
        """An embedder by name.

        Args:
            name: a preset ("lite1", "lite0"), an embedder's folder, or any timm model.
            weights: a .safetensors or .pth file for a timm model.
            pretrained: take the timm model's weights from its hub (needs a network).
            size: side of the pictures in pixels, instead of the preset's or model's own.

        Raises:
            ModelError: on an unknown name, or a timm model with neither weights nor pretrained.
        """
        if (Path(name) / _CONFIG).is_file():
            if weights or pretrained or size:
                raise ModelError(
                    "an embedder's folder has its own weights and size",
                    where=name,
                    remedy="leave out --weights, --pretrained and --size",
                )
            return cls.load(Path(name))
        config = _preset(name) if name in preset_names() else None
        if config is None:
            config = _timm_config(name, weights, pretrained)
        elif weights or pretrained:
            config = config.model_copy(update={"weights": HUB if pretrained else FILE})
        if size is not None:
            config = config.model_copy(update={"size": size})
        network = _build(config, weights)
        return cls(
            config,
            weights_sha256=_state_sha256(network),
            feature_dim=network.dim,
            network=network,
        )

    @classmethod
    def load(cls, folder: Path) -> Embedder:
        """Opens an embedder's folder; reads no weights before they are needed.

        Raises:
            ModelError: when the folder is no embedder, or one of a newer format.
        """
        try:
            saved = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            if saved["format"] > FORMAT:
                raise ModelError(
                    "was written by a newer lmk", where=folder, remedy="install a newer lmk"
                )
            embedder = cls(
                EmbedderConfig.model_validate(saved["config"]),
                weights_sha256=saved["weights_sha256"],
                feature_dim=saved["feature_dim"],
                folder=folder,
                whitening=_load_whitening(folder / _WHITENING),
            )
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise ModelError(
                f"is not an embedder's folder ({type(error).__name__})",
                where=folder,
                remedy="build the index again",
            ) from error
        if embedder.fingerprint != saved["fingerprint"]:
            raise EmbedderMismatch(
                "was made by another version of lmk, whose vectors differ",
                where=folder,
                remedy="build the index again with lmk build-index",
            )
        return embedder

    def save(self, folder: Path) -> None:
        """Writes the embedder into an existing, empty folder.

        Raises:
            OSError: when the folder cannot be written.
        """
        saved = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "weights_sha256": self._weights_sha256,
            "feature_dim": self.feature_dim,
            "config": self.config.model_dump(),
        }
        (folder / _CONFIG).write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
        if self.whitening is not None:
            _save_whitening(self.whitening, folder / _WHITENING)
        if self._folder is not None and (self._folder / _WEIGHTS).exists():
            shutil.copyfile(self._folder / _WEIGHTS, folder / _WEIGHTS)
        elif self.config.weights in (HUB, FILE):
            from safetensors.torch import save_file

            save_file(dict(self.network().state_dict()), folder / _WEIGHTS)
        if openvino_usable():
            graph = self._graph()
            shutil.copyfile(graph, folder / _GRAPH)
            shutil.copyfile(graph.with_suffix(".bin"), (folder / _GRAPH).with_suffix(".bin"))

    def with_whitening(self, whitening: Whitening | None) -> Embedder:
        """The same network followed by another whitening."""
        other = copy.copy(self)
        other.whitening = whitening
        other.dim = whitening.dim if whitening else self.feature_dim
        other.fingerprint = _fingerprint(self.feature_fingerprint, whitening)
        return other

    def network(self) -> EmbeddingNetwork:
        """The torch network, built on first use."""
        if self._network is None:
            kept = self._folder / _WEIGHTS if self._folder else None
            self._network = _build(self.config, kept, whole=True)
            if _state_sha256(self._network) != self._weights_sha256:
                raise EmbedderMismatch(
                    "the weights are not the ones this index was built with",
                    where=self._folder,
                    remedy="build the index again with lmk build-index",
                )
        return self._network

    def start(self, *, cache: Path | None = None) -> Runtime:
        """The runtime, started on first use: CUDA if there is one, else OpenVINO, else torch.

        Args:
            cache: a folder for OpenVINO's compiled graphs, for a quicker start next time.
        """
        if self._runtime is None:
            if openvino_usable() and not _cuda():
                self._runtime = OpenVinoRuntime(self._graph(), cache=cache)
            else:
                self._runtime = TorchRuntime(self.network())
        return self._runtime

    def _graph(self) -> Path:
        """The network as an OpenVINO graph: the folder's own, else exported once a process."""
        if self._folder is not None and (self._folder / _GRAPH).exists():
            return self._folder / _GRAPH
        if self._exported is None:
            exported = TemporaryDirectory(prefix="lmk-graph-")
            export_graph(self.network(), self.config.size, Path(exported.name) / _GRAPH)
            self._exported = exported
        return Path(self._exported.name) / _GRAPH

    def features(self, pictures: Iterable[Picture]) -> Iterator[NDArray[np.float32]]:
        """Raw features float32 [feature_dim] of decoded pictures uint8 [size, size, 3]."""
        coming = iter(pictures)
        first = next(coming, None)
        if first is not None:  # starting the network takes seconds
            yield from self.start().stream(chain([first], coming))

    def vectors(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit vectors float32 [n, dim] of raw features [n, feature_dim]."""
        return self.whitening.apply(features) if self.whitening else unit_rows(features)

    def embed(self, pictures: Sequence[Path]) -> tuple[Embeddings, tuple[Skipped, ...]]:
        """Embeds some picture files; for thousands use `lmk.embed.extract`.

        Returns:
            The embeddings of those that can be read (ids are their paths), and the others.
        """
        skipped: list[Skipped] = []
        ids: list[str] = []

        def decoded() -> Iterator[Picture]:
            for path in pictures:
                data = read_bytes(path)
                picture = data if isinstance(data, str) else decode(data, self.config.size)
                if isinstance(picture, str):
                    skipped.append(Skipped(str(path), picture))
                else:
                    ids.append(str(path))
                    yield picture

        features = list(self.features(decoded()))
        rows = np.stack(features) if features else np.zeros((0, self.feature_dim), np.float32)
        return Embeddings(self.vectors(rows), tuple(ids), self.fingerprint), tuple(skipped)


def preset_names() -> tuple[str, ...]:
    """The names of the presets that lmk comes with."""
    folder = resources.files("lmk.embed") / "presets"
    return tuple(sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".json")))


def _preset(name: str) -> EmbedderConfig:
    text = (resources.files("lmk.embed") / "presets" / f"{name}.json").read_text("utf-8")
    return EmbedderConfig.model_validate_json(text)


def _timm_config(name: str, weights: Path | None, pretrained: bool) -> EmbedderConfig:
    from timm.data.config import resolve_data_config
    from timm.models import get_pretrained_cfg, is_model

    if not is_model(name):
        raise ModelError(
            f"is no preset ({', '.join(preset_names())}), no embedder's folder and no timm model",
            where=name,
            remedy="check the spelling, or leave --model out for the default",
        )
    if weights is None and not pretrained:
        raise ModelError(
            "has no weights on this machine",
            where=name,
            remedy="give a file with --weights, or fetch them from timm's hub with --pretrained",
        )
    known = get_pretrained_cfg(name)
    cfg: Any = resolve_data_config
    data = cfg(pretrained_cfg=asdict(known) if known else {})
    return EmbedderConfig(
        name=name,
        backbone=name,
        weights=HUB if pretrained else FILE,
        size=data["input_size"][1],
        mean=data["mean"],
        std=data["std"],
        gem_p=3.0,
    )


def _build(
    config: EmbedderConfig, weights: Path | None, *, whole: bool = False
) -> EmbeddingNetwork:
    """The network of a config; `whole` weights are our own file, neck and pooling included."""
    from lmk.embed.backbone import build_backbone, read_state
    from lmk.embed.heads import EmbeddingNetwork

    kept = whole and weights is not None and weights.exists()
    source = None if kept else weights if config.weights == FILE else config.weights
    network = EmbeddingNetwork(
        build_backbone(config.backbone, source),
        mean=config.mean,
        std=config.std,
        gem_p=config.gem_p,
        neck=config.neck,
    )
    if kept and weights is not None:
        network.load_state_dict(read_state(weights))
    return network.eval()


def _cuda() -> bool:
    """Whether there is a CUDA device, asked without importing torch where there is no driver."""
    if not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return bool(torch.cuda.is_available())


def _state_sha256(network: EmbeddingNetwork) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            array = tensor.detach().cpu().numpy()
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _feature_fingerprint(config: EmbedderConfig, weights_sha256: str) -> str:
    moving = config.model_dump(exclude={"name", "weights"})
    parts = {"config": moving, "weights": weights_sha256}
    parts["versions"] = {"images": IMAGES_VERSION, "network": NETWORK_VERSION}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _fingerprint(features: str, whitening: Whitening | None) -> str:
    digest = hashlib.sha256(features.encode())
    if whitening is not None:
        digest.update(f"whitening {WHITENING_VERSION}".encode())
        digest.update(np.ascontiguousarray(whitening.mean).tobytes())
        digest.update(np.ascontiguousarray(whitening.matrix).tobytes())
    return digest.hexdigest()


def _save_whitening(whitening: Whitening, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"mean": whitening.mean, "matrix": np.ascontiguousarray(whitening.matrix)}, path)


def _load_whitening(path: Path) -> Whitening | None:
    if not path.exists():
        return None
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return Whitening(tensors["mean"], tensors["matrix"])
