"""Embedder: turns pictures into unit vectors.

embedder_folder.py reads and writes the files of an embedder's folder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import Picture, Skipped, decode
from lmk.embed.data.sources import PictureSource, Source, picture_sources
from lmk.embed.defaults import DEFAULT
from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import EmbedderMismatch, ModelError
from lmk.embed.extract.embedder_folder import (
    FORMAT,
    GRAPH,
    GRAPH_WEIGHTS,
    WEIGHTS,
    EmbedderFolder,
    SavedEmbedder,
    write_folder,
)
from lmk.embed.network.config import (
    FILE,
    HUB,
    EmbedderConfig,
    embedder_folder,
    ensemble_config,
    preset,
    preset_names,
    timm_config,
)
from lmk.embed.network.fingerprint import feature_fingerprint_of, fingerprint_of, state_sha256
from lmk.embed.network.runtime import (
    OpenVinoRuntime,
    Runtime,
    TorchRuntime,
    export_graph,
    openvino_usable,
)
from lmk.embed.network.whitening import Whitening
from lmk.embed.process import start_threads
from lmk.embed.scratch import ScratchFolder

if TYPE_CHECKING:
    from lmk.embed.network.heads import EmbeddingNetwork

_REBUILD = "build the index again with lmk build-index"


class Embedder:
    """Turns pictures into unit vectors whose dot product is their similarity.

    `Embedder.named` (a preset or timm model), `Embedder.load` (a folder) and `with_whitening`
    make one. An embedder never changes.

    Attributes:
        config: the settings of the network.
        whitening: the whitening fitted on a gallery, or None.
        feature_fingerprint: fingerprint of the network and the preprocessing, without whitening.
        fingerprint: fingerprint of everything that affects a vector.
        dim: number of components of a vector.
        folder: the folder it was loaded from, or None for a preset or model.
    """

    def __init__(
        self,
        config: EmbedderConfig,
        *,
        weights_sha256: str,
        feature_dim: int,
        network: EmbeddingNetwork | None = None,
        whitening: Whitening | None = None,
        files: EmbedderFolder | None = None,
    ) -> None:
        self.config = config
        self.whitening = whitening
        self.feature_dim = feature_dim
        self.dim = whitening.dim if whitening else feature_dim
        self._weights_sha256 = weights_sha256
        self._network = network
        self.folder = None if files is None else files.path
        self._files = files
        self._exported: ScratchFolder | None = None  # removed with the last embedder that holds it
        self._runtime: Runtime | None = None
        self.feature_fingerprint = feature_fingerprint_of(config, weights_sha256)
        self.fingerprint = fingerprint_of(self.feature_fingerprint, whitening)

    @classmethod
    def named(
        cls,
        name: str = DEFAULT,
        *,
        weights: Path | None = None,
        pretrained: bool = False,
        size: int | None = None,
    ) -> Embedder:
        """Returns the embedder with a name.

        Args:
            name: a preset ("lite1", "lite0"), the tagger "tags-lite1", an embedder's folder, or
                any timm model. Several presets and folders joined by "+" are an ensemble.
            weights: a .safetensors or .pth file with the weights of a timm model.
            pretrained: download the timm model's weights from its hub.
            size: side of the pictures in pixels. Default: the size of the preset or model.

        Raises:
            ModelError: the name is unknown, a timm model has neither weights nor pretrained (or
                has both), or the model does not support the size.
        """
        if weights and pretrained:
            remedy = "give one of --weights and --pretrained"
            raise ModelError("weights from a file and from the hub", where=name, remedy=remedy)
        folder = embedder_folder(name)
        if folder is not None:
            if weights or pretrained or size:
                what = "an embedder's folder has its own weights and size"
                remedy = "leave out --weights, --pretrained and --size"
                raise ModelError(what, where=name, remedy=remedy)
            return cls.load(folder)
        if "+" in name:
            if weights or pretrained:
                remedy = "leave out --weights and --pretrained"
                what = "an ensemble's members have their own weights"
                raise ModelError(what, where=name, remedy=remedy)
            return cls.ensemble([cls.named(part, size=size) for part in name.split("+")])
        config = preset(name) if name in preset_names() else None
        if config is None:
            config = timm_config(name, weights, pretrained)
        elif weights or pretrained:
            config = config.model_copy(update={"weights": HUB if pretrained else FILE})
        if size is not None:
            config = config.model_copy(update={"size": size})
        from lmk.embed.network.build import build_network, try_network

        network = build_network(config, weights)
        try_network(network, config)
        return cls.of(config, network)

    @classmethod
    def of(cls, config: EmbedderConfig, network: EmbeddingNetwork) -> Embedder:
        """Returns an embedder with a network in memory; the network must not change afterwards.

        Args:
            config: settings of the network. Its weights come from the hub, a file or a package.
            network: a result of `lmk.embed.network.build.build_network`.
        """
        return cls(
            config, weights_sha256=state_sha256(network), feature_dim=network.dim, network=network
        )

    @classmethod
    def ensemble(cls, members: Sequence[Embedder]) -> Embedder:
        """Returns an ensemble: its features are the members' unit features, concatenated.

        A whitening fitted on a gallery (`with_whitening`) reduces the number of components.
        Pictures are decoded at the size of the largest member, and reduced for the others.

        Raises:
            ModelError: there are fewer than two members, or a member has a whitening.
        """
        name = "+".join(member.config.name for member in members)
        if len(members) < 2 or any(member.whitening for member in members):
            what = "an ensemble needs two members or more, none of them whitened"
            remedy = "leave the whitening to the ensemble"
            raise ModelError(what, where=name, remedy=remedy)
        config = ensemble_config([member.config for member in members])
        from lmk.embed.network.build import build_network

        network = build_network(config, None)
        for place, member in zip(network.backbone.members, members, strict=True):  # type: ignore[arg-type]
            place.load_state_dict(member.network().state_dict())
        return cls.of(config, network)

    @classmethod
    def load(cls, folder: Path, *, checked: bool = False) -> Embedder:
        """Returns the embedder of a folder. The weights are read when they are needed.

        Args:
            folder: a folder that `save` has written.
            checked: True if the files have been compared with their checksums already, as those
                of an open gallery. Otherwise each file is compared before it is used.

        Raises:
            ModelError: the folder is not an embedder, or has a newer format.
            ModelDamaged: a file has changed since it was written.
        """
        files = EmbedderFolder(folder, checked=checked)
        saved, whitening = files.read()
        embedder = cls(
            saved.config,
            weights_sha256=saved.weights_sha256,
            feature_dim=saved.feature_dim,
            whitening=whitening,
            files=files,
        )
        if embedder.fingerprint != saved.fingerprint:
            what = "was made by another version of lmk, whose vectors differ"
            raise EmbedderMismatch(what, where=folder, remedy=_REBUILD)
        return embedder

    def save(self, folder: Path) -> None:
        """Writes the embedder, and its tags if it has any, into an existing, empty folder.

        Raises:
            OSError: the folder cannot be written.
        """
        saved = SavedEmbedder(
            format=FORMAT,
            fingerprint=self.fingerprint,
            weights_sha256=self._weights_sha256,
            feature_dim=self.feature_dim,
            config=self.config,
        )
        write_folder(
            folder,
            saved,
            self.whitening,
            source=self._files,
            state=lambda: self.network().state_dict(),
            graph=self.graph,
        )

    def with_whitening(self, whitening: Whitening | None) -> Embedder:
        """Returns an embedder with the same network and another whitening."""
        other = copy.copy(self)
        other.whitening = whitening
        other.dim = whitening.dim if whitening else self.feature_dim
        other.fingerprint = fingerprint_of(self.feature_fingerprint, whitening)
        return other

    def with_views(self, *, flip: bool = False, scales: Sequence[float] = (1.0,)) -> Embedder:
        """Returns an embedder that computes several views of each picture and sums their features.

        The features of each view are scaled to length 1 before the sum. The cost grows with the
        number of views. The new embedder has another fingerprint.

        Args:
            flip: also use the mirror image.
            scales: sizes of the views relative to the config's size, above 0 and at most 1.

        Raises:
            ModelError: the embedder has a whitening, which was fitted on other features.
            ValueError: a scale is out of range.
        """
        if self.whitening is not None:
            what = "its whitening was fitted on single views"
            remedy = "choose the views before the whitening is fitted"
            raise ModelError(what, where=self.config.name, remedy=remedy)
        from lmk.embed.network.build import try_network
        from lmk.embed.network.heads import EmbeddingNetwork

        values = self.config.model_dump() | {"flip": flip, "scales": tuple(scales)}
        values["weights"] = HUB if self.config.weights == HUB else FILE
        config = EmbedderConfig.model_validate(values)
        network = EmbeddingNetwork(copy.deepcopy(self.network().backbone), config).eval()
        network.load_state_dict(self.network().state_dict())
        try_network(network, config)
        return Embedder.of(config, network)

    def with_runtime(self, runtime: Runtime) -> Embedder:
        """Returns the same embedder, whose network another runtime computes (an exported graph)."""
        other = copy.copy(self)
        other._runtime = runtime
        return other

    def network(self) -> EmbeddingNetwork:
        """Returns the torch network, which is built on first use."""
        if self._network is None:
            from lmk.embed.network.build import build_network

            if self._files is not None:
                self._files.require(WEIGHTS)
            weights = self.folder / WEIGHTS if self.folder else None
            self._network = build_network(self.config, weights, whole=True)
            if state_sha256(self._network) != self._weights_sha256:
                what = "the weights are not the ones this index was built with"
                raise EmbedderMismatch(what, where=self.folder, remedy=_REBUILD)
        return self._network

    def start(self) -> Runtime:
        """Returns the runtime, started on first use: CUDA if present, else OpenVINO, else torch.

        Raises:
            ForkedProcess: this process is a fork of one in which a network or a search has run.
        """
        start_threads()
        if self._runtime is None:
            if openvino_usable() and not _cuda():
                self._runtime = OpenVinoRuntime(self.graph())
            else:
                self._runtime = TorchRuntime(self.network())
        return self._runtime

    def lacks_graph(self) -> bool:
        """True if OpenVINO is installed and the folder lacks one of the two graph files."""
        if self.folder is None or not openvino_usable():
            return False
        return not all((self.folder / name).exists() for name in (GRAPH, GRAPH_WEIGHTS))

    def graph(self) -> Path:
        """Returns the path of the OpenVINO graph: the folder's, or one exported once per process.

        Raises:
            ModelDamaged: the graph in the folder has changed since it was written.
        """
        own = None if self._files is None else self._files.graph()
        if own is not None:
            return own
        if self._exported is None:
            exported = ScratchFolder("graph")
            export_graph(self.network(), self.config.size, exported.path / GRAPH)
            self._exported = exported
        return self._exported.path / GRAPH

    def features(self, pictures: Iterable[Picture]) -> Iterator[NDArray[np.float32]]:
        """Yields raw features float32 [feature_dim] of decoded pictures uint8 [size, size, 3]."""
        coming = iter(pictures)
        first = next(coming, None)
        if first is not None:  # the network takes seconds to start
            yield from self.start().stream(chain([first], coming))

    def vectors(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns unit vectors float32 [n, dim] of raw features [n, feature_dim]."""
        return self.whitening.apply(features) if self.whitening else unit_rows(features)

    def embed(
        self, pictures: Source | PictureSource | Iterable[Source | PictureSource]
    ) -> tuple[Embeddings, tuple[Skipped, ...]]:
        """Returns the embeddings of one or more pictures.

        For thousands of files, use `lmk.embed.extract.extract`.

        Args:
            pictures: paths, bytes of picture files, PIL images, or uint8 arrays
                [height, width, 3] in RGB order. One picture, or an iterable of pictures.

        Returns:
            The embeddings of the pictures that can be read, and the skipped ones. The id of a
            picture is its path, or "picture N" if it has none, with N counted from 0. A path
            given twice counts once.

        Raises:
            TypeError: `pictures` has another type; the message lists the accepted ones.
            UsageError: a folder is given as a picture.
        """
        sources = picture_sources(pictures)
        skipped: list[Skipped] = []
        ids: list[str] = []

        def decoded() -> Iterator[Picture]:
            for source in sources:
                data = source.read()
                picture = data if isinstance(data, str) else decode(data, self.config.size)
                if isinstance(picture, str):
                    skipped.append(Skipped(source.id, picture))
                else:
                    ids.append(source.id)
                    yield picture

        features = list(self.features(decoded()))
        rows = np.stack(features) if features else np.zeros((0, self.feature_dim), np.float32)
        return Embeddings(self.vectors(rows), tuple(ids), self.fingerprint), tuple(skipped)


def _cuda() -> bool:
    """True if there is a CUDA device; torch is imported only if there is a driver."""
    if not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return bool(torch.cuda.is_available())
