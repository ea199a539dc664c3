"""Queries on disk: vectors that are read block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lmk.embed.embeddings import NORM_TOLERANCE, Embeddings, unit_rows
from lmk.embed.errors import UsageError
from lmk.index.gallery.gallery import Gallery

VECTORS, IDS, EMBEDDER = "vectors", "ids", "embedder"
_FORMAT = "docs/index.md, Batch search, describes such a file"
_DTYPES = {"F32": np.float32, "F16": np.float16}


@dataclass(frozen=True, eq=False)
class QueryFile:
    """Vectors on disk.

    Attributes:
        count: number of queries.
        dim: number of components of a vector.
        fingerprint: fingerprint of their embedder.
        identity: JSON values that identify the queries.
        read: read(low, high) returns queries low to high - 1.
    """

    count: int
    dim: int
    fingerprint: str
    identity: Mapping[str, Any]
    read: Callable[[int, int], Embeddings]

    @classmethod
    def of_gallery(cls, gallery: Gallery) -> QueryFile:
        """Returns the pictures of an open gallery in row order, without distractors."""
        rows = gallery.role_rows("gallery")

        def read(low: int, high: int) -> Embeddings:
            piece = rows[low:high]
            ids = tuple(gallery.ids(piece))
            return Embeddings(gallery.vectors(piece), ids, gallery.fingerprint)

        return cls(len(rows), gallery.dim, gallery.fingerprint, state_of(gallery), read)

    @classmethod
    def of_file(cls, path: Path) -> QueryFile:
        """Returns the vectors of a safetensors file.

        The file has `vectors`, float32 or float16 [n, dim], rows of length 1; `ids`, uint8, the n
        different ids as UTF-8 with a line feed between two; and in its metadata `embedder`, the
        fingerprint of the embedder. Vectors are memory-mapped, ids are held in memory.

        Raises:
            UsageError: the file has another form. The lengths of vectors are checked by `read`.
        """
        tensors, fingerprint = _open(path)
        vectors = tensors.get_slice(VECTORS)
        dtype, shape = vectors.get_dtype(), vectors.get_shape()
        if dtype not in _DTYPES or len(shape) != 2:
            raise _wrong(path, f"its vectors are {dtype} {shape}, not F32 or F16 [n, dim]")
        ids_slice = tensors.get_slice(IDS)
        if ids_slice.get_dtype() != "U8" or len(ids_slice.get_shape()) != 1:
            raise _wrong(
                path, f"its ids are {ids_slice.get_dtype()} {ids_slice.get_shape()}, not U8 [bytes]"
            )
        ids = _Ids(tensors.get_tensor(IDS), path)
        if len(ids) != shape[0]:
            raise _wrong(path, f"{shape[0]:,} vectors but {len(ids):,} ids")

        def read(low: int, high: int) -> Embeddings:
            return _embeddings(vectors[low:high], ids.read(low, high), fingerprint, path)

        with path.open("rb") as file:
            identity = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        return cls(shape[0], shape[1], fingerprint, identity, read)


@contextmanager
def open_queries(path: Path) -> Iterator[QueryFile]:
    """Opens a gallery (NAME.lmk) or a safetensors file of vectors; see QueryFile.

    Raises:
        UsageError: the path is neither.
        GalleryError: the gallery cannot be used.
    """
    if path.is_dir():
        with Gallery.open(path) as gallery:
            yield QueryFile.of_gallery(gallery)
    else:
        yield QueryFile.of_file(path)


def state_of(gallery: Gallery) -> dict[str, Any]:
    """Returns JSON values that identify the present rows of a gallery."""
    return {
        "embedder": gallery.fingerprint,
        "generation": gallery.generation,
        "created": gallery.created,
        "content": gallery.content,
    }


class _Ids:
    """Ids in the form of the file, as a million then take tens of megabytes."""

    def __init__(self, data: NDArray[Any], path: Path) -> None:
        self._data, self._path = data.tobytes(), path
        ends = np.flatnonzero(data == ord("\n"))
        self._bounds = np.concatenate([[-1], ends, [len(data)]]) if len(data) else np.array([-1])
        if self._repeated():
            raise _wrong(path, "an id is repeated")

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def _repeated(self) -> bool:
        bounds = self._bounds.tolist()
        lines = (self._data[low + 1 : high] for low, high in pairwise(bounds))
        # A hash takes 8 bytes, an id in a set a hundred.
        hashes = np.fromiter(map(hash, lines), np.int64, len(self))
        if len(np.unique(hashes)) == len(self):
            return False
        lines = (self._data[low + 1 : high] for low, high in pairwise(bounds))
        return len(set(lines)) < len(self)  # two ids may share a hash

    def read(self, low: int, high: int) -> tuple[str, ...]:
        first, after = self._bounds[low] + 1, self._bounds[high]
        try:
            return tuple(self._data[first:after].decode().split("\n"))
        except UnicodeDecodeError as error:
            raise _wrong(self._path, "its ids are not UTF-8") from error


def _open(path: Path) -> tuple[Any, str]:
    if not path.is_file():
        remedy = "name an index (NAME.lmk) or a safetensors file of vectors"
        raise UsageError("no such file", where=path, remedy=remedy)
    try:
        tensors: Any = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise _wrong(path, f"it is no safetensors file ({error})") from error
    missing = {VECTORS, IDS} - set(tensors.keys())
    if missing:
        raise _wrong(path, f"it has no tensor {min(missing)!r}")
    fingerprint = (tensors.metadata() or {}).get(EMBEDDER)
    if fingerprint is None:
        raise _wrong(path, f"its metadata do not name the {EMBEDDER}")
    return tensors, fingerprint


def _embeddings(
    vectors: NDArray[Any], ids: tuple[str, ...], fingerprint: str, path: Path
) -> Embeddings:
    rows = vectors.astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))  # NaN compares false
    if wrong.size:
        what = f"the vector of {ids[wrong[0]]!r} has length {norms[wrong[0]]:g}, not 1"
        raise UsageError(what, where=path, remedy="divide each vector by its length")
    if vectors.dtype == np.float16:
        rows = unit_rows(rows)
    return Embeddings(rows, ids, fingerprint)


def _wrong(path: Path, what: str) -> UsageError:
    return UsageError(f"holds no queries: {what}", where=path, remedy=_FORMAT)
