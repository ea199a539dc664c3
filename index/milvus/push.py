"""Copies a gallery to a Milvus server, which can then search it.

The gallery folder remains the original. The collection is a copy that a push updates and that can
always be created again. Every row has a stamp: a digest of its copied data. A push compares the
stamps and sends the rows that differ, so a push that was stopped continues, and a push after a few
changes is short. From the first change to the end of a push, the collection is marked as incomplete
and searches refuse it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import GalleryError, ServerError
from lmk.embed.progress import CountOfTotal, no_count_of_total
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.milvus.collection import (
    MOST,
    IndexKind,
    Mark,
    check_belongs,
    collection_name,
    count_rows,
    create_collection,
    index_for,
    prepare_collection,
    read_mark,
    write_mark,
)
from lmk.index.milvus.server import Server
from lmk.index.vectors.labels import Role

_BATCH_BYTES = 4 << 20  # bytes of one request; servers refuse 64 MB
_BLOCK_ROWS = 8192  # rows that are compared at a time
Entry = tuple[int, Picture, Role]


@dataclass(frozen=True)
class PushReport:
    """Result of a push.

    Attributes:
        uri: address of the server.
        collection: name of the collection.
        index: kind of the collection's index.
        rows: number of rows in the collection now.
        sent: number of rows that were missing or different.
        deleted: number of rows that are no longer in the gallery.
    """

    uri: str
    collection: str
    index: IndexKind
    rows: int
    sent: int
    deleted: int


def push(
    gallery: Gallery,
    uri: str,
    *,
    collection: str | None = None,
    index: IndexKind | None = None,
    replace: bool = False,
    timeout: float = 60.0,
    on_progress: CountOfTotal = no_count_of_total,
    connect: Callable[..., Any] | None = None,
) -> PushReport:
    """Updates a collection to the state of a gallery, or creates it.

    After an error the same call continues; rows on the server are not sent again.

    Args:
        gallery: the gallery. All rows are copied, including distractors.
        uri: address of the server, http://HOST:PORT.
        collection: name of the collection. Default: "lmk_" and the gallery's name.
        index: kind of index of a new collection. Default: chosen by the number of rows.
        replace: drop an existing collection with this name first, whatever it holds.
        timeout: longest time of one request, in seconds.
        on_progress: called with the number of rows done and their total.
        connect: see Server.

    Raises:
        GalleryError: the collection holds something else, or a newer state of this gallery.
        EmbedderMismatch: the collection has the vectors of another embedder.
        ServerError: the server cannot be reached, or fails.
        UsageError: the URI or name is invalid, or pymilvus is not installed.
    """
    name = collection_name(gallery.path, collection)
    server = Server(uri, timeout, connect)
    try:
        return _Push(gallery, server, name, index, on_progress).run(replace=replace)
    finally:
        server.close()


class _Push:
    """State of one push."""

    def __init__(
        self,
        gallery: Gallery,
        server: Server,
        name: str,
        index: IndexKind | None,
        on_progress: CountOfTotal,
    ) -> None:
        self._gallery = gallery
        self._server = server
        self._name = name
        self._on_progress = on_progress
        self._rows = int(gallery.alive.sum())
        self._sent = self._deleted = 0
        self._mark = Mark(
            gallery=gallery.created,
            content=gallery.content,
            fingerprint=gallery.fingerprint,
            generation=gallery.generation,
            complete=False,
            index=index or index_for(self._rows),
            push=uuid.uuid4().hex,
        )

    def run(self, *, replace: bool) -> PushReport:
        if replace and self._server.call("has_collection", self._name):
            self._server.call("drop_collection", self._name)
        mark = read_mark(self._server, self._name)
        if mark is None or not self._is_current(mark):
            if mark is None:
                create_collection(self._server, self._name, self._gallery.dim, self._mark)
            else:
                write_mark(self._server, self._name, self._mark)
            prepare_collection(self._server, self._name, self._mark.index)
            self._copy(new=mark is None)
            self._finish()
        self._on_progress(self._rows, self._rows)
        return PushReport(
            self._server.uri, self._name, self._mark.index, self._rows, self._sent, self._deleted
        )

    def _is_current(self, mark: Mark) -> bool:
        """Returns whether the collection with this mark has all rows of the gallery."""
        check_belongs(mark, self._gallery, self._server, self._name)
        self._mark = dataclasses.replace(self._mark, index=mark.index)
        if mark != dataclasses.replace(self._mark, complete=True, push=mark.push):
            return False
        prepare_collection(self._server, self._name, mark.index)
        return count_rows(self._server, self._name) == self._rows

    def _copy(self, *, new: bool) -> None:
        """Copies the rows of the gallery block by block, and deletes other rows."""
        entries = self._gallery.entries()
        done = 0
        for first in range(0, self._gallery.rows, _BLOCK_ROWS):
            after = first + _BLOCK_ROWS
            block = list(islice(entries, int(self._gallery.alive[first:after].sum())))
            stamps = {} if new else self._stamps(f"row >= {first} and row < {after}")
            done = self._send(block, stamps, done)
            self._delete(stamps.keys() - {row for row, _, _ in block})
        while not new and (beyond := self._stamps(f"row >= {self._gallery.rows}")):
            self._delete(beyond.keys())

    def _stamps(self, condition: str) -> dict[int, int]:
        """Returns the stamps of at most MOST rows of the collection, by row."""
        options: dict[str, Any] = {"output_fields": ["row", "stamp"], "consistency_level": "Strong"}
        rows = self._server.call("query", self._name, filter=condition, limit=MOST, **options)
        return {item["row"]: item["stamp"] for item in rows}

    def _send(self, entries: Sequence[Entry], stamps: dict[int, int], done: int) -> int:
        """Sends the rows with another stamp; returns the number of rows done."""
        for records in _batches(self._gallery, entries):
            new = [record for record in records if stamps.get(record["row"]) != record["stamp"]]
            if new:
                self._check_alone()
                # Not insert: if an answer was lost, the rows may exist already, or appear later.
                self._server.call("upsert", self._name, new)
                self._sent += len(new)
            done += len(records)
            self._on_progress(done, self._rows)
        return done

    def _delete(self, rows: Collection[int]) -> None:
        if rows:
            self._check_alone()
            self._server.call("delete", self._name, ids=sorted(rows))
            self._deleted += len(rows)

    def _check_alone(self) -> None:
        """Checks that no other push has changed the mark (GalleryError)."""
        if read_mark(self._server, self._name) != self._mark:
            what = "another push to this collection has begun since"
            remedy = "let it end, then push once more if the gallery has changed"
            raise GalleryError(what, where=self._server.place(self._name), remedy=remedy)

    def _finish(self) -> None:
        """Flushes and indexes all rows, counts them, and marks the collection as complete."""

        def rows_without_index() -> int:
            index = self._server.call("describe_index", self._name, "vector")
            return int(index["pending_index_rows"])

        self._server.call("flush", self._name, patience=10)
        self._server.wait(rows_without_index, 0, "build the index", patience=10)
        rows = count_rows(self._server, self._name)
        if rows != self._rows:
            what = f"the collection holds {rows} rows after a push of {self._rows}"
            remedy = "push once more: only what is missing is sent"
            raise ServerError(what, where=self._server.place(self._name), remedy=remedy)
        self._check_alone()
        self._mark = dataclasses.replace(self._mark, complete=True)
        write_mark(self._server, self._name, self._mark)


def _batches(gallery: Gallery, entries: Sequence[Entry]) -> Iterator[list[dict[str, Any]]]:
    """Yields the records of entries in batches whose vectors fit one request."""
    size = max(1, _BATCH_BYTES // (4 * gallery.dim))
    for start in range(0, len(entries), size):
        batch = entries[start : start + size]
        vectors = gallery.stored.read(np.array([row for row, _, _ in batch], np.int64))
        yield [
            _record(row, picture, role, vector)
            for (row, picture, role), vector in zip(batch, vectors, strict=True)
        ]


def _record(row: int, picture: Picture, role: Role, vector: NDArray[np.float32]) -> dict[str, Any]:
    record = {"id": text(picture.id), "labels": [text(x) for x in picture.labels], "role": role}
    content = json.dumps([row, record], sort_keys=True).encode() + vector.tobytes()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    stamp = int.from_bytes(digest, "big", signed=True)
    return {"row": row, **record, "stamp": stamp, "vector": vector}


def text(value: str) -> str:
    """Returns a string in valid UTF-8; other bytes are escaped, as in \\udc80."""
    return value.encode("utf-8", "backslashreplace").decode()
