"""FeatureStore: raw features on disk, so that an interrupted run goes on where it stopped.

A folder of immutable shards, one folder for each network (feature fingerprint). A picture is
known by the sha256 of its file, never by its name: a changed file is computed again, a moved one is
not. A shard's name carries its own checksum; a damaged one is dropped and computed again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lmk.embed.errors import storage_errors
from lmk.embed.files import LEFTOVER, write_whole

_KEY_BYTES = 32  # of a sha256
_SHARD = re.compile(r"[0-9a-f]{64}\.safetensors")


class FeatureStore:
    """Features float16 [n, dim] by content hash, of length 1: only their direction is kept.

    Args:
        folder: made when it is missing.
        feature_fingerprint: of the network (Embedder.feature_fingerprint).
        dim: components of a feature.
        shard_rows: rows kept in memory before they are written.
    """

    def __init__(
        self, folder: Path, feature_fingerprint: str, dim: int, *, shard_rows: int = 256
    ) -> None:
        self.dim = dim
        self._shard_rows = shard_rows
        self._folder = folder / feature_fingerprint[:16]
        self._where: dict[bytes, tuple[Path, int]] = {}
        self._waiting: dict[bytes, NDArray[np.float16]] = {}
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self._folder.iterdir()):
                self._open_shard(path)

    def __contains__(self, sha256: object) -> bool:
        key = bytes.fromhex(str(sha256))
        return key in self._where or key in self._waiting

    def add(self, sha256: str, feature: NDArray[np.float32]) -> None:
        """Keeps a feature [dim]; it is on disk after `flush`, or when a shard is full."""
        # Of length 1 it fits float16 whatever the network's range; cosines hold to 1e-4.
        norm = float(np.linalg.norm(feature.astype(np.float64)))
        self._waiting[bytes.fromhex(sha256)] = (feature / (norm or 1.0)).astype(np.float16)
        if len(self._waiting) >= self._shard_rows:
            self.flush()

    def flush(self) -> None:
        """Writes what waits as a shard: whole or not at all."""
        if not self._waiting:
            return
        keys = list(self._waiting)
        features = np.stack(list(self._waiting.values()))
        key_rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY_BYTES)
        content = save({"keys": key_rows, "features": features})
        path = self._folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        write_whole(path, content)
        self._where.update({key: (path, row) for row, key in enumerate(keys)})
        self._waiting.clear()

    def read(self, sha256s: Sequence[str]) -> NDArray[np.float32]:
        """Features float32 [n, dim] of n stored pictures, each of length 1 (or 0).

        Raises:
            KeyError: when one is not stored.
        """
        rows = np.empty((len(sha256s), self.dim), np.float32)
        wanted: dict[Path, list[tuple[int, int]]] = {}  # each shard is opened once, in any order
        for i, sha256 in enumerate(sha256s):
            key = bytes.fromhex(sha256)
            if key in self._waiting:
                rows[i] = self._waiting[key]
            else:
                path, row = self._where[key]
                wanted.setdefault(path, []).append((i, row))
        for path, pairs in wanted.items():
            to, of = zip(*pairs, strict=True)
            rows[list(to)] = load(path.read_bytes())["features"][list(of)]
        return rows

    def batches(
        self, sha256s: Sequence[str], rows: int = 8192
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """`read` in pieces: (which of the pictures, their features)."""
        for start in range(0, len(sha256s), rows):
            piece = slice(start, start + rows)
            yield piece, self.read(sha256s[piece])

    def _open_shard(self, path: Path) -> None:
        """Learns what a shard holds; a cut or changed one, or a leftover, is removed."""
        if LEFTOVER.fullmatch(path.name):
            path.unlink()
        if not _SHARD.fullmatch(path.name):
            return
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem:
            path.unlink()
            return
        try:
            tensors = load(content)
        except SafetensorError:
            path.unlink()
            return
        if tensors["features"].shape[1] == self.dim:
            for row, key in enumerate(tensors["keys"]):
                self._where[key.tobytes()] = (path, row)
