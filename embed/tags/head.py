"""TagHead: the linear layer from an embedder's features to tags, and its file.

`lmk train` with a task of tags writes it beside the embedder's files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lmk.embed.checksums import read_checksums, require_unchanged, write_with_checksum
from lmk.embed.embeddings import unit_rows
from lmk.embed.errors import EmbedderMismatch, ModelError
from lmk.embed.tables.label_text import nfc

TAGS_FILE = "tags.safetensors"  # in an embedder's folder
FORMAT = 1
_HEADER = "lmk"
Activation = Literal["sigmoid", "softmax"]


@dataclass(frozen=True, eq=False)
class TagHead:
    """Linear head of tags: activation(weight @ feature + bias).

    Attributes:
        names: the t tags, without repetition.
        weight: float32 [t, d].
        bias: float32 [t].
        activation: "sigmoid" for independent probabilities, "softmax" for probabilities with sum 1.
        unit: features are scaled to length 1 first, as an index stores them.
        feature_fingerprint: fingerprint of the embedder of the features
            (Embedder.feature_fingerprint).

    Raises:
        ValueError: the shapes do not fit, a name is repeated, or a number is not finite.
    """

    names: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: Activation
    unit: bool
    feature_fingerprint: str

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"shapes {self.weight.shape} and {self.bias.shape} do not fit")
        if len(self.names) != len(self.bias) or len(set(self.names)) != len(self.names):
            raise ValueError(f"{len(self.bias)} tags need as many different names")
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise ValueError("weights must be finite")
        if self.activation not in get_args(Activation):
            raise ValueError(f"unknown activation {self.activation!r}")

    @property
    def dim(self) -> int:
        """The number of components of a feature."""
        return int(self.weight.shape[1])

    def probabilities(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Returns probabilities float32 [n, t] of an embedder's raw features [n, d]; see `unit`."""
        from scipy.special import expit, softmax

        rows = unit_rows(features.astype(np.float32)) if self.unit else features
        logits = rows.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        probabilities = expit(logits) if self.activation == "sigmoid" else softmax(logits, axis=1)
        result: NDArray[np.float32] = probabilities.astype(np.float32)
        return result


def save_tag_head(head: TagHead, path: Path) -> None:
    """Writes a head as safetensors; its names and settings are JSON in the header.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    from safetensors.numpy import save

    header = {
        "format": FORMAT,
        "names": head.names,
        "activation": head.activation,
        "unit": head.unit,
        "feature_fingerprint": head.feature_fingerprint,
    }
    tensors = {"weight": np.ascontiguousarray(head.weight), "bias": head.bias}
    write_with_checksum(path, save(tensors, {_HEADER: json.dumps(header)}))


def load_tag_head(
    folder: Path, feature_fingerprint: str | None = None, *, checked: bool = False
) -> TagHead:
    """Returns the head of tags in an embedder's folder.

    Args:
        folder: a folder that `lmk train` has written.
        feature_fingerprint: fingerprint of the embedder that will compute the features.
        checked: True if the file has been compared with its checksum already.

    Raises:
        ModelError: the embedder has no tags, or the file is damaged.
        ModelDamaged: the file has changed since it was written.
        EmbedderMismatch: the head belongs to another embedder.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / TAGS_FILE
    if not path.is_file():
        raise ModelError(
            "this embedder knows no tags", where=folder, remedy="train one: lmk train tags-lite1"
        )
    checksums = None if checked else read_checksums(folder)
    if checksums is not None:
        require_unchanged(folder, (TAGS_FILE,), checksums)
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()[_HEADER])
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        if header.pop("format") != FORMAT:
            raise ModelError("was written by a newer lmk", where=path, remedy="install a newer lmk")
        given = tuple(header.pop("names"))
        names = tuple(map(nfc, given))  # the form of labels; older files may have decomposed names
        names = names if len(set(names)) == len(names) else given
        head = TagHead(names=names, weight=weight, bias=bias, **header)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"is no file of tags ({type(error).__name__})", where=path, remedy="train it again"
        ) from error
    if feature_fingerprint not in (None, head.feature_fingerprint):
        what = "these tags were trained with another embedder"
        remedy = "use the embedder of the same folder"
        raise EmbedderMismatch(what, where=path, remedy=remedy)
    return head
