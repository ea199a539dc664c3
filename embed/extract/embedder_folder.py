"""The folder of an embedder: its files, their format and their checksums.

A folder holds config.json, weights.safetensors (unless an installed package has the weights),
whitening.safetensors (if there is a whitening), the OpenVINO graph in graph.xml and graph.bin, and
SHA256SUMS with a checksum of each file. If the graph is present, torch is never imported. Early
releases wrote no checksums; a graph without one is exported again from the weights, which the
fingerprint verifies.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from lmk.embed.checksums import (
    Checksums,
    is_shipped,
    read_checksums,
    require_unchanged,
    write_checksums,
)
from lmk.embed.errors import ModelError
from lmk.embed.memory_errors import raise_system_cause
from lmk.embed.network.config import EMBEDDER_FILE, FILE, HUB, EmbedderConfig, require_local
from lmk.embed.network.runtime import openvino_usable
from lmk.embed.network.whitening import Whitening, load_whitening, save_whitening
from lmk.embed.plain_files import parse_json, read_plain
from lmk.embed.tags.head import TAGS_FILE

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
GRAPH, GRAPH_WEIGHTS = "graph.xml", "graph.bin"
WEIGHTS, WHITENING = "weights.safetensors", "whitening.safetensors"


class SavedEmbedder(BaseModel):
    """Content of config.json in an embedder's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    fingerprint: str
    weights_sha256: str
    feature_dim: int = Field(ge=1, le=1 << 20)
    config: EmbedderConfig


class EmbedderFolder:
    """Reader of an embedder's folder; compares each file with its checksum once.

    Args:
        path: the folder.
        checked: True if the files have been compared already, as those of an open gallery.
    """

    def __init__(self, path: Path, *, checked: bool = False) -> None:
        self.path = path
        self._checked = checked
        self._compared: set[str] = set()

    def read(self) -> tuple[SavedEmbedder, Whitening | None]:
        """Returns the content of config.json and the whitening.

        Raises:
            ModelError: the folder is not an embedder, or has a newer format.
            ModelDamaged: a file has changed since it was written.
        """
        self.require(EMBEDDER_FILE, WHITENING)
        try:
            content = parse_json(read_plain(self.path / EMBEDDER_FILE))
            if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
                raise ModelError(
                    "was written by a newer lmk", where=self.path, remedy="install a newer lmk"
                )
            saved = SavedEmbedder.model_validate(content)
            require_local(saved.config)
            return saved, load_whitening(self.path / WHITENING, saved.feature_dim)
        except (OSError, ValueError) as error:  # JSON's and pydantic's errors are ValueErrors
            raise_system_cause(error)
            what = f"is not an embedder's folder ({type(error).__name__})"
            remedy = "build the index again"
            raise ModelError(what, where=self.path, remedy=remedy) from error

    def require(self, *names: str, remedy: str | None = None) -> bool:
        """Compares files with their checksums; returns False if the folder has no checksums.

        Raises:
            ModelDamaged: a file has changed since it was written, or is missing.
        """
        if self._checked or self._compared.issuperset(names):
            return True
        checksums = read_checksums(self.path)
        if checksums is None:
            return False
        require_unchanged(self.path, names, checksums, remedy=remedy)
        self._compared.update(names)
        return True

    def graph(self) -> Path | None:
        """Returns the path of the graph, or None if there is none with a checksum.

        Raises:
            ModelDamaged: the graph has changed since it was written.
        """
        if not all((self.path / name).exists() for name in (GRAPH, GRAPH_WEIGHTS)):
            return None
        known = self.require(GRAPH, GRAPH_WEIGHTS, remedy=self._graph_remedy())
        return self.path / GRAPH if known else None

    def _graph_remedy(self) -> str | None:
        if is_shipped(self.path):
            return None
        return f"remove {GRAPH} and {GRAPH_WEIGHTS}: lmk then uses the weights"

    def copy(self, names: Iterable[str], to: Path) -> Checksums:
        """Copies the named files that exist; returns the checksums that the copies must have."""
        known = read_checksums(self.path) or {}
        there = [name for name in names if (self.path / name).exists()]
        self.require(*there)
        for name in there:
            shutil.copyfile(self.path / name, to / name)
        return {name: known[name] for name in there if name in known}


def write_folder(
    folder: Path,
    saved: SavedEmbedder,
    whitening: Whitening | None,
    *,
    source: EmbedderFolder | None,
    state: Callable[[], Mapping[str, Tensor]],
    graph: Callable[[], Path],
) -> None:
    """Writes an embedder and its checksums into an existing, empty folder.

    Args:
        folder: the folder to write.
        saved: the content of config.json.
        whitening: the whitening, or None.
        source: the folder the embedder was loaded from. Its tags, weights and graph are copied.
        state: returns the weights of the network; called where they must be written.
        graph: returns the OpenVINO graph; called where OpenVINO is installed.

    Raises:
        OSError: when the folder cannot be written.
        ModelDamaged: when a file of `source` has changed since it was written.
    """
    (folder / EMBEDDER_FILE).write_text(saved.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if whitening is not None:
        save_whitening(whitening, folder / WHITENING)
    copies: dict[str, tuple[str, ...]] = {}
    if source is not None:
        copies |= source.copy((TAGS_FILE, WEIGHTS), folder)
    if saved.config.weights in (HUB, FILE) and not (folder / WEIGHTS).exists():
        from safetensors.torch import save

        # save_file is not used: its error on a full disk is no OSError.
        (folder / WEIGHTS).write_bytes(save(dict(state())))
    if openvino_usable():
        exported = graph()
        if source is not None and exported.parent == source.path:
            copies |= source.copy((GRAPH, GRAPH_WEIGHTS), folder)
        else:
            for name in (GRAPH, GRAPH_WEIGHTS):
                shutil.copyfile(exported.parent / name, folder / name)
    write_checksums(folder, copies)
