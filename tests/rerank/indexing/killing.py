"""Builds and adds that are killed at random moments; run in a process of its own by test_kill.py.

    killing.py rebuild|add|sync|remove|relabel|rename|compact|repair FOLDER SEED ROUNDS
                                                 prints one JSON object a round

FOLDER holds: old.lmk, a (embedder of it), b (another one), gallery, more, mixed, bank, asked.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmk.embed.data.manifest import read_manifest
from lmk.embed.errors import LmkError
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery.gallery import Gallery
from lmk.rerank.indexing.build import add_pictures, build_index, compact_index, remove_pictures
from lmk.rerank.indexing.relabel import relabel_pictures, rename_label
from lmk.rerank.indexing.repair import repair_index
from lmk.rerank.indexing.sync import sync_index
from lmk.rerank.recognizer import Recognizer

# Children start with everything imported, and nothing of OpenVINO, FAISS or torch started.
FORK = multiprocessing.get_context("fork")


def rebuild(folder: Path, index: Path) -> int:
    embedder = Embedder.load(folder / "b")
    bank = read_manifest(folder / "bank")
    return build_index(read_manifest(folder / "more"), index, embedder, distractors=bank).computed


def add(folder: Path, index: Path) -> int:
    return add_pictures(index, read_manifest(folder / "more")).computed


def sync(folder: Path, index: Path) -> int:
    """`mixed` has half of the gallery, some of it moved or changed, and `more`."""
    bank = read_manifest(folder / "bank")
    manifest = read_manifest(folder / "mixed")
    return sync_index(index, manifest, distractors=bank, allow_removals=True).computed


def remove(folder: Path, index: Path) -> int:
    gone = [row.id for row in read_manifest(folder / "gallery").rows[::2]]
    with Gallery.open(index) as gallery:
        known = gallery.find(gone)  # of a round that was killed too late
    remove_pictures(index, list(known))
    return 0


def relabel(folder: Path, index: Path) -> int:
    """Half of the gallery becomes one landmark."""
    rows = read_manifest(folder / "gallery").rows[::2]
    relabel_pictures(index, {row.id: ("castle",) for row in rows})
    return 0


def rename(folder: Path, index: Path) -> int:
    rename_label(index, "place_1", "castle")
    return 0


def compact(folder: Path, index: Path) -> int:
    compact_index(index)
    return 0


def repair(folder: Path, index: Path) -> int:
    return repair_index(index).reembedded


def answers(folder: Path, index: Path) -> object:
    """What the index says of some pictures, and what it holds; or the error."""
    try:
        with Recognizer.open(index) as recognizer:
            predictions, _ = recognizer.query(sorted((folder / "asked").iterdir()))
            gallery = recognizer.gallery
            ids = gallery.ids(np.flatnonzero(gallery.alive))
            sure = [round(float(value), 3) for value in predictions.confidence]
            return [gallery.fingerprint, len(ids), sorted(ids), predictions.labels, sure]
    except LmkError as error:
        return str(error)


def in_child(act: Callable[[Path, Path], object], *args: Path) -> object:
    receive, send = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: send.send(act(*args)))
    child.start()
    send.close()
    result = receive.recv()
    child.join()
    return result


def prepare(what: str, folder: Path) -> None:
    """Brings old.lmk into the state that the act is for."""
    if what == "compact":
        in_child(remove, folder, folder / "old.lmk")
    if what == "repair":
        segment = sorted((folder / "old.lmk" / "segments").iterdir())[0]
        segment.write_bytes(segment.read_bytes()[:-1])


def main(what: str, folder: Path, seed: int, rounds: int) -> None:
    acts = (rebuild, add, sync, remove, relabel, rename, compact, repair)
    act = {act.__name__: act for act in acts}[what]
    index = folder / f"{what}.lmk"
    prepare(what, folder)
    shutil.copytree(folder / "old.lmk", index)
    old = in_child(answers, folder, index)
    started = time.monotonic()
    in_child(act, folder, index)
    seconds = time.monotonic() - started
    new = in_child(answers, folder, index)
    print(json.dumps({"old": old, "new": new, "seconds": seconds}), flush=True)
    chance = random.Random(seed)
    for _ in range(rounds):
        shutil.rmtree(index)
        shutil.copytree(folder / "old.lmk", index)
        child = FORK.Process(target=act, args=(folder, index))
        child.start()
        child.join(chance.uniform(0, 1.05 * seconds))
        child.kill()
        child.join()
        after = in_child(answers, folder, index)
        computed = in_child(act, folder, index)
        finished = in_child(answers, folder, index)
        found = {"exit": child.exitcode, "after": after, "finished": finished, "computed": computed}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
