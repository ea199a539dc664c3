"""Copying a gallery to a Milvus server, so that it can be searched there.

The gallery's folder stays what is true; the collection is a copy that a push brings up to date and
can always be made again. Every row carries a stamp of all that is copied of it. A push compares the
stamps and sends what differs, so one that was stopped goes on, and one after a few changes is
short. From its first change to its end the collection says that it is not complete, and searches
refuse it.
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

_BATCH_BYTES = 4 << 20  # of one request; servers refuse those of 64 MB
_BLOCK_ROWS = 8192  # compared at a time, and held in memory
Entry = tuple[int, Picture, Role]


@dataclass(frozen=True)
class PushReport:
    """Result of a push.

    Attributes:
        uri: the server.
        collection: its collection.
        index: the kind of its index.
        rows: in the collection now.
        sent: rows that were not there, or not like this.
        deleted: rows that no longer are in the gallery.
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
        gallery: all its rows are copied, distractors too.
        uri: of the server, http://HOST:PORT.
        collection: its name; "lmk_" and the gallery's name unless given.
        index: of a new collection; chosen by the number of rows unless given.
        replace: drop a collection of that name first, whatever it holds.
        timeout: seconds that one request may take.
        on_progress: called with the rows done and their number.
        connect: makes the client, as for Server.

    Raises:
        GalleryError: for a collection of something else, or of a newer state of this gallery.
        EmbedderMismatch: for one with the vectors of another embedder.
        ServerError: when the server cannot be reached, or fails.
        UsageError: for a bad URI or name, or without pymilvus.
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
        self._where = f"{server.uri}, collection {name}"
        self._progress = on_progress
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
        found = read_mark(self._server, self._name)
        if found is None or not self._is_current(found):
            self._begin(found)
            self._copy(new=found is None)
            self._finish()
        self._progress(self._rows, self._rows)
        return PushReport(
            self._server.uri, self._name, self._mark.index, self._rows, self._sent, self._deleted
        )

    def _is_current(self, found: Mark) -> bool:
        check_belongs(found, self._gallery, self._server, self._name)
        self._mark = dataclasses.replace(self._mark, index=found.index)
        if found != dataclasses.replace(self._mark, complete=True, push=found.push):
            return False
        prepare_collection(self._server, self._name, found.index)
        return count_rows(self._server, self._name) == self._rows

    def _begin(self, found: Mark | None) -> None:
        if found is None:
            create_collection(self._server, self._name, self._gallery.dim, self._mark)
        else:
            write_mark(self._server, self._name, self._mark)
        prepare_collection(self._server, self._name, self._mark.index)

    def _copy(self, *, new: bool) -> None:
        """Makes the rows of the collection those of the gallery, block by block."""
        entries = self._gallery.entries()
        done = 0
        for first in range(0, self._gallery.rows, _BLOCK_ROWS):
            after = first + _BLOCK_ROWS
            here = list(islice(entries, int(self._gallery.alive[first:after].sum())))
            there = {} if new else self._there(f"row >= {first} and row < {after}")
            done = self._send(here, there, done)
            self._delete(there.keys() - {row for row, _, _ in here})
        while not new and (beyond := self._there(f"row >= {self._gallery.rows}")):
            self._delete(beyond.keys())

    def _there(self, condition: str) -> dict[int, int]:
        """Returns row -> stamp of what the collection holds, at most MOST rows."""
        found = self._server.call(
            "query",
            self._name,
            filter=condition,
            limit=MOST,
            output_fields=["row", "stamp"],
            consistency_level="Strong",
        )
        return {item["row"]: item["stamp"] for item in found}

    def _send(self, entries: Sequence[Entry], there: dict[int, int], done: int) -> int:
        for records in _batches(self._gallery, entries):
            new = [record for record in records if there.get(record["row"]) != record["stamp"]]
            if new:
                self._check_alone()
                # Not insert: where an answer was lost the rows may be there, or still come.
                self._server.call("upsert", self._name, new)
                self._sent += len(new)
            done += len(records)
            self._progress(done, self._rows)
        return done

    def _delete(self, rows: Collection[int]) -> None:
        if rows:
            self._check_alone()
            self._server.call("delete", self._name, ids=sorted(rows))
            self._deleted += len(rows)

    def _check_alone(self) -> None:
        if read_mark(self._server, self._name) != self._mark:
            raise GalleryError(
                "another push to this collection has begun since",
                where=self._where,
                remedy="let it end, then push once more if the gallery has changed",
            )

    def _finish(self) -> None:
        """Flushes and indexes all rows, counts them, and marks the collection as complete."""

        def rows_without_index() -> int:
            found = self._server.call("describe_index", self._name, "vector")
            return int(found["pending_index_rows"])

        self._server.call("flush", self._name, patience=10)
        self._server.wait(rows_without_index, 0, "build the index", patience=10)
        found = count_rows(self._server, self._name)
        if found != self._rows:
            raise ServerError(
                f"the collection holds {found} rows after a push of {self._rows}",
                where=self._where,
                remedy="push once more: only what is missing is sent",
            )
        self._check_alone()
        self._mark = dataclasses.replace(self._mark, complete=True)
        write_mark(self._server, self._name, self._mark)


def _batches(gallery: Gallery, entries: Sequence[Entry]) -> Iterator[list[dict[str, Any]]]:
    """The records of entries, so many at a time that their vectors fit one request."""
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
    """Returns a string as Milvus keeps it: bytes that are not UTF-8 are shown as \\udc80 is."""
    return value.encode("utf-8", "backslashreplace").decode()
