"""Vectors of a gallery as parts: its memory-mapped segments and the vectors in its catalog."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from lmk.index.catalog.catalog import Catalog
from lmk.index.catalog.records import State
from lmk.index.vectors.files import StoredFile
from lmk.index.vectors.vectors import VectorPart


def vector_parts(
    catalog: Catalog, files: Mapping[str, StoredFile], state: State, rows: int
) -> tuple[VectorPart, ...]:
    """Returns the parts of rows 0 to `rows`; they stay usable when the files are closed.

    Args:
        catalog: the catalog, which names the parts.
        files: the open segments by their path in the catalog.
        state: the state of the gallery.
        rows: number of rows whose vectors the catalog has.

    Raises:
        GalleryDamaged: rows are missing, or the size of a part does not fit its rows.
    """
    segments, inline = catalog.segments(), catalog.inline()
    catalog.check_tiling([part[:2] for part in (*segments, *inline)], rows)
    row_bytes, parts = state.dim * state.dtype.itemsize, []
    for first, size, path in segments:
        file = files[path]
        if file.record.size != size * row_bytes:
            raise catalog.damaged(f"the vectors from row {first} on are not whole")
        array, check = file.map(state.dtype)
        parts.append(VectorPart(first, array.reshape(size, state.dim), file.record.sha256, check))
    if inline:
        data = b"".join(vectors for _, _, vectors in inline)
        first, size = inline[0][0], sum(size for _, size, _ in inline)
        if len(data) != size * row_bytes:
            raise catalog.damaged(f"the vectors from row {first} on are not whole")
        array = np.frombuffer(data, state.dtype).reshape(size, state.dim)
        parts.append(VectorPart(first, array, hashlib.sha256(data).hexdigest()))
    return tuple(parts)
