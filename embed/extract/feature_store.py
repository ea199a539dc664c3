"""FeatureStore: raw features on disk, so that an interrupted run goes on where it stopped.

A folder of immutable shards, one folder for each network (feature fingerprint). A picture is
known by the sha256 of its file, never by its name: a changed file is computed again, a moved one is
not. A shard's name carries its own checksum; a damaged one is dropped and computed again.

An index beside the folder says what each shard holds and how it was stamped when it was last
compared with its checksum, so that a large store opens without reading all of it.
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
from lmk.embed.plain_files import NotPlainError, open_folder, parse_json, read_plain

_KEY_BYTES = 32  # of a sha256
_KEY = np.dtype(f"S{_KEY_BYTES}")
_DIGEST_BYTES = 64  # of the sha256, in hex, that an index begins with
INDEX_SUFFIX = ".index"  # of what lists the shards of a network; it lies beside their folder
_SHARD = re.compile(r"[0-9a-f]{64}\.safetensors")
_NETWORK = re.compile(r"[0-9a-f]{16}")
_UNLISTED_SHARDS = 16  # so many shards that the index lacks are hashed at each opening, no more
_MOST_FRESH = 65_536  # keys in a dict, which costs ten times what a sorted array does
_LEAST_USED = 0.5  # a shard of which less is used is written anew when the store is pruned

Place = tuple[int, int]  # number of the shard, row in it
Places = tuple[NDArray[np.bytes_], NDArray[np.int32], NDArray[np.int32]]  # keys sorted, places


class FeatureStore:
    """Features float16 [n, dim] by content hash, of length 1: only their direction is kept.

    In memory it takes 40 bytes a picture. One process may write to it at a time.

    Args:
        folder: made when it is missing.
        feature_fingerprint: of the network (Embedder.feature_fingerprint).
        dim: components of a feature.
        shard_rows: rows kept in memory before they are written.
        below: a folder that holds `folder`, below which no link is followed; `folder` itself
            unless given.
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
            self._below.mkdir(parents=True, exist_ok=True)
            with open_folder(self._folder, below=self._below, create=True):
                self._open()

    def __len__(self) -> int:
        return len(self._known[0]) + len(self._fresh) + len(self._waiting)

    def __contains__(self, sha256: object) -> bool:
        key = bytes.fromhex(str(sha256))
        return key in self._waiting or self._place(key) is not None

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
        name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
        write_whole(self._folder / name, content, below=self._below)
        self._shards.append(name)
        shard = len(self._shards) - 1
        self._fresh.update({key: (shard, row) for row, key in enumerate(keys)})
        self._waiting.clear()
        if len(self._fresh) >= _MOST_FRESH:
            self._fold()

    def read(self, sha256s: Sequence[str]) -> NDArray[np.float32]:
        """Features float32 [n, dim] of n stored pictures, each of length 1 (or 0).

        Raises:
            KeyError: when one is not stored.
            GalleryDamaged: when a shard was changed since the store was opened; it is removed.
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
        """`read` in pieces: (which of the pictures, their features)."""
        for start in range(0, len(sha256s), rows):
            piece = slice(start, start + rows)
            yield piece, self.read(sha256s[piece])

    def prune(self, used: Iterable[str]) -> int:
        """Forgets the features of other pictures and of other networks; frees most of their space.

        Args:
            used: the sha256 of every picture whose feature is still of use.

        Returns:
            The number of features of this network that are no longer kept.
        """
        self.flush()
        self._fold()
        keys, shards, rows = self._known
        keep = np.isin(keys, _sorted_keys(used))
        sizes = np.bincount(shards, minlength=len(self._shards))
        kept = np.bincount(shards[keep], minlength=len(self._shards))
        gone = np.flatnonzero((kept == 0) | (kept < _LEAST_USED * sizes)).tolist()
        with storage_errors(self._folder):
            for shard in gone:
                places = np.flatnonzero(keep & (shards == shard))
                kept_rows = self._features(shard)[rows[places]] if places.size else ()
                for place, feature in zip(places, kept_rows, strict=True):
                    self._waiting[keys[place : place + 1].tobytes()] = feature
                if len(self._waiting) >= self._shard_rows:
                    self.flush()
            self.flush()  # what is kept is on disk before its old shard goes
            for shard in gone:
                (self._folder / self._shards[shard]).unlink(missing_ok=True)
            self._remove_other_networks()
            self._open()
        return len(keys) - len(self._known[0])

    def _place(self, key: bytes) -> Place | None:
        # In this order: `_fold` lets threads find a key in both, never in neither.
        if (fresh := self._fresh.get(key)) is not None:
            return fresh
        keys, shards, rows = self._known
        wanted = np.frombuffer(key, _KEY)[0]
        at = int(np.searchsorted(keys, wanted))
        return (int(shards[at]), int(rows[at])) if at < len(keys) and keys[at] == wanted else None

    def _fold(self) -> None:
        """Moves the keys in the dict into the sorted arrays."""
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
            raise GalleryDamaged("kept features have changed", where=path, remedy=remedy)
        features: NDArray[np.float16] = tensors["features"]
        return features

    def _tensors(self, path: Path) -> dict[str, NDArray[Any]] | None:
        """The keys and features of a shard; None for one that was cut, changed or is no shard."""
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
        """Learns what the shards hold, from the index where it knows them, and tidies up."""
        self._fresh = {}
        found: dict[str, str] = {}
        for item in sorted(self._folder.iterdir()):
            if LEFTOVER.fullmatch(item.name):
                item.unlink()
            elif _SHARD.fullmatch(item.name):
                found[item.name] = stamp(item)
        listed, (keys, shards, rows) = self._read_index()
        current = [found.get(name) == kept for name, kept in listed.items()]
        known = np.array(current, np.bool_)[shards]
        self._shards = list(listed)
        parts = [(keys[known], shards[known], rows[known])]
        new = [name for name in found if found[name] != listed.get(name)]
        for name in new:
            key_rows = self._checked_keys(self._folder / name)
            if key_rows is None:
                del found[name]
                continue
            self._shards.append(name)
            places = np.arange(len(key_rows), dtype=np.int32)
            parts.append((key_rows, np.full_like(places, len(self._shards) - 1), places))
        self._known = _sorted_places(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        if len(new) > _UNLISTED_SHARDS or not all(current):
            with suppress(StorageError):  # it only saves time
                self._write_index(found)

    def _checked_keys(self, path: Path) -> NDArray[np.bytes_] | None:
        """The keys of a shard; a cut or changed one is removed. None: it has none for us."""
        tensors = self._tensors(path)
        if tensors is None:
            with suppress(IsADirectoryError):  # nothing of ours
                path.unlink()
            return None
        if tensors["features"].shape[1] != self.dim:
            return None
        return np.frombuffer(tensors["keys"].tobytes(), _KEY)

    @property
    def _index(self) -> Path:
        return self._folder.with_name(f"{self._folder.name}{INDEX_SUFFIX}")

    def _read_index(self) -> tuple[dict[str, str], Places]:
        """Returns the stamps of the listed shards, and each key with its place among them."""
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
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):  # made again
            none = np.empty(0, np.int32)
            return {}, (np.empty(0, _KEY), none, none)
        return stamps, (keys, shards, rows)

    def _write_index(self, stamps: dict[str, str]) -> None:
        """Lists the shards that are there, of which all have been compared with their checksum."""
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
    """Whether the name of a file is that of a shard: the SHA-256 of its content."""
    return _SHARD.fullmatch(name) is not None


def _sorted_keys(sha256s: Iterable[str]) -> NDArray[np.bytes_]:
    return np.sort(np.frombuffer(b"".join(map(bytes.fromhex, sha256s)), _KEY))


def _sorted_places(
    keys: NDArray[np.bytes_], shards: NDArray[np.int32], rows: NDArray[np.int32]
) -> Places:
    """Sorts by key, each key once."""
    keys, first = np.unique(keys, return_index=True)
    return keys, shards[first], rows[first]
