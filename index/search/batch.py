"""Batch search: streams queries from disk and their neighbours to disk, and can be resumed.

A folder of results:

    _search.json      description of the search: gallery, queries, k, block
    000000.parquet    the neighbours of the first block of queries: query, rows, scores, ids
    _000000.json      a note: size and SHA-256 of that file, and a digest of the description

A block without a note, or that differs from its note, is searched again. Readers of a folder of
Parquet files, such as pandas.read_parquet, ignore names that begin with "_".
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmk.embed.errors import LmkError, UsageError, storage_errors
from lmk.embed.files import LEFTOVER, write_whole
from lmk.embed.progress import CountOfTotal, no_count_of_total
from lmk.index.catalog.lock import take_lock
from lmk.index.search.query_files import QueryFile
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.searcher import Searcher

BLOCK = 4096  # queries of a block: 8 MB of vectors of 512 components
_HITS = 2**22  # neighbours of a block: 50 MB of row numbers and scores, and as much of ids
FORMAT = 1
_SEARCH = "_search.json"
_AGAIN = "run the same search again: what is whole is not searched twice"


@dataclass(frozen=True)
class BatchReport:
    """Result of a batch search.

    Attributes:
        queries: number of queries of the whole search.
        blocks: number of files of neighbours.
        kept: number of blocks from an earlier run.
    """

    queries: int
    blocks: int
    kept: int


def block_of(k: int) -> int:
    """Returns the number of queries to search at a time for k neighbours of each."""
    return max(1, min(BLOCK, _HITS // max(k, 1)))


def search_batches(
    searcher: Searcher,
    queries: QueryFile,
    k: int,
    out: Path,
    *,
    searched: Mapping[str, Any],
    allow: Sequence[str] | None = None,
    ids_of: Callable[[NDArray[np.int64]], list[str]] | None = None,
    block: int | None = None,
    on_progress: CountOfTotal = no_count_of_total,
) -> BatchReport:
    """Writes the neighbours of all queries to a folder, block by block.

    After an interruption the same call continues. Memory holds one block.

    Args:
        searcher: searches the gallery.
        queries: the queries.
        k: number of neighbours of each query.
        out: the folder; it is created if it does not exist.
        searched: JSON values that identify the searched gallery and the kind of search, so that
            results of different searches are never mixed.
        allow: labels; a neighbour must have at least one of them. Default: any rows.
        ids_of: returns the ids of rows, which are written beside their numbers (Gallery.ids).
        block: number of queries searched at a time and written to one file. Default:
            `block_of(k)`.
        on_progress: called with the number of queries done and their total.

    Raises:
        UsageError: the folder holds something else, or a search of other inputs; k below 1.
        EmbedderMismatch, GalleryDamaged: as Searcher.search.
        GalleryLocked: another process writes to the folder.
        StorageError: the disk is full, the folder read-only.
    """
    block = block_of(k) if block is None else block
    if block < 1:
        raise ValueError(f"blocks of {block} queries")
    search = {
        "format": FORMAT,
        "k": k,
        "labels": None if allow is None else sorted(set(allow)),
        "queries": dict(queries.identity),
        "searched": dict(searched),
        "ids": ids_of is not None,
        "count": queries.count,
        "block": block,
    }
    saved = _read_search(out)
    if saved is not None:
        _require_same(saved, search, out)
    elif queries.count:  # a wrong embedder or label raises an error before anything is written
        searcher.search(queries.read(0, 1), k, allow)
    with _locked(out):
        if saved is None:
            write_whole(out / _SEARCH, json.dumps(search, indent=1).encode())
        kept = 0
        blocks = _blocks(queries.count, block)
        for number, (low, high) in enumerate(blocks):
            if _whole(out, number, search) is not None:
                kept += 1
            else:
                near = searcher.search(queries.read(low, high), k, allow)
                _write(out, number, search, near, ids_of)
            on_progress(high, queries.count)
    return BatchReport(queries.count, len(blocks), kept)


def read_neighbours(out: Path) -> Iterator[Neighbours]:
    """Yields the neighbours of a finished batch search block by block, in query order.

    Raises:
        UsageError: there is no batch search in the folder.
        LmkError: the next block is missing, cut or changed.
    """
    search = _read_search(out)
    if search is None:
        raise UsageError("holds no batch search", where=out, remedy="make one: lmk index search")
    for number in range(len(_blocks(search["count"], search["block"]))):
        content = _whole(out, number, search)
        if content is None:
            what = "this block of neighbours is missing or damaged"
            raise LmkError(what, where=out / _name(number), remedy=_AGAIN)
        yield _neighbours(content)


def _blocks(count: int, block: int) -> list[tuple[int, int]]:
    return [(low, min(low + block, count)) for low in range(0, count, block)]


def _name(number: int) -> str:
    return f"{number:06d}.parquet"


def _note(number: int) -> str:
    return f"_{number:06d}.json"


def _digest(search: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(search, sort_keys=True).encode()).hexdigest()


def _read_search(out: Path) -> dict[str, Any] | None:
    """Returns the description of the search in a folder; None for a missing or empty folder."""
    path = out / _SEARCH
    try:
        search = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        search = None
    except NotADirectoryError as error:
        what = "is a file, a folder is wanted"
        raise UsageError(what, where=out, remedy="name another") from error
    except ValueError:
        search = {}
    if search is None:
        others = [item.name for item in out.iterdir()] if out.is_dir() else []
        strange = [name for name in others if name != ".lock" and not LEFTOVER.fullmatch(name)]
        if strange:
            what = f"the folder holds something else ({min(strange)})"
            raise UsageError(what, where=out, remedy="name a folder of its own")
        return None
    if not isinstance(search, dict) or search.get("format") != FORMAT:
        what = "was not written by this version of lmk, or has changed"
        raise UsageError(what, where=path, remedy="remove the folder or name another")
    return search


_DIFFERS = {
    "k": "asked for {was} neighbours, now for {now}",
    "labels": "labels allowed {was}, now {now}",
    "queries": "of other queries, or they have changed",
    "searched": "of another index or kind of search, or it has changed",
    "ids": "ids written: {was}, now {now}",
    "count": "{was} queries, now {now}",
    "block": "blocks of {was} queries, now of {now}",
}


def _require_same(saved: Mapping[str, Any], search: Mapping[str, Any], out: Path) -> None:
    for key, text in _DIFFERS.items():
        if saved.get(key) != search[key]:
            difference = text.format(was=saved.get(key), now=search[key])
            remedy = "remove the folder or name another"
            raise UsageError(f"holds another search ({difference})", where=out, remedy=remedy)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Creates and locks the folder, and removes files that a killed writer left."""
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = take_lock(out)
    try:
        with storage_errors(out):
            for item in out.iterdir():
                if LEFTOVER.fullmatch(item.name):
                    item.unlink(missing_ok=True)
        yield
    finally:
        os.close(lock)


def _whole(out: Path, number: int, search: Mapping[str, Any]) -> bytes | None:
    """Returns the content of an intact block of this search, or None."""
    try:
        note = json.loads((out / _note(number)).read_text("utf-8"))
        content = (out / _name(number)).read_bytes()
        same = note["search"] == _digest(search) and note["size"] == len(content)
        same = same and note["sha256"] == hashlib.sha256(content).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if same else None


def _write(
    out: Path,
    number: int,
    search: Mapping[str, Any],
    near: Neighbours,
    ids_of: Callable[[NDArray[np.int64]], list[str]] | None,
) -> None:
    content = _table(near, ids_of)
    note = {
        "search": _digest(search),
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_whole(out / _name(number), content)  # the note comes last, as it marks a whole file
    write_whole(out / _note(number), json.dumps(note).encode())


def _table(near: Neighbours, ids_of: Callable[[NDArray[np.int64]], list[str]] | None) -> bytes:
    columns = {
        "query": pa.array(near.query_ids, pa.string()),
        "rows": _lists(pa.array(near.rows.ravel()), near.k),
        "scores": _lists(pa.array(near.scores.ravel()), near.k),
    }
    if ids_of is not None:
        rows, places = np.unique(near.rows, return_inverse=True)
        there = rows != NO_ROW
        names = [None] * int((~there).sum()) + ids_of(rows[there])  # NO_ROW sorts first
        ids = pa.array(names, pa.string()).take(pa.array(places.ravel()))
        columns["ids"] = _lists(ids, near.k)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def _lists(values: pa.Array, k: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(values, k)


def _neighbours(content: bytes) -> Neighbours:
    table = pq.read_table(pa.BufferReader(content), columns=["query", "rows", "scores"])
    rows, scores = (
        table[name].combine_chunks().flatten().to_numpy().reshape(-1, table[name].type.list_size)
        for name in ("rows", "scores")
    )
    return Neighbours(rows, scores, tuple(table["query"].to_pylist()))
