"""Local features: points of a picture that can be matched in other photos of the same place.

An Extractor computes them from a grey picture: RootSIFT by OpenCV, or XFeat (an extra).
`FeatureCache` stores them on disk by the content of the picture, up to a number of bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lmk.embed.data.images import decode_grey
from lmk.embed.errors import StorageError, storage_errors
from lmk.embed.files import LEFTOVER, write_whole
from lmk.embed.plain_files import make_folder, read_plain

if TYPE_CHECKING:
    from lmk.embed.local.xfeat import XFeatNetwork

LOCAL_SUFFIX = ".features"  # of a file that starts with the SHA-256 of the rest
LOCAL_BYTES = 2 * 10**9  # limit for the local features of a gallery

_VERSION = "1"  # of the stored data; increase it when features change
_DIGEST = hashlib.sha256().digest_size
_ROOM = 0.9  # part of the limit that stays after files were removed


@dataclass(frozen=True, eq=False)
class LocalFeatures:
    """The points of one picture.

    Attributes:
        points: float32 [n, 2], x and y in pixels of the upright, reduced picture.
        descriptors: float16 [n, d], rows of length 1 (within rounding). Half precision makes
            features from the cache equal to computed ones.
        width, height: size of the upright, reduced picture.

    Raises:
        ValueError: a shape or dtype is wrong, or a number is not finite.
    """

    points: NDArray[np.float32]
    descriptors: NDArray[np.float16]
    width: int
    height: int

    def __post_init__(self) -> None:
        n = len(self.points)
        if self.points.shape != (n, 2) or self.points.dtype != np.float32:
            raise ValueError(f"points must be float32 [n, 2], got {self.points.shape}")
        if self.descriptors.ndim != 2 or self.descriptors.dtype != np.float16:
            raise ValueError(f"descriptors must be float16 [n, d], got {self.descriptors.dtype}")
        if len(self.descriptors) != n:
            raise ValueError(f"{n} points, {len(self.descriptors)} descriptors")
        if not (np.isfinite(self.points).all() and np.isfinite(self.descriptors).all()):
            raise ValueError("a point or descriptor is not finite")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a picture of {self.width} x {self.height}")

    def __len__(self) -> int:
        return len(self.points)

    def to_bytes(self) -> bytes:
        """Returns the features as safetensors."""
        return save(
            {
                "points": np.ascontiguousarray(self.points),
                "descriptors": np.ascontiguousarray(self.descriptors),
                "size": np.array([self.width, self.height], np.int64),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> LocalFeatures:
        """Returns the features from a result of to_bytes.

        Raises:
            ValueError: the data are not features.
        """
        try:
            parts = load(data)
            width, height = parts["size"].tolist()
            return cls(parts["points"], parts["descriptors"], width, height)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"no local features: {error}") from error


class Extractor(Protocol):
    """Detects and describes points."""

    @property
    def name(self) -> str:
        """Name of the method with its version and parameters; it changes with the features."""
        ...

    @property
    def longest(self) -> int:
        """The length in pixels that the longer side of a picture is reduced to."""
        ...

    def extract(self, picture: NDArray[np.uint8]) -> LocalFeatures:
        """Returns the features of a grey picture uint8 [height, width]; possibly without points."""
        ...


@dataclass(frozen=True)
class RootSift:
    """RootSIFT: SIFT by OpenCV with the square roots of its histograms.

    Lowe, "Distinctive Image Features from Scale-Invariant Keypoints" (IJCV 2004); Arandjelovic and
    Zisserman, "Three things everyone should know to improve object retrieval" (CVPR 2012): the
    descriptor divided by its sum, then the square root, whose dot product is the Hellinger kernel.

    Attributes:
        most: largest number of points; the strongest ones are used.
        longest: see Extractor.
    """

    most: int = 1000
    longest: int = 480

    @property
    def name(self) -> str:
        """Name of the method with its version and parameters."""
        return f"rootsift-{_VERSION}-{self.most}-{self.longest}-opencv-{cv2.__version__}"

    def extract(self, picture: NDArray[np.uint8]) -> LocalFeatures:
        """Returns the features of a grey picture uint8 [height, width]; possibly without points."""
        height, width = picture.shape
        keypoints, raw = cv2.SIFT.create(nfeatures=self.most).detectAndCompute(picture, None)
        none = np.zeros((0, 128), np.float32)
        raw = none if raw is None else np.asarray(raw, np.float32)
        points = np.array([point.pt for point in keypoints], np.float32).reshape(-1, 2)
        # Sorted by strength, as OpenCV returns more points if the last ones are equally strong.
        keys = [(-p.response, p.pt[0], p.pt[1], p.size, p.angle) for p in keypoints]
        order = sorted(range(len(keys)), key=keys.__getitem__)[: self.most]
        roots = np.sqrt(raw[order] / np.maximum(raw[order].sum(axis=1, keepdims=True), 1))
        return LocalFeatures(points[order], roots.astype(np.float16), width, height)


@dataclass(frozen=True)
class XFeat:
    """XFeat: features of a trained network (the extra `xfeat`); the import of torch takes seconds.

    Attributes:
        most: largest number of points; the most reliable ones are used.
        longest: see Extractor.

    Raises:
        ModelError: the package is not installed; raised at the first use.
    """

    most: int = 1000
    longest: int = 640

    @cached_property
    def name(self) -> str:
        """Name of the method with its version and parameters."""
        from lmk.embed.local.xfeat import xfeat_version

        return f"xfeat-{_VERSION}-{self.most}-{self.longest}-{xfeat_version()}"

    def extract(self, picture: NDArray[np.uint8]) -> LocalFeatures:
        """Returns the features of a grey picture uint8 [height, width]; possibly without points."""
        height, width = picture.shape
        points, descriptors = self._network.detect(picture)
        return LocalFeatures(points, descriptors.astype(np.float16), width, height)

    @cached_property
    def _network(self) -> XFeatNetwork:
        from lmk.embed.local.xfeat import XFeatNetwork

        return XFeatNetwork(self.most)


class FeatureCache:
    """Cache of local features on disk; above its limit, the least recently used are removed.

    Each file starts with the SHA-256 of the rest, which is checked before the file is used. A
    damaged file is removed and computed again. If the disk is full or the folder cannot be
    written, the features are not stored. Several processes may use one folder.

    Args:
        folder: the folder of the cache. It is created with the first features, and must not
            contain anything else.
        limit: largest number of bytes of all files together.
        below: a parent of `folder`. No link below it is followed. Default: `folder`.

    Raises:
        ValueError: the limit is below 0.
    """

    def __init__(self, folder: Path, limit: int, *, below: Path | None = None) -> None:
        if limit < 0:
            raise ValueError(f"the limit must not be negative, got {limit}")
        self._folder = folder
        self._below = below or folder
        self._limit = limit
        self._size: int | None = None  # bytes, as far as this process knows

    def load(self, content: str, extractor: Extractor) -> LocalFeatures | None:
        """Returns the features of a picture, or None if they are missing or damaged.

        Args:
            content: SHA-256 of the picture's file, in hexadecimal.
            extractor: the extractor of the features.
        """
        path = self._path(content, extractor)
        try:
            data = read_plain(path, below=self._below)
            if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
                raise ValueError("damaged")
            features = LocalFeatures.from_bytes(data[_DIGEST:])
        except OSError:
            return None
        except ValueError:
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path, follow_symlinks=False)  # marks it as recently used
        return features

    def save(self, content: str, extractor: Extractor, features: LocalFeatures) -> None:
        """Stores features; above the limit, removes the least recently used ones."""
        data = features.to_bytes()
        size = len(data) + _DIGEST
        if size > self._limit:
            return
        try:
            with storage_errors(self._folder):
                make_folder(self._folder, below=self._below)
            parts = [hashlib.sha256(data).digest(), data]
            write_whole(self._path(content, extractor), parts, below=self._below)
        except StorageError:
            return
        self._size = self._sweep() if self._size is None else self._size + size
        if self._size > self._limit:
            self._size = self._sweep()

    def prune(self, used: Iterable[str]) -> int:
        """Removes the features of all pictures except those with given contents (SHA-256).

        Returns:
            The number of features removed.
        """
        others: dict[str, list[Path]] = {}
        with suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                if path.name.endswith(LOCAL_SUFFIX):
                    others.setdefault(path.name.partition("-")[0], []).append(path)
        for content in used:
            others.pop(content, None)
        gone = [path for paths in others.values() for path in paths]
        for path in gone:
            with suppress(OSError):
                path.unlink()
        self._size = None
        return len(gone)

    def _sweep(self) -> int:
        """Removes files above the limit; returns the number of bytes that are left."""
        files = []
        for path in self._folder.iterdir():
            with suppress(OSError):  # another process may be removing it
                if path.name.endswith(LOCAL_SUFFIX) or LEFTOVER.fullmatch(path.name):
                    status = path.lstat()
                    files.append((status.st_mtime_ns, path.name, status.st_size))
        total = sum(size for _, _, size in files)
        if total <= self._limit:
            return total
        for _, name, size in sorted(files):
            if total <= _ROOM * self._limit:
                break
            with suppress(OSError):
                (self._folder / name).unlink()
            total -= size
        return total

    def _path(self, content: str, extractor: Extractor) -> Path:
        made_by = hashlib.sha256(extractor.name.encode()).hexdigest()[:16]
        return self._folder / f"{content}-{made_by}{LOCAL_SUFFIX}"


def cache_of(gallery: Path) -> FeatureCache:
    """Returns the cache of local features of a gallery folder."""
    return FeatureCache(gallery / "cache" / "local", LOCAL_BYTES, below=gallery)


def local_features(
    content: str,
    read: Callable[[], bytes | str],
    extractor: Extractor,
    cache: FeatureCache | None = None,
) -> LocalFeatures | str:
    """Returns the features of a picture, from the cache or computed and stored.

    Args:
        content: SHA-256 of the file, in hexadecimal; the key in the cache.
        read: returns the content of the file, or the reason why it cannot be read. It is called
            only if the cache has no features. Features of a file that has changed are not stored.
        extractor: computes the features.
        cache: the cache, or None to store nothing.

    Returns:
        The features, or the reason why there are none.
    """
    cached = None if cache is None else cache.load(content, extractor)
    if cached is not None:
        return cached
    data = read()
    picture = data if isinstance(data, str) else decode_grey(data, extractor.longest)
    if isinstance(picture, str) or isinstance(data, str):
        return str(picture)
    features = extractor.extract(picture)
    if cache is not None and hashlib.sha256(data).hexdigest() == content:
        cache.save(content, extractor, features)
    return features
