"""Fingerprints of embedders: equal fingerprints mean equal vectors."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from lmk.embed.data.images import IMAGES_VERSION
from lmk.embed.network.config import EmbedderConfig
from lmk.embed.network.whitening import WHITENING_VERSION, Whitening

if TYPE_CHECKING:
    from lmk.embed.network.heads import EmbeddingNetwork

NETWORK_VERSION = 1  # increase it when backbone.py or heads.py compute other features


def state_sha256(network: EmbeddingNetwork) -> str:
    """Returns a SHA-256 of all weights that affect a vector, with their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            array = tensor.detach().cpu().numpy()
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def feature_fingerprint_of(config: EmbedderConfig, weights_sha256: str) -> str:
    """Returns the fingerprint of a network and its preprocessing."""
    parts: dict[str, object] = {"config": config.moving(), "weights": weights_sha256}
    parts["versions"] = {"images": IMAGES_VERSION, "network": NETWORK_VERSION}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint_of(features: str, whitening: Whitening | None) -> str:
    """Returns the fingerprint of an embedder, from its feature fingerprint and its whitening."""
    digest = hashlib.sha256(features.encode())
    if whitening is not None:
        digest.update(f"whitening {WHITENING_VERSION}".encode())
        digest.update(np.ascontiguousarray(whitening.mean).tobytes())
        digest.update(np.ascontiguousarray(whitening.matrix).tobytes())
    return digest.hexdigest()
