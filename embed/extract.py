"""Streams a manifest's pictures through an embedder: decoding and inference overlap.

Threads read and decode (OpenCV and Pillow let go of the GIL) while the runtime computes earlier
pictures; a bounded window keeps memory flat at any number of pictures. Features go to a
FeatureStore as they come, so a killed run loses seconds, not hours.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lmk.embed.embedder import Embedder
from lmk.embed.embeddings import Embeddings
from lmk.embed.features import FeatureStore
from lmk.embed.images import Picture, Skipped, decode, read_bytes
from lmk.embed.manifest import Manifest, Row
from lmk.embed.runtime import available_cores

_WINDOW_PER_CORE = 8  # decoded pictures that may wait for the network

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Extracted:
    """A picture whose feature is in the store."""

    row: Row
    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Extraction:
    """What a run gave: the pictures in manifest order, and the files that gave nothing."""

    pictures: tuple[Extracted, ...]
    skipped: tuple[Skipped, ...]
    computed: int  # of the pictures, how many were not in the store before


@dataclass(frozen=True)
class _Read:
    """A file as a worker thread leaves it: `picture` is None where its feature is stored."""

    row: Row
    sha256: str
    size: int
    mtime_ns: int
    picture: Picture | None


def extract(
    manifest: Manifest,
    embedder: Embedder,
    store: FeatureStore,
    *,
    progress: Progress = lambda done: None,
) -> Extraction:
    """Puts the features of all pictures of a manifest into a store.

    Pictures whose content is in the store already are not computed again. Stopped at any moment
    (Ctrl-C, kill), the next run with the same store goes on.

    Args:
        progress: called with the number of pictures done, after each.
    """
    pictures: list[Extracted] = []
    skipped = list(manifest.skipped)
    pending: deque[_Read] = deque()
    done = 0

    def to_compute(results: Iterator[_Read | Skipped]) -> Iterator[Picture]:
        """Hands new pictures to the runtime and files the others away."""
        nonlocal done
        for result in results:
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                pictures.append(Extracted(result.row, result.sha256, result.size, result.mtime_ns))
                if result.picture is not None:
                    pending.append(result)
                    yield result.picture
                    continue
            done += 1
            progress(done)

    computed = 0
    with _one_thread_opencv():
        try:
            results = _read_all(manifest, embedder.config.size, store)
            for feature in embedder.features(to_compute(results)):
                store.add(pending.popleft().sha256, feature)
                computed += 1
                done += 1
                progress(done)
        finally:
            store.flush()
    return Extraction(tuple(pictures), tuple(skipped), computed)


def extract_stream(
    manifest: Manifest,
    embedder: Embedder,
    *,
    batch: int = 256,
    progress: Progress = lambda done: None,
) -> Iterator[tuple[Embeddings, tuple[Skipped, ...]]]:
    """Embeds the pictures of a manifest a batch at a time, in order; nothing is kept on disk.

    Yields:
        The embeddings of up to `batch` pictures, and the files met meanwhile that gave none.
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
                pending.append(result.row.id)
                yield result.picture

    def collected() -> tuple[Embeddings, tuple[Skipped, ...]]:
        rows = np.stack(features) if features else np.zeros((0, embedder.feature_dim), np.float32)
        result = Embeddings(embedder.vectors(rows), tuple(ids), embedder.fingerprint)
        failed = tuple(skipped)
        for kept in (ids, features, skipped):
            kept.clear()
        return result, failed

    done = 0
    with _one_thread_opencv():
        results = _read_all(manifest, embedder.config.size, ())
        for feature in embedder.features(to_compute(results)):
            ids.append(pending.popleft())
            features.append(feature)
            if len(ids) == batch:
                done += len(ids) + len(skipped)
                yield collected()
                progress(done)
        if ids or skipped:
            yield collected()
        progress(len(manifest))


def _read_all(manifest: Manifest, size: int, stored: Container[str]) -> Iterator[_Read | Skipped]:
    """Reads, hashes and decodes files in threads, in order, a bounded number ahead.

    Pictures whose sha256 is in `stored` are not decoded.
    """
    workers = available_cores()
    waiting: deque[Future[_Read | Skipped]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lmk-decode")
    try:
        for row in manifest.rows:
            waiting.append(pool.submit(_read, row, manifest.file(row), size, stored))
            if len(waiting) >= workers * _WINDOW_PER_CORE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(row: Row, path: Path, size: int, stored: Container[str]) -> _Read | Skipped:
    data = read_bytes(path)
    if isinstance(data, str):
        return Skipped(row.path, data)
    sha256 = hashlib.sha256(data).hexdigest()
    picture = None if sha256 in stored else decode(data, size)
    if isinstance(picture, str):
        return Skipped(row.path, picture)
    try:
        mtime_ns = path.stat().st_mtime_ns
    except OSError:
        return Skipped(row.path, "was removed while it was read")
    return _Read(row, sha256, len(data), mtime_ns, picture)


@contextmanager
def _one_thread_opencv() -> Iterator[None]:
    """Keeps OpenCV's own threads from fighting with ours; puts its setting back."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
