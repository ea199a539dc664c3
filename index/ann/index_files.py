"""Indexes as derived files, stored with a description of their source.

An index stays in use while pictures are added and removed, as long as most of its rows have not
changed. It covers the rows whose part of the vectors has the same key as when it was built.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.memory_errors import raise_system_cause
from lmk.embed.plain_files import parse_json
from lmk.index.vectors.view import View

_FORMAT = 1
_INDEX = "index-"  # the beginning of the names of all these files
_MOST_BESIDE = 0.1  # largest part of rows beside the index, relative to the indexed rows
_SOME_BESIDE = 4096  # rows that may always be beside the index
_MOST_INDEXES = 4  # of the same rows, of different kinds
_MOST_GONE = 0.3  # largest part of the indexed rows that may be removed or changed


@dataclass(frozen=True, eq=False)
class StoredIndex:
    """An index and its rows.

    Attributes:
        index: the index, a FAISS index or Cells.
        rows: int64 [n], the ascending row numbers that the index was built from.
        covered: bool [rows of the view's gallery], the rows that have not changed since.
        stem: the beginning of the names of its files.
        factory: the factory string, or the name of the cells.
    """

    index: Any
    rows: NDArray[np.int64]
    covered: NDArray[np.bool_]
    stem: str
    factory: str


@dataclass(frozen=True, eq=False)
class SearchFilter:
    """The rows of an index that a search may return.

    Attributes:
        inside: bool [rows of the gallery], the rows.
        positions: bool [n], their positions in StoredIndex.rows; None for all.
        count: number of the rows.
    """

    inside: NDArray[np.bool_]
    positions: NDArray[np.bool_] | None
    count: int

    @classmethod
    def of(cls, built: StoredIndex, allowed: NDArray[np.bool_]) -> SearchFilter:
        """Returns the filter for those allowed rows, bool [rows], that the index covers."""
        inside = allowed & built.covered
        positions = inside[built.rows]
        count = int(np.count_nonzero(positions))
        return cls(inside, None if count == len(positions) else positions, count)


@dataclass(frozen=True, eq=False)
class PreviousResult:
    """The result of the same search with less effort.

    Attributes:
        rows, scores: int64 and float32 [q, k].
        effort: its effort.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    effort: int


def load(view: View, kind: str, read: Callable[[Path, int], Any]) -> StoredIndex | None:
    """Returns the index of a view by its kind from a suitable file, or None.

    A suitable index may have been built from fewer or more rows, with another factory string.

    Args:
        view: the view to search.
        kind: the kind of search.
        read: returns the index in a file for a number of rows. If the file holds another index, it
            returns None or raises ValueError or RuntimeError.
    """
    prefix = _prefix(kind, view.dim)
    for name in view.derived.names():
        if not (name.startswith(prefix) and name.endswith(".rows.json")):
            continue
        stem = name.removesuffix(".rows.json")
        described, path = view.derived.content(name), view.derived.load(f"{stem}.index")
        if described is None or path is None:
            continue
        try:
            source = parse_json(described)
            rows, covered = _covered(view, source)
            if _good_enough(view, rows, covered):
                index = read(path, len(rows))
                if index is not None:
                    return StoredIndex(index, rows, covered, stem, str(source["factory"]))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise_system_cause(error)
            continue  # removed meanwhile, or not written by this program
    return None


def describe(view: View, kind: str, factory: str) -> tuple[str, bytes]:
    """Returns the beginning of the names of a new index, and the description of its source."""
    described = {
        "factory": factory,
        "rows": len(view.mask),
        "parts": [[part.first_row, part.rows, part.key] for part in view.stored.parts],
        "mask": base64.b64encode(np.packbits(view.mask).tobytes()).decode(),
    }
    text = json.dumps(described).encode()
    return _prefix(kind, view.dim) + hashlib.sha256(text).hexdigest()[:16], text


def save(view: View, stem: str, described: bytes, write: Callable[[Path], None]) -> Path | None:
    """Saves an index, and removes replaced indexes and too many indexes of other kinds.

    Args:
        view: the view that the index was built from.
        stem, described: see `describe`.
        write: writes the index to a path.

    Returns:
        The file of the index; None if it cannot be stored.
    """
    derived, parts = view.derived, [part.key for part in view.stored.parts]
    saved = derived.save(f"{stem}.index", write, parts)
    if saved is None:
        return None
    derived.save(f"{stem}.rows.json", lambda path: path.write_bytes(described), parts)
    _remove_replaced(view, stem)
    return saved


def _remove_replaced(view: View, built: str) -> None:
    """Removes the files that the index with this stem replaces."""
    derived = view.derived
    prefix = built.rsplit("-", 1)[0]
    kinds: list[tuple[int, str]] = []
    gone: set[str] = set()
    for name in derived.names():
        stem, ending = name.split(".", 1) if "." in name else (name, "")
        if not stem.startswith(_INDEX):
            continue
        if stem == built:
            if ending not in ("index", "rows.json"):  # measured with an older index
                derived.remove(name)
        elif ending == "index" and not _of_other_rows(view, stem):
            path = derived.load(name)
            if path is None or name.startswith(prefix):
                gone.add(stem)
            else:
                kinds.append((path.stat().st_mtime_ns, stem))
    gone |= {stem for _, stem in sorted(kinds, reverse=True)[_MOST_INDEXES - 1 :]}
    for name in derived.names():
        if name.split(".", 1)[0] in gone:
            derived.remove(name)


def _covered(view: View, described: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the rows that an index was built from, and the rows that it covers."""
    packed = np.frombuffer(base64.b64decode(described["mask"], validate=True), np.uint8)
    built = np.unpackbits(packed, count=described["rows"]).astype(np.bool_)
    covered = np.zeros(len(view.mask), np.bool_)
    known = {tuple(part) for part in described["parts"]}
    for part in view.stored.parts:
        if part.key and (part.first_row, part.rows, part.key) in known:
            piece = slice(part.first_row, part.first_row + part.rows)
            covered[piece] = built[piece]
    return np.flatnonzero(built), covered


def _good_enough(view: View, rows: NDArray[np.int64], covered: NDArray[np.bool_]) -> bool:
    serving = int((covered & view.mask).sum())
    beside = int(view.mask.sum()) - serving
    return (
        len(rows) - serving <= _MOST_GONE * len(rows)
        and beside <= max(_SOME_BESIDE, _MOST_BESIDE * len(rows))
        and serving > 0
    )


def _of_other_rows(view: View, stem: str) -> bool:
    """Returns whether an index covers rows of this gallery, but none of the view."""
    described = view.derived.content(f"{stem}.rows.json")
    if described is None:
        return False
    try:
        covered = _covered(view, parse_json(described))[1]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(covered.any()) and not (covered & view.mask).any()


def _prefix(kind: str, dim: int) -> str:
    made_by = f"{_FORMAT} {kind} {dim}".encode()
    return f"{_INDEX}{hashlib.sha256(made_by).hexdigest()[:16]}-"
