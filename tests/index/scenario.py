"""Pictures with known vectors, galleries made of them, and writers that are stopped on purpose.

Tests get this module as the fixture `scenario`; it is also run in processes of its own:
    scenario.py steps FOLDER ACT      kill the writer at each of its steps in turn
    scenario.py lost FOLDER ACT       the same, and what was not synced is lost
    scenario.py changes FOLDER        change it (Plan), print each commit, until killed
    scenario.py rebuilds FOLDER       rebuild with two embedders in turn, until killed
    scenario.py rewrites FOLDER N     rebuild with two embedders in turn, N times
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.index.catalog.records import Picture
from lmk.index.gallery import transaction
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.merge import merge
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter

A, B = "a" * 64, "b" * 64  # fingerprints of two embedders
DIMS = {A: 8, B: 6}


def labels_of(number: int) -> tuple[str, ...]:
    """None, one or two labels, names that are not in order."""
    if number % 4 == 3:
        return ()
    names = (f"landmark {(number * 7) % 10}", f"city {number % 3}")
    return names if number % 5 == 0 else names[:1]


def vector_of(number: int, fingerprint: str = A) -> np.ndarray:
    rng = np.random.default_rng([number, ord(fingerprint[0])])
    return unit_rows(rng.standard_normal((1, DIMS[fingerprint])))[0]


def picture(number: int) -> Picture:
    digest = hashlib.sha256(b"%d" % number).hexdigest()
    name = f"{number:05d}.jpg"
    return Picture(
        name, labels_of(number), "/photos", f"in/{name}", digest, number, 10**18 + number
    )


def batch(numbers: Iterable[int], fingerprint: str = A) -> tuple[Embeddings, list[Picture]]:
    numbers = list(numbers)
    pictures = [picture(number) for number in numbers]
    vectors = np.array([vector_of(number, fingerprint) for number in numbers], np.float32)
    vectors = vectors.reshape(len(numbers), DIMS[fingerprint])
    return Embeddings(vectors, tuple(p.id for p in pictures), fingerprint), pictures


def save_embedder(folder: Path) -> None:
    (folder / "config.json").write_text('{"backbone": "none"}')
    (folder / "weights").mkdir()
    (folder / "weights" / "w.bin").write_bytes(bytes(range(100)))


@contextlib.contextmanager
def committing(path: Path, **options: Any) -> Iterator[GalleryWriter]:
    """Opens a writer, and commits at the end of the block."""
    with GalleryWriter(path, **options) as writer:
        yield writer
        writer.commit()


def rebuild(path: Path, fingerprint: str = A, count: int = 6) -> None:
    """Builds a whole gallery in one commit, or replaces the one that is there."""
    with committing(path, create=True) as writer:
        writer.reset(fingerprint, DIMS[fingerprint])
        writer.install_embedder(save_embedder)
        writer.append(*batch(range(count), fingerprint))
        writer.append(*batch(range(1000, 1002), fingerprint), role="distractor")
        writer.put_array("penalty", np.arange(count, dtype=np.float32))
        writer.skip("broken.jpg", "cut short")
        writer.set("pipeline", {"k": count})


def grow(path: Path) -> None:
    """Adds pictures in two commits, the second of which folds the first into a segment."""
    with committing(path) as writer:
        writer.append(*batch(range(100, 102)))
        writer.commit()
        writer.append(*batch(range(102, 105)))
        writer.set("pipeline", {"k": 9})


def changed(number: int) -> tuple[Embeddings, list[Picture]]:
    """The picture of that number with another content."""
    _, (old,) = batch([number])
    vector = vector_of(number + 50_000)[None]
    return Embeddings(vector, (old.id,), A), [replace(old, sha256="c" * 64, labels=("new",))]


def sync(path: Path) -> None:
    """Removes pictures, replaces one and adds some, in one commit."""
    with committing(path) as writer:
        writer.remove(writer.uncommitted.find(["00000.jpg", "01000.jpg"]))
        row = writer.uncommitted.find(["00001.jpg"])["00001.jpg"]
        new = changed(1)
        if writer.uncommitted.pictures([row]) != new[1]:
            writer.remove(["00001.jpg"])
            writer.append(*new)
        writer.append(*batch(range(300, 305)))
        rows = writer.uncommitted.rows
        writer.put_array("penalty", np.arange(rows, dtype=np.float32), by_row=True)


def compact(path: Path) -> None:
    """Removes pictures and compacts, in one commit."""
    with committing(path) as writer:
        writer.remove(writer.uncommitted.find(["00002.jpg", "01001.jpg"]))
        writer.compact()


def mend(path: Path) -> None:
    """Replaces the vectors of some rows."""
    with committing(path) as writer:
        rows = [0, 3, 7]
        writer.replace_vectors(rows, np.array([vector_of(90_000 + row) for row in rows]))


def describe(path: Path) -> None:
    """Sets details of landmarks in two commits, the second of which replaces the first's."""
    names = [f"landmark {number}" for number in range(10)]
    with GalleryWriter(path) as writer:
        writer.set_landmarks(LandmarkDetails(name, f"First {name}") for name in names[:6])
        writer.commit()
        writer.set_landmarks(LandmarkDetails(name, name.title(), 1.5, 2.5) for name in names[3:])
        writer.commit()


def join(path: Path) -> None:
    """Makes the gallery anew of two others."""
    others = [path.with_name(f"{path.name}.{i}") for i in range(2)]
    for i, other in enumerate(others):
        if not other.exists():
            rebuild(other, A, 5 + 2 * i)
    merge(path, others)


ACTS: dict[str, Callable[[Path], None]] = {
    "grow": grow,
    "rebuild": lambda path: rebuild(path, B, 5),
    "sync": sync,
    "compact": compact,
    "mend": mend,
    "merge": join,
    "describe": describe,
}


def answers(gallery: Gallery) -> dict[str, Any]:
    """Everything a gallery can be asked, but when it was written and its generation."""
    rows = np.flatnonzero(gallery.alive)
    penalty = gallery.array("penalty")
    return {
        "fingerprint": gallery.fingerprint,
        "alive": gallery.alive.tolist(),
        "vectors": gallery.vectors(rows).tobytes(),
        "pictures": gallery.pictures(rows),
        "ids": gallery.ids(rows),
        "distractors": gallery.role_rows("distractor").tolist(),
        "names": gallery.label_names,
        "labels": (gallery.label_offsets.tolist(), gallery.label_codes.tolist()),
        "skipped": gallery.skipped(),
        "pipeline": gallery.setting("pipeline"),
        "penalty": None if penalty is None else penalty.tolist(),
        "details": [asdict(details) for details in gallery.all_details()],
    }


def answers_at(path: Path) -> dict[str, Any]:
    with Gallery.open(path) as gallery:
        files = sorted(gallery.embedder_dir.rglob("*.*")) if gallery.embedder_dir.exists() else []
        embedder = [(file.name, file.read_bytes()) for file in files]
        return {**answers(gallery), "embedder": embedder}


@contextlib.contextmanager
def small_segments(inline: int = 4, small: int = 12, many: int = 3) -> Iterator[None]:
    """Makes the writer's sizes small enough that a few pictures reach all its paths."""
    with (
        mock.patch.object(transaction, "INLINE_ROWS", inline),
        mock.patch.object(transaction, "SMALL_SEGMENT_ROWS", small),
        mock.patch.object(transaction, "SMALL_SEGMENTS", many),
    ):
        yield


class Steps:
    """Counts what a writer does to the disk and calls `fault` before or after step `stop`."""

    def __init__(self, stop: int, fault: Callable[[str], None], *, after: bool) -> None:
        self.stop, self.fault, self.after = stop, fault, after
        self.taken = 0

    def step(self, kind: str, act: Callable[[], Any]) -> Any:
        self.taken += 1
        if self.taken != self.stop:
            return act()
        if self.after:
            act()
        return self.fault(kind)

    @contextlib.contextmanager
    def watch(self, *, removals: bool = False) -> Iterator[None]:
        """Counts within the block; with `removals` also each file and folder that is removed."""
        steps = self
        removing = ("os.unlink", "os.rmdir") if removals else ()

        def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **options: steps.step("file", lambda: real(*args, **options))

        class Connection(sqlite3.Connection):
            def execute(self, *args: Any) -> Any:
                return steps.step("sqlite", lambda: super(Connection, self).execute(*args))

            def executemany(self, *args: Any) -> Any:
                return steps.step("sqlite", lambda: super(Connection, self).executemany(*args))

        real_connect = sqlite3.connect

        def connect(address: str, **options: Any) -> sqlite3.Connection:
            if "mode=rwc" in address:  # the writer's, not a reader's
                options["factory"] = Connection
            return real_connect(address, **options)

        with (
            contextlib.ExitStack() as stack,
            mock.patch("os.fsync", wrapped(os.fsync)),
            mock.patch("os.rename", wrapped(os.rename)),
            mock.patch("os.replace", wrapped(os.replace)),
            mock.patch("os.mkdir", wrapped(os.mkdir)),
            mock.patch("lmk.index.catalog.database.sqlite3.connect", connect),
        ):
            for name in removing:
                stack.enter_context(mock.patch(name, wrapped(getattr(os, name[3:]))))
            yield


class Unsynced:
    """Knows what of a folder would be left after a power cut, apart from SQLite's own files.

    A name is kept once its folder was synced, a content once its file was. The log is written by
    the process that will be killed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.log = path, path.with_name("synced.log")
        self.log.write_text("")
        self.contents = {self._version(file) for file in self._files()}
        self.names = {self._name(item) for item in path.rglob("*")}

    def watch(self) -> Any:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            real(descriptor)
            with self.log.open("a") as log:
                here = Path(f"/proc/self/fd/{descriptor}").readlink()
                if here.is_dir():
                    lines = [["name", *self._name(item)] for item in here.iterdir()]
                else:
                    lines = [["content", *self._version(here)]]
                log.writelines(f"{json.dumps(line)}\n" for line in lines)

        return mock.patch("os.fsync", fsync)

    def lose(self) -> int:
        """Drops what was not synced; returns how much that was."""
        for line in self.log.read_text().splitlines():
            kind, *values = json.loads(line)
            (self.names if kind == "name" else self.contents).add(tuple(values))
        lost = 0
        for item in sorted(self.path.rglob("*")):
            if item.name.startswith("catalog.db") or item.name == ".lock" or not item.exists():
                continue
            if self._name(item) not in self.names:
                lost += 1
                shutil.rmtree(item) if item.is_dir() else item.unlink()
            elif item.is_file() and self._version(item) not in self.contents:
                lost += 1
                os.truncate(item, 0)
        return lost

    def _files(self) -> list[Path]:
        return [item for item in self.path.rglob("*") if item.is_file()]

    @staticmethod
    def _name(item: Path) -> tuple[str, int]:
        return str(item), item.stat().st_ino

    @staticmethod
    def _version(file: Path) -> tuple[int, int, int]:
        found = file.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns


def _kill_at_each_step(path: Path, act: Callable[[Path], None], *, lose: bool) -> None:
    """Prints one JSON line per step: did the process end there, the state it left, what was lost.

    The third state is the one after the act is done again, and None where verify finds something.
    """
    for stop in range(1, 1000):
        shutil.rmtree(path)
        with small_segments():
            rebuild(path, A)
            unsynced = Unsynced(path)
            child = os.fork()
            if child == 0:
                steps = Steps(stop, lambda _: os.kill(os.getpid(), signal.SIGKILL), after=False)
                with unsynced.watch() if lose else contextlib.nullcontext(), steps.watch():
                    act(path)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
            lost = unsynced.lose() if lose else 0
            left = answers_at(path)
            whole = not verify(path)
            act(path)
            finished = answers_at(path)
        digests = [digest(left) if whole else None, digest(finished)]
        print(json.dumps([killed, *digests, lost]), flush=True)
        if not killed:
            return


def digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()


class Plan:
    """A gallery after a number of known changes, as a list.

    Attributes:
        rows: by row: (number of the picture, version of its content, of its vector), None where
            it was removed.
        done: changes made.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int] | None] = []
        self.done = 0

    @classmethod
    def after(cls, changes: int) -> Plan:
        plan = cls()
        while plan.done < changes:
            plan.step()
        return plan

    @staticmethod
    def batch(entries: list[tuple[int, int, int]]) -> tuple[Embeddings, list[Picture]]:
        pictures = []
        for number, content, _ in entries:
            sha256 = hashlib.sha256(b"%d %d" % (number, content)).hexdigest()
            pictures.append(replace(picture(number), sha256=sha256))
        vectors = [vector_of(number + 10**6 * version) for number, _, version in entries]
        array = np.array(vectors, np.float32).reshape(-1, 8)
        return Embeddings(array, tuple(p.id for p in pictures), A), pictures

    def step(self, writer: GalleryWriter | None = None) -> None:
        """Makes the next change of the list, and of a gallery."""
        rng = random.Random(self.done)
        here = [row for row, entry in enumerate(self.rows) if entry is not None]
        some = sorted(rng.sample(here, min(len(here), 2)))
        entries = [self.rows[row] for row in some]
        kind = rng.choice(["add", "add", "remove", "compact", "mend", "sync"])
        added = [(3 * self.done + i, 0, 0) for i in range(3)] if kind in ("add", "sync") else []
        if kind == "sync":
            added += [(number, content + 1, version + 1) for number, content, version in entries]
        if kind in ("remove", "sync"):
            if writer:
                writer.remove([picture(entry[0]).id for entry in entries])
            for row in some:
                self.rows[row] = None
        if writer:
            writer.append(*self.batch(added))
        self.rows += added
        if kind == "mend":
            for row, (number, content, version) in zip(some, entries, strict=True):
                self.rows[row] = (number, content, version + 1)
            if writer and some:
                vectors = self.batch([self.rows[row] for row in some])[0].vectors
                writer.replace_vectors(some, vectors)
        if kind == "compact":
            if writer:
                writer.compact()
            self.rows = [entry for entry in self.rows if entry is not None]
        self.done += 1
        if writer:
            writer.set("done", self.done)


def main(mode: str, folder: str, act: str = "") -> None:
    path = Path(folder)
    if mode in ("steps", "lost"):
        _kill_at_each_step(path, ACTS[act], lose=mode == "lost")
    elif mode == "changes":
        with small_segments(inline=10, small=40, many=4), GalleryWriter(path) as writer:
            with writer.gallery() as gallery:
                plan = Plan.after(gallery.setting("done") or 0)
            while True:
                plan.step(writer)
                writer.commit()
                print(plan.done, flush=True)
    elif mode == "rebuilds":
        with small_segments():
            while True:
                rebuild(path, B, 30)
                rebuild(path, A, 20)
                print("both", flush=True)
    elif mode == "rewrites":
        with small_segments():
            for i in range(int(act)):
                rebuild(path, *((A, 20) if i % 2 else (B, 30)))


if __name__ == "__main__":
    main(*sys.argv[1:])
