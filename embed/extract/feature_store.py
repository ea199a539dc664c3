"""FeatureStore: raw features on disk, so that an interrupted run can continue.

The store has one folder of immutable shards for each network (feature fingerprint). The key of a
picture is the SHA-256 of its file, never its name: a changed file is computed again, a moved file
is not. The name of a shard is its checksum; a damaged shard is dropped and computed again.

An index file beside the folder lists the content of each shard, and its file stamp when it was
last compared with its checksum. A large store therefore opens without reading all shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lmk.embed.errors import GalleryDamaged, StorageError, storage_errors
from lmk.embed.files import LEFTOVER, stamp, write_whole
from lmk.embed.plain_files import NotPlainError, make_folder, parse_json, read_plain

_KEY_BYTES = 32  # of a sha256
_KEY = np.dtype(f"S{_KEY_BYTES}")
_DIGEST_BYTES = 64  # length of the hexadecimal sha256 at the start of an index
INDEX_SUFFIX = ".index"  # of the file that lists the shards; it lies beside their folder
_SHARD = re.compile(r"[0-9a-f]{64}\.safetensors")
_NETWORK = re.compile(r"[0-9a-f]{16}")
_UNLISTED_SHARDS = 16  # above this number of unlisted shards the index is written anew
_MOST_FRESH = 65_536  # keys in a dict, which takes ten times the memory of a sorted array
_LEAST_USED = 0.5  # `prune` rewrites a shard if a smaller part of it is used

Place = tuple[int, int]  # number of the shard, row in it
Places = tuple[NDArray[np.bytes_], NDArray[np.int32], NDArray[np.int32]]  # keys sorted, places


class FeatureStore:
    """Features float16 [n, dim] by content hash; they are scaled to length 1.

    The store takes 40 bytes of memory per picture. Only one process may write to it at a time.

    Args:
        folder: the folder of the store. It is created if it is missing.
        feature_fingerprint: fingerprint of the network (Embedder.feature_fingerprint).
        dim: number of components of a feature.
        shard_rows: number of rows in memory before they are written.
        below: a parent of `folder`. No link below it is followed. Default: `folder`.
    """

    def __init__(
        self,
        folder: Path,
        feature_fingerprint: str,
        dim: int,
        *,
        shard_rows: int = 256,
        below: Path | None = None,
    ) -> None:
        self.dim = dim
        self._shard_rows = shard_rows
        self._folder = folder / feature_fingerprint[:16]
        self._below = below or folder
        self._waiting: dict[bytes, NDArray[np.float16]] = {}
        self._fresh: dict[bytes, Place] = {}
        self._known: Places
        self._shards: list[str]
        with storage_errors(self._folder):
            make_folder(self._folder, below=self._below)
            self._open()

    def __len__(self) -> int:
        return len(self._known[0]) + len(self._fresh) + len(self._waiting)

    def __contains__(self, sha256: object) -> bool:
        key = bytes.fromhex(str(sha256))
        return key in self._waiting or self._place(key) is not None

    def add(self, sha256: str, feature: NDArray[np.float32]) -> None:
        """Adds a feature [dim]; it is written by `flush`, or when a shard is full."""
        # A feature of length 1 fits float16 for any network; cosines are exact to 1e-4.
        norm = float(np.linalg.norm(feature.astype(np.float64)))
        self._waiting[bytes.fromhex(sha256)] = (feature / (norm or 1.0)).astype(np.float16)
        if len(self._waiting) >= self._shard_rows:
            self.flush()

    def flush(self) -> None:
        """Writes the features in memory as one shard, atomically."""
        if not self._waiting:
            return
        keys = list(self._waiting)
        features = np.stack(list(self._waiting.values()))
        key_rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY_BYTES)
        content = save({"keys": key_rows, "features": features})
        name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
        write_whole(self._folder / name, content, below=self._below)
        self._shards.append(name)
        shard = len(self._shards) - 1
        self._fresh.update({key: (shard, row) for row, key in enumerate(keys)})
        self._waiting.clear()
        if len(self._fresh) >= _MOST_FRESH:
            self._fold()

    def read(self, sha256s: Sequence[str]) -> NDArray[np.float32]:
        """Returns features float32 [n, dim] of n stored pictures, each of length 1 (or 0).

        Raises:
            KeyError: a picture is not stored.
            GalleryDamaged: a shard has changed since the store was opened. The shard is removed.
        """
        rows = np.empty((len(sha256s), self.dim), np.float32)
        wanted: dict[int, list[tuple[int, int]]] = {}  # each shard is opened once, in any order
        for i, sha256 in enumerate(sha256s):
            key = bytes.fromhex(sha256)
            if key in self._waiting:
                rows[i] = self._waiting[key]
                continue
            place = self._place(key)
            if place is None:
                raise KeyError(sha256)
            wanted.setdefault(place[0], []).append((i, place[1]))
        for shard, pairs in wanted.items():
            to, of = zip(*pairs, strict=True)
            rows[list(to)] = self._features(shard)[list(of)]
        return rows

    def batches(
        self, sha256s: Sequence[str], rows: int = 8192
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yields (slice of the pictures, their features) for pieces of at most `rows` pictures."""
        for start in range(0, len(sha256s), rows):
            piece = slice(start, start + rows)
            yield piece, self.read(sha256s[piece])

    def prune(self, used: Iterable[str]) -> int:
        """Removes the features of other pictures and of other networks.

        Args:
            used: the SHA-256 of every picture whose feature must stay.

        Returns:
            The number of features of this network that were removed.
        """
        self.flush()
        self._fold()
        keys, shards, rows = self._known
        keep = np.isin(keys, _sorted_keys(used))
        sizes = np.bincount(shards, minlength=len(self._shards))
        used_rows = np.bincount(shards[keep], minlength=len(self._shards))
        gone = np.flatnonzero((used_rows == 0) | (used_rows < _LEAST_USED * sizes)).tolist()
        with storage_errors(self._folder):
            for shard in gone:
                places = np.flatnonzero(keep & (shards == shard))
                features = self._features(shard)[rows[places]] if places.size else ()
                for place, feature in zip(places, features, strict=True):
                    self._waiting[keys[place : place + 1].tobytes()] = feature
                if len(self._waiting) >= self._shard_rows:
                    self.flush()
            self.flush()  # write the used rows before their old shard is removed
            for shard in gone:
                (self._folder / self._shards[shard]).unlink(missing_ok=True)
            self._remove_other_networks()
            self._open()
        return len(keys) - len(self._known[0])

    def _place(self, key: bytes) -> Place | None:
        # In this order, a thread finds a key in one of both places while `_fold` runs.
        if (fresh := self._fresh.get(key)) is not None:
            return fresh
        keys, shards, rows = self._known
        wanted = np.frombuffer(key, _KEY)[0]
        at = int(np.searchsorted(keys, wanted))
        return (int(shards[at]), int(rows[at])) if at < len(keys) and keys[at] == wanted else None

    def _fold(self) -> None:
        """Moves the keys from the dict into the sorted arrays."""
        places = np.array(list(self._fresh.values()), np.int32).reshape(-1, 2)
        keys, shards, rows = self._known
        self._known = _sorted_places(
            np.concatenate([keys, np.frombuffer(b"".join(self._fresh), _KEY)]),
            np.concatenate([shards, places[:, 0]]),
            np.concatenate([rows, places[:, 1]]),
        )
        self._fresh = {}

    def _features(self, shard: int) -> NDArray[np.float16]:
        path = self._folder / self._shards[shard]
        tensors = self._tensors(path)
        if tensors is None:
            with storage_errors(path):
                path.unlink(missing_ok=True)
            remedy = "run the same command again: it computes them anew"
            raise GalleryDamaged("cached features have changed", where=path, remedy=remedy)
        features: NDArray[np.float16] = tensors["features"]
        return features

    def _tensors(self, path: Path) -> dict[str, NDArray[Any]] | None:
        """Returns the keys and features of a shard, or None if it is damaged or not a shard."""
        try:
            content = read_plain(path, below=self._below)
            if hashlib.sha256(content).hexdigest() != path.stem:
                return None
            tensors = load(content)
            keys, features = tensors["keys"], tensors["features"]
        except (FileNotFoundError, IsADirectoryError, NotPlainError, SafetensorError, KeyError):
            return None
        whole = keys.dtype == np.uint8 and keys.shape == (len(features), _KEY_BYTES)
        whole = whole and features.dtype == np.float16 and features.ndim == 2
        return tensors if whole and np.isfinite(features).all() else None

    def _open(self) -> None:
        """Reads the keys of all shards, from the index where possible, and removes leftovers."""
        self._fresh = {}
        stamps: dict[str, str] = {}
        for item in sorted(self._folder.iterdir()):
            if LEFTOVER.fullmatch(item.name):
                item.unlink()
            elif _SHARD.fullmatch(item.name):
                stamps[item.name] = stamp(item)
        listed, (keys, shards, rows) = self._read_index()
        current = [stamps.get(name) == recorded for name, recorded in listed.items()]
        known = np.array(current, np.bool_)[shards]
        self._shards = list(listed)
        parts = [(keys[known], shards[known], rows[known])]
        new = [name for name in stamps if stamps[name] != listed.get(name)]
        for name in new:
            key_rows = self._checked_keys(self._folder / name)
            if key_rows is None:
                del stamps[name]
                continue
            self._shards.append(name)
            places = np.arange(len(key_rows), dtype=np.int32)
            parts.append((key_rows, np.full_like(places, len(self._shards) - 1), places))
        self._known = _sorted_places(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        if len(new) > _UNLISTED_SHARDS or not all(current):
            with suppress(StorageError):  # the index only saves time
                self._write_index(stamps)

    def _checked_keys(self, path: Path) -> NDArray[np.bytes_] | None:
        """Returns the keys of a shard, or None if it has none of use; removes a damaged shard."""
        tensors = self._tensors(path)
        if tensors is None:
            with suppress(IsADirectoryError):  # a folder is not a shard of this store
                path.unlink()
            return None
        if tensors["features"].shape[1] != self.dim:
            return None
        return np.frombuffer(tensors["keys"].tobytes(), _KEY)

    @property
    def _index(self) -> Path:
        return self._folder.with_name(f"{self._folder.name}{INDEX_SUFFIX}")

    def _read_index(self) -> tuple[dict[str, str], Places]:
        """Returns the file stamps of the listed shards, and the place of each key in them."""
        try:
            content = read_plain(self._index, below=self._below)
            digest = hashlib.sha256(content[_DIGEST_BYTES:]).hexdigest().encode()
            if content[:_DIGEST_BYTES] != digest:
                raise ValueError("damaged")
            tensors = load(content[_DIGEST_BYTES:])
            about = parse_json(tensors["about"].tobytes())
            if about["dim"] != self.dim:
                raise ValueError("of another dim")
            keys = np.frombuffer(tensors["keys"].tobytes(), _KEY)
            stamps, shards, rows = dict(about["stamps"]), tensors["shards"], tensors["rows"]
            if not all(
                len(part) == len(keys) and part.dtype == np.int32 for part in (shards, rows)
            ):
                raise ValueError("not a place for each key")
            if len(keys) and not (shards.min() >= 0 and shards.max() < len(stamps)):
                raise ValueError("shards that there are not")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):  # written again
            none = np.empty(0, np.int32)
            return {}, (np.empty(0, _KEY), none, none)
        return stamps, (keys, shards, rows)

    def _write_index(self, stamps: dict[str, str]) -> None:
        """Writes the index of all shards, each of which has been compared with its checksum."""
        keys, shards, rows = self._known
        number = {name: i for i, name in enumerate(stamps)}
        renumbered = np.array([number.get(name, -1) for name in self._shards], np.int32)
        about = json.dumps({"dim": self.dim, "stamps": stamps}).encode()
        content = save(
            {
                "about": np.frombuffer(about, np.uint8),
                "keys": np.frombuffer(keys.tobytes(), np.uint8).reshape(-1, _KEY_BYTES),
                "shards": renumbered[shards],
                "rows": rows,
            }
        )
        digest = hashlib.sha256(content).hexdigest().encode()
        write_whole(self._index, [digest, content], below=self._below)

    def _remove_other_networks(self) -> None:
        for item in self._folder.parent.iterdir():
            name = item.name.removesuffix(INDEX_SUFFIX)
            if name == self._folder.name or not _NETWORK.fullmatch(name):
                continue
            if item.suffix and not item.is_dir():
                item.unlink()
            elif item.is_dir() and not item.is_symlink():
                for file in item.iterdir():
                    if _SHARD.fullmatch(file.name) or LEFTOVER.fullmatch(file.name):
                        file.unlink()
                if not os.listdir(item):  # noqa: PTH208
                    item.rmdir()


def is_shard(name: str) -> bool:
    """True if a file name is that of a shard: the SHA-256 of its content."""
    return _SHARD.fullmatch(name) is not None


def _sorted_keys(sha256s: Iterable[str]) -> NDArray[np.bytes_]:
    return np.sort(np.frombuffer(b"".join(map(bytes.fromhex, sha256s)), _KEY))


def _sorted_places(
    keys: NDArray[np.bytes_], shards: NDArray[np.int32], rows: NDArray[np.int32]
) -> Places:
    """Returns the keys in order, each of them once, with their places."""
    keys, first = np.unique(keys, return_index=True)
    return keys, shards[first], rows[first]
