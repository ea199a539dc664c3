"""A collection on a Milvus server that holds the rows of one gallery.

Fields: row (the primary key), id, labels, role, stamp, vector. The properties of the collection
name its gallery, and state whether the collection is complete.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lmk.embed.errors import EmbedderMismatch, GalleryError, UsageError
from lmk.embed.shell_words import shell_word
from lmk.index.gallery.gallery import Gallery
from lmk.index.milvus.server import Server

IndexKind = Literal["flat", "hnsw", "ivf_flat"]
INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
FORMAT = "1"
MOST = 16_384  # rows in one answer of Milvus
_FLAT_ROWS = 200_000  # up to this number of rows, exact comparison is fast
_CELLS = 4096
_LONGEST = 65_535  # characters of a string in Milvus
_MOST_LABELS = 4096  # elements of an array in Milvus
_BUILD: dict[IndexKind, dict[str, Any]] = {
    "flat": {"index_type": "FLAT"},
    "hnsw": {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}},
    "ivf_flat": {"index_type": "IVF_FLAT", "params": {"nlist": _CELLS}},
}
_EFFORTS: dict[IndexKind, int] = {"flat": 0, "hnsw": 128, "ivf_flat": 64}  # ef, cells visited


@dataclass(frozen=True)
class Mark:
    """Description of the content of a collection, stored in its properties.

    Attributes:
        gallery: time of creation of the gallery, which identifies it even if its folder is moved.
        content: Gallery.content.
        fingerprint: fingerprint of the embedder.
        generation: generation of the gallery when it was copied.
        complete: True if the collection holds all rows of the gallery and no others.
        index: kind of the collection's index.
        push: identifier of the push that wrote the mark.
        format: format of the collection.
    """

    gallery: str
    content: str
    fingerprint: str
    generation: int
    complete: bool
    index: IndexKind
    push: str
    format: str = FORMAT

    def properties(self) -> dict[str, str]:
        """Returns the mark as properties of a collection."""
        return {f"lmk.{key}": str(value) for key, value in vars(self).items()}


def read_mark(server: Server, name: str) -> Mark | None:
    """Returns the mark of a collection, or None if the collection does not exist.

    Raises:
        GalleryError: another program or another version of lmk created the collection.
        ServerError: see Server.call.
    """
    if not server.call("has_collection", name):
        return None
    properties = server.call("describe_collection", name).get("properties", {})
    values = {key.removeprefix("lmk."): value for key, value in properties.items()}
    if values.get("format") != FORMAT or values.get("index") not in INDEX_KINDS:
        what = "the collection was not made by lmk, or by another version of it"
        push = f"lmk index push INDEX --uri {shell_word(server.uri)} --collection NAME"
        raise GalleryError(what, where=server.place(name), remedy=f"use another: `{push}`")
    values = {field.name: values[field.name] for field in fields(Mark)}
    values |= {"generation": int(values["generation"]), "complete": values["complete"] == "True"}
    return Mark(**values)


def write_mark(server: Server, name: str, mark: Mark) -> None:
    """Writes the mark of a collection, and waits until the server returns this mark."""
    # Twice, as a restart of Milvus 2.3 loses the last change of properties (its issue 30144).
    for _ in range(2):
        server.call("alter_collection_properties", name, mark.properties())
    server.wait(lambda: read_mark(server, name), mark, "take over the state of the collection")


def check_belongs(mark: Mark, gallery: Gallery, server: Server, name: str) -> None:
    """Checks that a collection belongs to a gallery and its embedder, and has no newer state.

    Raises:
        EmbedderMismatch, GalleryError: the check fails.
    """
    where = server.place(name)
    push = f"lmk index push {shell_word(gallery.path)} --uri {shell_word(server.uri)} --collection"
    remedy = f"use another: `{push} NAME`; or replace it: `{push} {name} --replace`"
    if mark.gallery != gallery.created:
        what = f"it holds another gallery than {gallery.path}"
        raise GalleryError(what, where=where, remedy=remedy)
    if mark.fingerprint != gallery.fingerprint:
        what = f"it holds vectors of embedder {mark.fingerprint[:16]}, {gallery.path} those of"
        what += f" {gallery.fingerprint[:16]}"
        raise EmbedderMismatch(what, where=where, remedy=remedy)
    if mark.generation > gallery.generation:
        what = "it holds a newer state of the gallery than the one that was opened"
        remedy = f"open the gallery again; for an old copy of it: `{push} {name} --replace`"
        raise GalleryError(what, where=where, remedy=remedy)


def collection_name(path: Path, name: str | None = None) -> str:
    """Returns the name of a gallery's collection.

    Args:
        path: the gallery folder, whose name is used if `name` is None.
        name: the name that the user has chosen.

    Raises:
        UsageError: Milvus does not support the name.
    """
    if name is None:
        return "lmk_" + re.sub("[^A-Za-z0-9]+", "_", path.resolve().stem).strip("_")[:200]
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        remedy = "take letters, digits and _, a letter first"
        raise UsageError(f"{name!r} is no name for a Milvus collection", remedy=remedy)
    return name


def index_for(rows: int) -> IndexKind:
    """Returns the kind of index for a number of rows."""
    return "flat" if rows <= _FLAT_ROWS else "hnsw"


def search_effort(index: IndexKind, depth: int) -> dict[str, Any]:
    """Returns the parameters of a search for `depth` rows; the effort grows with the depth."""
    if index == "hnsw":
        return {"params": {"ef": max(_EFFORTS[index], 2 * depth)}}
    if index == "ivf_flat":
        return {"params": {"nprobe": min(_CELLS, max(_EFFORTS[index], depth))}}
    return {}


def create_collection(server: Server, name: str, dim: int, mark: Mark) -> None:
    """Creates an empty collection; `prepare_collection` must follow."""
    from pymilvus import DataType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    text: dict[str, Any] = {"element_type": DataType.VARCHAR, "max_length": _LONGEST}
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("id", DataType.VARCHAR, max_length=_LONGEST)
    schema.add_field("labels", DataType.ARRAY, max_capacity=_MOST_LABELS, **text)
    schema.add_field("role", DataType.VARCHAR, max_length=16)
    schema.add_field("stamp", DataType.INT64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    server.call("create_collection", name, schema=schema, properties=mark.properties())


def prepare_collection(server: Server, name: str, index: IndexKind) -> None:
    """Builds the index of a collection unless it exists, and loads the collection."""
    from pymilvus import MilvusClient

    if not server.call("list_indexes", name):
        params = MilvusClient.prepare_index_params()
        params.add_index("vector", metric_type="IP", **_BUILD[index])
        # Not synchronous, which would wait without a limit.
        server.call("create_index", name, params, sync=False)
    server.call("load_collection", name, patience=10)


def count_rows(server: Server, name: str) -> int:
    """Returns the number of rows of a collection after all changes made before the call."""
    fields = ["count(*)"]
    rows = server.call("query", name, output_fields=fields, consistency_level="Strong")
    return int(rows[0]["count(*)"])
