"""Rewrites vectors: without the removed rows, or with other vectors for some rows."""

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
    """Numbers the rows that were not removed from 0 on, and drops the vectors of removed rows.

    Large segments without a removed row do not change, and small segments are joined. Arrays of the
    present rows are renumbered, and older arrays are dropped.

    Returns:
        True if anything has changed.
    """
    t.store_pending()
    if not t.state.removed and not _can_join(t):
        return False
    alive = t.catalog.alive(t.state)
    segments = _without_removed(t, alive)
    arrays = t.catalog.arrays()
    contents = {name: _renumbered(t, header, alive) for name, header in arrays.items()}
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

    def rewritten(first: int, size: int, old: Iterator[NDArray[Any]]) -> Iterator[bytes] | None:
        """Returns the new content of a part, or None if it does not change."""
        low, high = np.searchsorted(rows, [first, first + size])
        living = alive[first : first + size]
        if low == high and living.any():
            return None
        try:
            start = next(old)  # checks the whole part
        except GalleryDamaged as error:
            blocks = _placeholders(t, first, living, rows[low:high], error)
        else:
            if low == high:
                return None
            blocks = chain([start], old)
        return _changed(blocks, rows[low:high] - first, new[low:high])

    for first, size, path in t.catalog.segments():
        if (chunks := rewritten(first, size, t.blocks(path))) is not None:
            record = t.write("segments", t.state.precision, chunks)
            t.changes.replace_segment(path, record)
    for first, size, data in t.catalog.inline_entries():
        if (chunks := rewritten(first, size, _inline_block(t, first, data))) is not None:
            t.changes.add_inline(first, size, b"".join(chunks))
    t.change_state(generation=t.state.generation + 1)


def _inline_block(t: Transaction, first: int, data: bytes | None) -> Iterator[NDArray[Any]]:
    if data is None:
        raise t.catalog.damaged(f"the vectors from row {first} on have changed")
    yield t.vectors(data)


def check_replacement(
    t: Transaction, rows: NDArray[np.int64], vectors: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns sorted rows and vectors for `replace_vectors` (ValueError if they do not fit)."""
    order = np.argsort(rows)
    rows = rows[order]
    # Embeddings checks that the vectors have length 1.
    new = Embeddings(vectors[order], tuple(map(str, rows.tolist())), t.state.fingerprint)
    alive = t.catalog.alive(t.state)
    if rows.size and (rows[0] < 0 or rows[-1] >= t.state.rows or not alive[rows].all()):
        raise ValueError("vectors for rows that the gallery does not have")
    if new.dim != t.state.dim:
        raise ValueError(f"vectors of {new.dim} components in a gallery of {t.state.dim}")
    return rows, new.vectors


def _changed(
    blocks: Iterator[NDArray[Any]], rows: NDArray[np.int64], vectors: NDArray[Any]
) -> Iterator[bytes]:
    """Yields blocks with other vectors in ascending rows, int64 [n], counted from 0."""
    start = 0
    for block in blocks:
        low, high = np.searchsorted(rows, [start, start + len(block)])
        changed = block.copy()
        changed[rows[low:high] - start] = vectors[low:high]
        yield changed.tobytes()
        start += len(block)


def _can_join(t: Transaction) -> bool:
    """Returns whether two parts that follow each other are small."""
    parts = [*t.catalog.segments(), *t.catalog.inline()]
    small = [rows < sizes.SMALL_SEGMENT_ROWS for _, rows, _ in parts]
    return any(one and other for one, other in pairwise(small))


def _without_removed(t: Transaction, alive: NDArray[np.bool_]) -> list[tuple[int, FileRecord]]:
    """Rewrites small segments and those with removed rows; returns (rows, file) of all."""
    records = {record.path: record for record in t.catalog.files()}
    segments: list[tuple[int, FileRecord]] = []
    parts: list[tuple[Iterable[NDArray[Any]], NDArray[np.bool_]]] = []

    def flush() -> None:
        segments.extend(t.write_segments(block for part in parts for block in _masked(*part)))
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


def _renumbered(
    t: Transaction, header: dict[str, Any], alive: NDArray[np.bool_]
) -> NDArray[Any] | None:
    """Returns an array without the numbers of removed rows; None if it is out of date."""
    if header["generation"] != t.state.generation:
        return None
    array = np.frombuffer(t.content(header["file"]), header["dtype"]).reshape(header["shape"])
    by_row = header.get("by_row")  # None in format 1, where the length decides
    if by_row is None and (array.ndim == 0 or len(array) != len(alive)):
        return None
    return array[alive] if by_row is not False else array


def _placeholders(
    t: Transaction,
    first: int,
    alive: NDArray[np.bool_],
    new: NDArray[np.int64],
    error: GalleryDamaged,
) -> Iterator[NDArray[Any]]:
    """Returns vectors for a damaged part; all rows that were not removed must be in `new`."""
    missing = alive.copy()
    missing[new - first] = False
    if missing.any():
        row = first + int(np.flatnonzero(missing)[0])
        what = f"{error.what}, and nothing is given for row {row}"
        raise GalleryDamaged(what, where=error.where, remedy=REPAIR) from error
    block = np.zeros((_BLOCK_ROWS, t.state.dim), t.state.dtype)
    block[:, 0] = 1  # length 1, as of every stored vector
    starts = range(0, len(alive), _BLOCK_ROWS)
    return (block[: len(alive) - start] for start in starts)
