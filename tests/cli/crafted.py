"""Indexes as somebody with bad intentions would make them: a table of named crafts.

Each takes the folder of an index, which lies beside a folder `victim` that nothing may touch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

Craft = Callable[[Path], object]


def one(index: Path, pattern: str) -> Path:
    return sorted(index.glob(pattern))[0]


def link(name: str, target: str) -> Craft:
    """A link in the place of what is there; `name` is a pattern."""

    def act(index: Path) -> None:
        path = one(index, name) if "*" in name else index / name
        kept = path.with_name(f"{path.name}.kept")
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            shutil.copy(path, index.parent / "victim" / "same")
            path.unlink()
        kept.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(index.parent / target, path.parent))

    return act


def special(name: str, kind: str = "fifo") -> Craft:
    """A pipe, a socket or a device in the place of what is there."""

    def act(index: Path) -> None:
        path = one(index, name) if "*" in name else index / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            here = Path.cwd()
            os.chdir(path.parent)  # an address is at most 108 bytes long
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
            os.chdir(here)

    return act


def sql(*statements: str) -> Craft:
    """Statements run on the catalog, with its schema writable."""

    def act(index: Path) -> None:
        connection = sqlite3.connect(index / "catalog.db", isolation_level=None)
        connection.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            connection.execute(statement)
        connection.close()
        for beside in ("-wal", "-shm"):
            (index / f"catalog.db{beside}").unlink(missing_ok=True)

    return act


def crc(*values: Any) -> int:
    """The checksum that the catalog keeps with an entry."""
    return zlib.crc32(repr(values).encode())


def meta(name: str, change: Callable[[Any], Any] | str) -> Craft:
    """Another value under a name of the table meta, with the checksum that fits."""

    def act(index: Path) -> None:
        connection = sqlite3.connect(index / "catalog.db", isolation_level=None)
        found = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if isinstance(change, str):
            text = change
        else:
            text = json.dumps(change(None if found is None else json.loads(found[0])))
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, text, crc(name, text))
        )
        connection.close()

    return act


def state(**values: Any) -> Craft:
    """Other values in the state."""
    return meta("state", lambda old: old | values)


def row(table: str, column: str, value: Any, where: str = "1") -> Craft:
    """Another value in a column, in all rows that `where` names, with the checksums that fit."""

    def act(index: Path) -> None:
        connection = sqlite3.connect(index / "catalog.db", isolation_level=None)
        names = [info[1] for info in connection.execute(f"PRAGMA table_info({table})")]
        at = names.index(column)
        for old in connection.execute(f"SELECT * FROM {table} WHERE {where}").fetchall():
            new = list(old)
            new[at] = value(old[at]) if callable(value) else value
            if names[-1] == "crc":
                new[-1] = crc(*new[:-1])
            same = " AND ".join(f"{name} IS ?" for name in names)
            changed = ", ".join(f"{name} = ?" for name in names)
            connection.execute(
                f"UPDATE OR REPLACE {table} SET {changed} WHERE {same}", [*new, *old]
            )
        connection.close()

    return act


def file(pattern: str, change: Callable[[bytes], bytes]) -> Craft:
    """Another content of a file that the catalog names, with the size and checksum that fit."""

    def act(index: Path) -> None:
        path = one(index, pattern)
        content = change(path.read_bytes())
        path.write_bytes(content)
        connection = sqlite3.connect(index / "catalog.db", isolation_level=None)
        digest = hashlib.sha256(content).hexdigest()
        connection.execute(
            "UPDATE file SET size = ?, sha256 = ? WHERE path = ?",
            (len(content), digest, path.relative_to(index).as_posix()),
        )
        connection.close()

    return act


def bomb(index: Path) -> None:
    """Pages of a table that point to the same page again and again: rows without end."""
    connection = sqlite3.connect(index / "catalog.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE").fetchall()
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    (root,) = connection.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'skipped'"
    ).fetchone()
    insert = "INSERT INTO skipped VALUES (?, 'cut', ?)"
    connection.executemany(insert, [(f"{i}.jpg", crc(f"{i}.jpg", "cut")) for i in range(400)])
    connection.close()
    data = bytearray((index / "catalog.db").read_bytes())
    page = data[(root - 1) * size : root * size]
    assert page[0] in (2, 10)
    leaf, last = int.from_bytes(page[8:12], "big"), len(data) // size
    cells = int.from_bytes(page[3:5], "big")
    assert page[0] == 2 and cells > 1
    for level in range(12):  # each level points to the one below by every cell
        child = leaf if level == 0 else last + level
        copy = bytearray(page)
        for cell in range(cells):
            at = int.from_bytes(copy[12 + 2 * cell : 14 + 2 * cell], "big")
            copy[at : at + 4] = child.to_bytes(4, "big")
        copy[8:12] = child.to_bytes(4, "big")
        data += copy
    data[(root - 1) * size : root * size] = data[-size:]
    data[28:32] = (len(data) // size).to_bytes(4, "big")
    (index / "catalog.db").write_bytes(data)


def journal(index: Path) -> None:
    """A rollback journal that names a super-journal, which SQLite reads and deletes."""
    victim = os.fsencode(index.parent / "victim" / "kept.txt")
    magic = bytes.fromhex("d9d505f920a163d7")
    header = magic + (0).to_bytes(4, "big") + bytes(4) + (13).to_bytes(4, "big")
    header += (512).to_bytes(4, "big") + (4096).to_bytes(4, "big")
    name = (0).to_bytes(4, "big") + victim + len(victim).to_bytes(4, "big")
    name += (sum(victim) & 0xFFFFFFFF).to_bytes(4, "big") + magic
    (index / "catalog.db-journal").write_bytes(header.ljust(512, b"\0") + name)


VIEW = (
    "CREATE VIEW {0} AS WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t)"
    " SELECT a AS {1}, a AS {2}, a AS crc FROM t"
)
DEEP = "[" * 100_000 + "]" * 100_000

LINKS: dict[str, Craft] = {
    **{
        f"{name} is a link to a folder": link(name, "victim")
        for name in ("cache", "cache/search", "cache/features", "cache/local", "cache/photos")
    },
    **{
        f"{name} is a link to a folder": link(name, "victim/other.lmk/" + name)
        for name in ("segments", "arrays", "embedder")
    },
    "the embedder's folder is a link": link("embedder/*", "victim/other.lmk/embedder/here"),
    "the features' folder is a link": link("cache/features/*[0-9a-f]", "victim"),
    "the lock is a link": link(".lock", "victim/kept.txt"),
    "the lock is a hard link": lambda index: (
        (index / ".lock").unlink(missing_ok=True),
        (index / ".lock").hardlink_to(index.parent / "victim" / "kept.txt"),
    ),
    "the lock is a dangling link": link(".lock", "victim/new"),
    "the catalog is a link": link("catalog.db", "victim/other.lmk/catalog.db"),
    "the catalog's log is a link": link("catalog.db-wal", "victim/kept.txt"),
    "the catalog's log is a dangling link": link("catalog.db-wal", "victim/new"),
    "the catalog's shared memory is a link": link("catalog.db-shm", "victim/new"),
    "the catalog's journal is a link": link("catalog.db-journal", "victim/kept.txt"),
    "the journal names another file": journal,
    "an array is a link": link("arrays/*", "victim/same"),
    "a file of the embedder is a link": link("embedder/*/config.json", "victim/same"),
    "the graph is a link": link("embedder/*/graph.xml", "victim/same"),
    "a new file of the embedder is a link": lambda index: (
        one(index, "embedder/*/config.json").with_name("tags.safetensors")
    ).symlink_to(index.parent / "victim" / "kept.txt"),
    "kept features are a link": link("cache/features/*/*.safetensors", "victim/same"),
    "the note of compared files is a link": link("cache/files.json", "victim/kept.txt"),
    "a derived file is a link": link("cache/search/codes", "victim/kept.txt"),
    "a loop of links": link("cache/search", "sample.lmk/cache/search"),
}
SPECIAL: dict[str, Craft] = {
    **{
        f"a pipe as {name}": special(name)
        for name in (
            "catalog.db",
            "catalog.db-wal",
            "catalog.db-journal",
            ".lock",
            "segments",
            "cache",
            "cache/files.json",
            "cache/search/codes.note",
            "arrays/*",
            "embedder/*/config.json",
            "embedder/*/graph.bin",
            "cache/features/*/*.safetensors",
            "cache/features/0123456789abcdef.index",
        )
    },
    "a socket as an array": special("arrays/*", "socket"),
    "a socket as the lock": special(".lock", "socket"),
    "a device as the catalog": special("catalog.db", "device"),
    "a device as the lock": special(".lock", "device"),
    "folders without end": lambda index: (index / "cache" / "/".join(["a"] * 600)).mkdir(
        parents=True
    ),
}
SCHEMA: dict[str, Craft] = {
    "a trigger that deletes": sql(
        "CREATE TRIGGER t AFTER DELETE ON picture BEGIN DELETE FROM picture; END"
    ),
    "a trigger on the settings": sql(
        "CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM picture; END"
    ),
    "a view that never ends": sql("DROP TABLE skipped", VIEW.format("skipped", "path", "reason")),
    "a view in the place of the settings": sql(
        "DROP TABLE meta", VIEW.format("meta", "name", "value")
    ),
    "an index too many": sql("CREATE INDEX more ON picture (path)"),
    "a table too many": sql("CREATE TABLE more (a)"),
    "a virtual table": sql("CREATE VIRTUAL TABLE more USING fts5(a)"),
    "statistics": sql("ANALYZE"),
    "a generated column": sql(
        "ALTER TABLE label ADD COLUMN more AS (hex(zeroblob(100000000)) || code)"
    ),
    "a default that runs code": sql(
        "UPDATE sqlite_schema SET sql = replace(sql, 'reason TEXT NOT NULL',"
        " 'reason TEXT NOT NULL DEFAULT (randomblob(9))') WHERE name = 'skipped'"
    ),
    "pages that point to each other": bomb,
}
PATHS: dict[str, Craft] = {
    "a fingerprint that leaves the index": state(fingerprint="../victim/here"),
    "a file that leaves the index": row("file", "path", "../victim/kept.txt", "path LIKE 'arr%'"),
    "an absolute file": row("file", "path", "/etc/passwd", "path LIKE 'arr%'"),
    "a segment that leaves the index": sql(
        "INSERT INTO segment VALUES (0, 1, '../victim/kept.txt')"
    ),
    "pictures with absolute paths": row("picture", "path", "/etc/hostname"),
    "pictures whose paths leave their folder": row("picture", "path", "../victim/private.jpg"),
    "pictures with a NUL in their path": row("picture", "path", lambda old: f"{old}\0"),
}
VALUES: dict[str, Craft] = {
    "no state": meta("state", "null"),
    "a state that is no JSON": meta("state", "{"),
    "a state nested too deep": meta("state", DEEP),
    "a setting nested too deep": meta("setting:pipeline", DEEP),
    "a negative number of rows": state(rows=-1),
    "a huge number of rows": state(rows=10**15),
    "a vector of no components": state(dim=0),
    "a vector of endless components": state(dim=10**12),
    "a dimension that is NaN": meta("state", lambda old: old | {"dim": float("nan")}),
    "a date that is none": state(created="soon"),
    "a pipeline of another type": meta("setting:pipeline", "7"),
    "a pipeline with endless candidates": meta(
        "setting:pipeline", lambda old: (old or {}) | {"candidates": 10**12}
    ),
    "a background that is no number": meta("setting:background", '"x"'),
    "a calibration of another type": meta("setting:calibration", "[]"),
    "a search of another type": meta("setting:search", "[1]"),
    "an array without a shape": meta("array:penalty", "{}"),
    "an array of objects": meta("array:penalty", lambda old: old | {"dtype": "|O"}),
    "an array of another shape": meta("array:penalty", lambda old: old | {"shape": [10**9]}),
    "an array of another file": meta("array:penalty", lambda old: old | {"file": "catalog.db"}),
    "a picture's size is a text": row("picture", "size", "large"),
    "a picture's folder there is not": row("picture", "root", 99),
    "a picture's id is a blob": row("picture", "id", lambda old: old.encode()),
    "a picture's checksum is no checksum": row("picture", "sha256", "x"),
    "a picture's labels there are not": row("picture", "labels", "77,"),
    "a label that is a number": row("label", "text", 5.5, "code = 0"),
    "a folder that is a blob": row("root", "text", b"\xff\0", "code = 0"),
    "a size of a file that is negative": row("file", "size", -5, "path LIKE 'arr%'"),
    "a batch of endless rows": row("batch", "rows", 2**62, "first_row = 0"),
    "an embedder of endless pixels": file(
        "embedder/*/config.json", lambda data: data.replace(b'"size": 64', b'"size": 64000000')
    ),
    "an embedder from a hub": file(
        "embedder/*/config.json",
        lambda data: data.replace(b'"backbone": "', b'"backbone": "hf-hub:x/'),
    ),
    "an embedder's settings nested too deep": file(
        "embedder/*/config.json", lambda data: DEEP.encode()
    ),
    "a graph that is none": file("embedder/*/graph.xml", lambda data: b"<net/>"),
}
CRAFTS = {**LINKS, **SPECIAL, **SCHEMA, **PATHS, **VALUES}
