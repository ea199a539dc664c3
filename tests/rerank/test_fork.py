"""Indexes and searches from before a fork are refused in its child at once, and never hang."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmk.embed.data.manifest import read_manifest
from lmk.embed.errors import ForkedProcess
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery.writer import GalleryWriter
from lmk.rerank.indexing.build import build_index
from lmk.rerank.recognizer import Recognizer

SECONDS = 300  # for all children together, on a busy machine

# Prints one JSON line for each child: what it did, and what came of it.
SCRIPT = """
import faulthandler, json, multiprocessing, os, sys
from pathlib import Path

import numpy as np

from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.rerank.recognizer import Recognizer

index, photo = Path(sys.argv[1]), Path(sys.argv[2])
FORK = multiprocessing.get_context("fork")


def outcome(act):
    try:
        return str(act())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def child(name, act):
    def run():
        faulthandler.dump_traceback_later(120, exit=True)  # of a child that hangs
        send.send(outcome(act))

    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=run)
    process.start()
    send.close()
    try:
        told = receive.recv()
    except EOFError:
        told = "hung"
    process.join()
    print(json.dumps([name, told]), flush=True)


def ask(recognizer):
    return recognizer.query([photo])[0].labels


def anew():
    with Recognizer.open(index) as recognizer:
        return ask(recognizer)


recognizer = Recognizer.open(index)
child("opened before", lambda: ask(recognizer))
child("ids", lambda: recognizer.gallery.ids([0]))
child("opened in the child", anew)
writer = GalleryWriter(index)
writer.set("x", 1)
child("set", lambda: writer.set("x", 2))
child("close writer", writer.close)
child("close", recognizer.close)
embedder = Embedder.load(recognizer.gallery.embedder_dir)
child("embedder that has not run", lambda: len(embedder.embed([photo])[0]))
writer.commit()
waiting, go = FORK.Pipe(duplex=False)
sleeper = FORK.Process(target=waiting.recv)  # holds a copy of the lock
sleeper.start()
writer.close()
child("lock", lambda: GalleryWriter(index).close())
go.send(None)
sleeper.join()
print(json.dumps(["parent", str(ask(recognizer))]), flush=True)
child("after a query", lambda: ask(recognizer))
child("opened in the child after a query", anew)
child("embedder after a query", lambda: len(embedder.embed([photo])[0]))
child("search after a query", lambda: recognizer.searcher.search(
    recognizer.gallery.embeddings("gallery"), 1))


class Photos:
    def __len__(self):
        return 2

    def __getitem__(self, item):
        return ask(recognizer)


from torch.utils.data import DataLoader

loader = DataLoader(Photos(), num_workers=1, multiprocessing_context=FORK, timeout=120)
print(json.dumps(["DataLoader", outcome(lambda: list(loader))]), flush=True)
print(json.dumps(["parent again", str(ask(recognizer))]), flush=True)
with Gallery.open(index) as gallery:
    print(json.dumps(["kept", str(gallery.setting("x"))]), flush=True)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny: Embedder) -> dict[str, str]:
    index = tmp_path_factory.mktemp("fork") / "g.lmk"
    build_index(read_manifest(photos / "gallery"), index, tiny)
    photo = photos / "gallery" / "place_2" / "1.jpg"
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, index, photo],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opened before", "ids", "set", "after a query"])
def test_what_was_opened_before_the_fork_is_refused(told: dict[str, str], name: str) -> None:
    assert told[name].startswith("ForkedProcess: ")
    assert "was opened in process" in told[name] and "of which this one is a fork" in told[name]
    assert "open the index in each worker" in told[name] and "spawn" in told[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["opened in the child after a query", "embedder after a query", "search after a query"]
)
def test_what_needs_the_threads_of_the_parent_is_refused(told: dict[str, str], name: str) -> None:
    assert told[name].startswith("ForkedProcess: ")
    assert "spawn" in told[name]


@pytest.mark.slow
def test_a_data_loader_says_why(told: dict[str, str]) -> None:
    assert told["DataLoader"].startswith("ForkedProcess: ")
    assert "of which this one is a fork" in told["DataLoader"]


@pytest.mark.slow
def test_the_child_may_open_an_index_of_its_own(told: dict[str, str]) -> None:
    assert told["opened in the child"] == "('place_2',)"
    assert told["embedder that has not run"] == "1"


@pytest.mark.slow
def test_the_parent_goes_on(told: dict[str, str]) -> None:
    """Children that close what they inherited undo nothing, end no log and hold no lock."""
    assert told["close"] == told["close writer"] == told["lock"] == "None"
    assert told["parent"] == told["parent again"] == "('place_2',)"
    assert told["kept"] == "1"


def test_the_process_is_told_by_its_id(
    tmp_path: Path, photos: Path, tiny: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a fork, without one: whatever is opened belongs to the process that opened it."""
    index, photo = tmp_path / "g.lmk", photos / "gallery" / "place_2" / "1.jpg"
    build_index(read_manifest(photos / "gallery"), index, tiny)
    with Recognizer.open(index) as recognizer, GalleryWriter(index) as writer:
        vectors = recognizer.gallery.embeddings("gallery")
        writer.set("x", 1)
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: 1)
            for act in (
                lambda: recognizer.query(photo),
                lambda: recognizer.predict(vectors),
                lambda: recognizer.searcher,
                lambda: recognizer.gallery.find(["a"]),
                lambda: writer.set("x", 2),
                writer.commit,
                lambda: tiny.embed(photo),
                lambda: Recognizer.open(index).query(photo),
            ):
                with pytest.raises(ForkedProcess, match="spawn"):
                    act()
        writer.commit()
    with Recognizer.open(index) as recognizer:
        assert recognizer.gallery.setting("x") == 1
        assert recognizer.query(photo)[0].labels == ("place_2",)
