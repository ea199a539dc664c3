"""Computes the features of a manifest's pictures; decoding and inference overlap.

Threads read and decode files (OpenCV and Pillow release the GIL) while the runtime computes
earlier pictures. The number of decoded pictures that wait is bounded, so memory does not grow with
the number of pictures. Each feature goes to a FeatureStore at once, so a killed run loses seconds
of work, not hours.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Container, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import Picture, Skipped, decode, one_thread_opencv, picture_bytes
from lmk.embed.data.manifest import Manifest, Row
from lmk.embed.embeddings import Embeddings
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.network.runtime import available_cores
from lmk.embed.progress import Count, no_count

_WINDOW_PER_CORE = 8  # decoded pictures that may wait for the network


@dataclass(frozen=True)
class Extracted:
    """A picture with a feature in the store."""

    row: Row
    sha256: str
    size: int
    mtime_ns: int


class ExtractedPictures(Sequence[Extracted]):
    """Sequence of pictures of a manifest; each takes 56 bytes besides its manifest row."""

    def __init__(self, manifest: Manifest) -> None:
        self._rows = manifest.rows
        self._keys = bytearray()
        self._places, self._sizes, self._mtimes = array("q"), array("q"), array("q")

    def add(self, place: int, sha256: str, size: int, mtime_ns: int) -> None:
        """Adds the picture of row number `place` of the manifest."""
        self._keys += bytes.fromhex(sha256)
        self._places.append(place)
        self._sizes.append(size)
        self._mtimes.append(mtime_ns)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, item: int) -> Extracted: ...
    @overload
    def __getitem__(self, item: slice) -> list[Extracted]: ...
    def __getitem__(self, item: int | slice) -> Extracted | list[Extracted]:
        if isinstance(item, slice):
            return [self._get(i) for i in range(*item.indices(len(self)))]
        if not -len(self) <= item < len(self):
            raise IndexError(f"picture {item} of {len(self)}")
        return self._get(item % len(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExtractedPictures) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it grows

    def _get(self, i: int) -> Extracted:
        sha256 = self._keys[32 * i : 32 * (i + 1)].hex()
        return Extracted(self._rows[self._places[i]], sha256, self._sizes[i], self._mtimes[i])


@dataclass(frozen=True)
class Extraction:
    """Result of a run: the pictures in manifest order, and the files that were skipped."""

    pictures: Sequence[Extracted]
    skipped: tuple[Skipped, ...]
    computed: int  # number of pictures that were not in the store before


@dataclass(frozen=True)
class _Read:
    """Result of a worker thread for one file; `picture` is None if its feature is stored."""

    place: int  # row number in the manifest
    sha256: str
    size: int
    mtime_ns: int
    picture: Picture | None


def extract(
    manifest: Manifest,
    embedder: Embedder,
    store: FeatureStore,
    *,
    known: Container[str] = (),
    on_progress: Count = no_count,
) -> Extraction:
    """Computes the features of all pictures of a manifest into a store.

    Pictures whose content is in the store already are not computed again. If the run is stopped at
    any moment (Ctrl-C, kill), the next run with the same store continues it.

    Args:
        manifest: the pictures.
        embedder: the embedder that computes the features.
        store: the store that receives the features.
        known: SHA-256 of pictures that need no feature. They are listed and not computed.
        on_progress: called with the number of pictures done, after each picture.
    """
    pictures = ExtractedPictures(manifest)
    skipped = list(manifest.skipped)
    pending: deque[_Read] = deque()
    done = 0

    def to_compute(results: Iterator[_Read | Skipped]) -> Iterator[Picture]:
        """Yields the pictures to compute, and records the others."""
        nonlocal done
        for result in results:
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                pictures.add(result.place, result.sha256, result.size, result.mtime_ns)
                if result.picture is not None:
                    pending.append(result)
                    yield result.picture
                    continue
            done += 1
            on_progress(done)

    computed = 0
    stored = (known, store)
    # A failure ends the reading threads before the caller closes `known`.
    with one_thread_opencv(), closing(_read_all(manifest, embedder.config.size, stored)) as results:
        try:
            for feature in embedder.features(to_compute(results)):
                store.add(pending.popleft().sha256, feature)
                computed += 1
                done += 1
                on_progress(done)
        finally:
            store.flush()
    return Extraction(pictures, tuple(skipped), computed)


def identify(
    manifest: Manifest, size: int, known: Container[str] = (), *, on_progress: Count = no_count
) -> Extraction:
    """Reads, hashes and decodes the files of a manifest, without computing features.

    Args:
        manifest: the pictures.
        size: side of the decoded pictures in pixels.
        known: SHA-256 of files that are known to be pictures. They are not decoded.
        on_progress: called with the number of files done, after each file.
    """
    pictures, skipped = ExtractedPictures(manifest), list(manifest.skipped)
    for done, result in enumerate(_read_all(manifest, size, (known,)), 1):
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            pictures.add(result.place, result.sha256, result.size, result.mtime_ns)
        on_progress(done)
    return Extraction(pictures, tuple(skipped), 0)


def extract_stream(
    manifest: Manifest, embedder: Embedder, *, batch: int = 256, on_progress: Count = no_count
) -> Iterator[tuple[Embeddings, tuple[Skipped, ...]]]:
    """Embeds the pictures of a manifest in batches, in order; nothing is written to disk.

    Yields:
        The embeddings of up to `batch` pictures, and the files skipped since the last batch.
    """
    for ids, rows, skipped in feature_stream(
        manifest, embedder, batch=batch, on_progress=on_progress
    ):
        yield Embeddings(embedder.vectors(rows), ids, embedder.fingerprint), skipped


def feature_stream(
    manifest: Manifest, embedder: Embedder, *, batch: int = 256, on_progress: Count = no_count
) -> Iterator[tuple[tuple[str, ...], NDArray[np.float32], tuple[Skipped, ...]]]:
    """Computes raw features of the pictures of a manifest in batches, in order.

    Yields:
        The ids of up to `batch` pictures, their features float32 [n, feature_dim] of any length,
        and the files skipped since the last batch.
    """
    ids: list[str] = []
    features: list[NDArray[np.float32]] = []
    skipped: list[Skipped] = []
    pending: deque[str] = deque()

    def to_compute(results: Iterator[_Read | Skipped]) -> Iterator[Picture]:
        for result in results:
            if isinstance(result, Skipped):
                skipped.append(result)
            elif result.picture is not None:
                pending.append(manifest.rows[result.place].id)
                yield result.picture

    def collected() -> tuple[tuple[str, ...], NDArray[np.float32], tuple[Skipped, ...]]:
        rows = np.stack(features) if features else np.zeros((0, embedder.feature_dim), np.float32)
        result = tuple(ids), rows, tuple(skipped)
        for each in (ids, features, skipped):
            each.clear()
        return result

    done = 0
    with one_thread_opencv(), closing(_read_all(manifest, embedder.config.size, ())) as results:
        for feature in embedder.features(to_compute(results)):
            ids.append(pending.popleft())
            features.append(feature)
            if len(ids) == batch:
                done += len(ids) + len(skipped)
                yield collected()
                on_progress(done)
        if ids or skipped:
            yield collected()
        on_progress(len(manifest))


def _read_all(
    manifest: Manifest, size: int, stored: Sequence[Container[str]]
) -> Generator[_Read | Skipped, None, None]:
    """Reads files in threads, and decodes those that are not stored; yields results in order."""
    workers = available_cores()
    waiting: deque[Future[_Read | Skipped]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lmk-decode")
    try:
        for place, row in enumerate(manifest.rows):
            waiting.append(pool.submit(_read, place, row, manifest.file(row), size, stored))
            if len(waiting) >= workers * _WINDOW_PER_CORE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(
    place: int, row: Row, path: Path, size: int, stored: Sequence[Container[str]]
) -> _Read | Skipped:
    with picture_bytes(path) as data:
        if isinstance(data, str):
            return Skipped(row.path, data)
        length, sha256 = len(data), hashlib.sha256(data).hexdigest()
        picture = None if any(sha256 in some for some in stored) else decode(data, size)
        del data
    if isinstance(picture, str):
        return Skipped(row.path, picture)
    try:
        mtime_ns = path.stat().st_mtime_ns
    except OSError:
        return Skipped(row.path, "was removed while it was read")
    return _Read(place, sha256, length, mtime_ns, picture)
