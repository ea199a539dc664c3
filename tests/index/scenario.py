"""Pictures with known vectors, galleries made of them, and writers that are stopped on purpose.

Tests get this module as the fixture `scenario`; it is also run in processes of its own:
    scenario.py steps FOLDER grow|rebuild    kill the writer at each of its steps in turn
    scenario.py adds FOLDER                  add 3 pictures per commit, print each, until killed
    scenario.py rebuilds FOLDER              rebuild with two embedders in turn, until killed
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index import transaction
from lmk.index.catalog import Picture
from lmk.index.gallery import Gallery
from lmk.index.writer import GalleryWriter

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


def rebuild(path: Path, fingerprint: str = A, count: int = 6) -> None:
    """Builds a whole gallery in one commit, or replaces the one that is there."""
    with GalleryWriter(path, create=True) as writer:
        writer.reset(fingerprint, DIMS[fingerprint])
        writer.install_embedder(save_embedder)
        writer.append(*batch(range(count), fingerprint))
        writer.append(*batch(range(1000, 1002), fingerprint), role="distractor")
        writer.put_array("penalty", np.arange(count, dtype=np.float32))
        writer.skip("broken.jpg", "cut short")
        writer.set("pipeline", {"k": count})
        writer.commit()


def grow(path: Path) -> None:
    """Adds pictures in two commits, the second of which folds the first into a segment."""
    with GalleryWriter(path) as writer:
        writer.append(*batch(range(100, 102)))
        writer.commit()
        writer.append(*batch(range(102, 105)))
        writer.set("pipeline", {"k": 9})
        writer.commit()


def answers(gallery: Gallery) -> dict[str, Any]:
    """Everything a gallery can be asked, but when it was written and its generation."""
    rows = np.arange(gallery.rows)
    penalty = gallery.array("penalty")
    return {
        "fingerprint": gallery.fingerprint,
        "vectors": gallery.vectors(rows).tobytes(),
        "pictures": gallery.pictures(rows),
        "ids": gallery.ids(rows),
        "distractors": gallery.role_rows("distractor").tolist(),
        "names": gallery.label_names,
        "labels": (gallery.label_offsets.tolist(), gallery.label_codes.tolist()),
        "skipped": gallery.skipped(),
        "pipeline": gallery.setting("pipeline"),
        "penalty": None if penalty is None else penalty.tolist(),
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
    def watch(self) -> Iterator[None]:
        steps = self

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
            mock.patch("os.fsync", wrapped(os.fsync)),
            mock.patch("os.rename", wrapped(os.rename)),
            mock.patch("os.replace", wrapped(os.replace)),
            mock.patch("os.mkdir", wrapped(os.mkdir)),
            mock.patch("lmk.index.database.sqlite3.connect", connect),
        ):
            yield


def _kill_at_each_step(path: Path, act: Callable[[Path], None]) -> None:
    """Prints one JSON line per step: did the process end there, and the state it left."""
    import shutil

    for stop in range(1, 1000):
        shutil.rmtree(path)
        with small_segments():
            rebuild(path, A)
            child = os.fork()
            if child == 0:
                steps = Steps(stop, lambda _: os.kill(os.getpid(), signal.SIGKILL), after=False)
                with steps.watch():
                    act(path)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
            left = answers_at(path)
            act(path)
            finished = answers_at(path)
        digests = [hashlib.sha256(repr(state).encode()).hexdigest() for state in (left, finished)]
        print(json.dumps([killed, *digests]), flush=True)
        if not killed:
            return


def digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()


def main(mode: str, folder: str, act: str = "") -> None:
    path = Path(folder)
    if mode == "steps":
        _kill_at_each_step(path, {"grow": grow, "rebuild": lambda p: rebuild(p, B, 5)}[act])
    elif mode == "adds":
        with small_segments(inline=10, small=40, many=4), GalleryWriter(path) as writer:
            for first in range(0, 10**6, 3):
                writer.append(*batch(range(first, first + 3)))
                writer.commit()
                print(first + 3, flush=True)
    elif mode == "rebuilds":
        with small_segments():
            while True:
                rebuild(path, B, 30)
                rebuild(path, A, 20)
                print("both", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
