"""FAISS indexes: built in blocks, written and read as derived files."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np

from lmk.embed.errors import UsageError
from lmk.embed.memory_errors import raise_system_cause
from lmk.embed.plain_files import open_plain
from lmk.embed.progress import Message
from lmk.index.ann import index_files
from lmk.index.ann.faiss_factory import (
    cells_of,
    factory_of,
    in_brackets,
    new_index,
    rows_to_train,
    train,
)
from lmk.index.ann.index_files import StoredIndex
from lmk.index.exact.flat import blas
from lmk.index.vectors.vectors import row_blocks
from lmk.index.vectors.view import View

faiss: Any = typed_faiss  # its stubs do not know all classes

_BLOCK_ROWS = 65_536


def load_or_build(view: View, kind: str, on_message: Message) -> StoredIndex:
    """Returns the index of a view by its kind, from a suitable file or built.

    The positions of the index are those of StoredIndex.rows.

    Args:
        view: the view to index.
        kind: see factory_of.
        on_message: called with a line of text before and while the index is built.

    Raises:
        UsageError: see new_index; or the vectors are too few for FAISS.
    """
    return index_files.load(view, kind, partial(_read, view.dim)) or _build(view, kind, on_message)


def _read(dim: int, path: Path, rows: int) -> Any:
    with os.fdopen(open_plain(path, below=path.parent), "rb") as file:
        index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
    return index if index.d == dim and index.ntotal == rows else None


def _build(view: View, kind: str, on_message: Message) -> StoredIndex:
    rows = np.flatnonzero(view.mask)
    factory = factory_of(kind, len(rows), view.dim)
    index = new_index(factory, view.dim, len(rows))
    read = view.stored.read
    try:
        if index.is_trained:
            on_message(f"building {factory} of {len(rows)} vectors")
        else:
            count = rows_to_train(cells_of(index), len(rows))
            on_message(f"training {factory} with {count} of {len(rows)} vectors")
            sample = np.random.default_rng(0).choice(rows, count, replace=False)
            with blas(count):
                train(index, read(np.sort(sample)))
        for block in row_blocks(rows, _BLOCK_ROWS):
            with blas(len(block)):
                index.add(read(block))
            on_message(f"added {index.ntotal} of {len(rows)} vectors to {factory}")
    except (RuntimeError, MemoryError) as error:
        raise_system_cause(error)
        raise UsageError(
            f"FAISS cannot build {factory!r} of {len(rows)} vectors{in_brackets(error)}",
            remedy="choose another kind of search; the kind auto finds one that fits",
        ) from error
    stem, described = index_files.describe(view, kind, factory)
    index_files.save(view, stem, described, partial(_write, index))
    return StoredIndex(index, rows, view.mask, stem, factory)


def _write(index: Any, path: Path) -> None:
    with path.open("wb") as file:
        try:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        except RuntimeError as error:  # FAISS raises it for an OSError
            raise_system_cause(error)
            raise OSError(errno.EIO, "FAISS could not write", str(path)) from error
