"""Rewriting vectors: without the rows that were removed, or with others in the place of some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import GalleryDamaged
from lmk.index.gallery import transaction as sizes  # read when used: tests make them small
from lmk.index.gallery.transaction import Transaction
from lmk.index.vectors.files import REPAIR, FileRecord

_BLOCK_ROWS = 8192


def compact(t: Transaction) -> bool:
    """Numbers the rows that were not removed from 0 on, and drops the vectors of the others.

    Large segments that lose no row stay as they are, and small ones are joined. Arrays saved for
    the rows as they are now are carried over; older ones are dropped.

    Returns:
        Whether there was anything to do.
    """
    t.store_pending()
    if not t.state.removed and not _has_neighbours(t):
        return False
    alive = t.catalog.alive(t.state)
    segments = _without_removed(t, alive)
    arrays = t.catalog.arrays()
    contents = {name: _carried(t, header, alive) for name, header in arrays.items()}
    t.changes.renumber(alive)
    t.changes.set_segments(segments)
    rows = int(np.count_nonzero(alive))
    t.change_state(rows=rows, removed=0, generation=t.state.generation + 1)
    for name, header in arrays.items():
        t.drop_array(name)
        array = contents[name]
        if array is not None:
            t.put_array(name, array, by_row=header.get("by_row", True))
    return True


def replace_vectors(t: Transaction, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
    """Stores other vectors for rows, and rewrites the parts that hold these rows.

    A damaged part can be rewritten if each of its rows is in `rows` or removed. A damaged part with
    removed rows only is rewritten in any case.

    Args:
        t: the transaction.
        rows: int64 [n], ascending, without repetition.
        vectors: float32 [n, dim], of length 1.

    Raises:
        GalleryDamaged: a damaged part has a row that is neither in `rows` nor removed.
    """
    t.store_pending()
    alive, new = t.catalog.alive(t.state), vectors.astype(t.state.dtype)
    for first, size, path in t.catalog.segments():
        low, high = np.searchsorted(rows, [first, first + size])
        if low == high and alive[first : first + size].any():
            continue
        old = t.blocks(path)
        try:
            start = next(old)  # when all of it was checked
        except GalleryDamaged as error:
            blocks = _anew(t, first, alive[first : first + size], rows[low:high], error)
        else:
            if low == high:  # nothing but removed rows, and not damaged
                continue
            blocks = chain([start], old)
        chunks = _changed(blocks, rows[low:high] - first, new[low:high])
        record = t.write("segments", t.state.precision, chunks)
        t.changes.replace_segment(path, record)
    for first, size, data in t.catalog.inline_entries():
        low, high = np.searchsorted(rows, [first, first + size])
        if low == high and (data is not None or alive[first : first + size].any()):
            continue
        if data is None:
            damage = t.catalog.damaged(f"the vectors from row {first} on have changed")
            blocks = _anew(t, first, alive[first : first + size], rows[low:high], damage)
        else:
            blocks = iter([t.vectors(data)])
        changed = _changed(blocks, rows[low:high] - first, new[low:high])
        t.changes.add_inline(first, size, b"".join(changed))
    t.change_state(generation=t.state.generation + 1)


def check_replacement(
    t: Transaction, rows: NDArray[np.int64], vectors: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns rows and vectors for `replace_vectors`, by row (ValueError if they do not fit)."""
    order = np.argsort(rows)
    rows = rows[order]
    # Embeddings refuses vectors that are not of length 1.
    given = Embeddings(vectors[order], tuple(map(str, rows.tolist())), t.state.fingerprint)
    alive = t.catalog.alive(t.state)
    if rows.size and (rows[0] < 0 or rows[-1] >= t.state.rows or not alive[rows].all()):
        raise ValueError("vectors for rows that the gallery does not have")
    if given.dim != t.state.dim:
        raise ValueError(f"vectors of {given.dim} components in a gallery of {t.state.dim}")
    return rows, given.vectors


def _changed(
    blocks: Iterator[NDArray[Any]], rows: NDArray[np.int64], vectors: NDArray[Any]
) -> Iterator[bytes]:
    """Yields blocks with other vectors in some rows, int64 [n] from 0 on, ascending."""
    start = 0
    for block in blocks:
        low, high = np.searchsorted(rows, [start, start + len(block)])
        changed = block.copy()
        changed[rows[low:high] - start] = vectors[low:high]
        yield changed.tobytes()
        start += len(block)


def _has_neighbours(t: Transaction) -> bool:
    """Whether two parts that follow each other are small, so that they can be joined."""
    parts = [*t.catalog.segments(), *t.catalog.inline()]
    small = [rows < sizes.SMALL_SEGMENT_ROWS for _, rows, _ in parts]
    return any(one and other for one, other in pairwise(small))


def _without_removed(t: Transaction, alive: NDArray[np.bool_]) -> list[tuple[int, FileRecord]]:
    """Writes segments that lose rows or are small anew; returns (rows, file) of all segments."""
    records = {record.path: record for record in t.catalog.files()}
    segments: list[tuple[int, FileRecord]] = []
    parts: list[tuple[Iterable[NDArray[Any]], NDArray[np.bool_]]] = []

    def flush() -> None:
        segments.extend(t.write_segments(kept for part in parts for kept in _masked(*part)))
        parts.clear()

    for first, size, path in t.catalog.segments():
        mask = alive[first : first + size]
        if size >= sizes.SMALL_SEGMENT_ROWS and mask.all():
            flush()
            segments.append((size, records[path]))
        elif mask.any():
            parts.append((t.blocks(path), mask))
        if sum(int(mask.sum()) for _, mask in parts) >= sizes.SMALL_SEGMENT_ROWS:
            flush()
    for first, size, data in t.catalog.inline():
        parts.append(([t.vectors(data)], alive[first : first + size]))
    flush()
    return segments


def _masked(blocks: Iterable[NDArray[Any]], mask: NDArray[np.bool_]) -> Iterator[NDArray[Any]]:
    start = 0
    for block in blocks:
        yield block[mask[start : start + len(block)]]
        start += len(block)


def _carried(
    t: Transaction, header: dict[str, Any], alive: NDArray[np.bool_]
) -> NDArray[Any] | None:
    """Returns an array without the numbers of removed rows; None for one that is out of date."""
    if header["generation"] != t.state.generation:
        return None
    array = np.frombuffer(t.content(header["file"]), header["dtype"]).reshape(header["shape"])
    by_row = header.get("by_row")  # None in format 1: then the length must say it
    if by_row is None and (array.ndim == 0 or len(array) != len(alive)):
        return None
    return array[alive] if by_row is not False else array


def _anew(
    t: Transaction,
    first: int,
    alive: NDArray[np.bool_],
    given: NDArray[np.int64],
    error: GalleryDamaged,
) -> Iterator[NDArray[Any]]:
    """Returns vectors for a damaged part whose living rows are all given (else raises `error`)."""
    missing = alive.copy()
    missing[given - first] = False
    if missing.any():
        row = first + int(np.flatnonzero(missing)[0])
        what = f"{error.what}, and nothing is given for row {row}"
        raise GalleryDamaged(what, where=error.where, remedy=REPAIR) from error
    block = np.zeros((_BLOCK_ROWS, t.state.dim), t.state.dtype)
    block[:, 0] = 1  # removed rows: of length 1, as every stored vector is
    starts = range(0, len(alive), _BLOCK_ROWS)
    return (block[: len(alive) - start] for start in starts)
