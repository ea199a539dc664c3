"""`lmk index search`: many queries from disk, neighbours to disk."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from lmk.index.gallery.gallery import Gallery
from lmk.index.search import batch
from lmk.index.search.batch import read_neighbours

Run = Callable[..., object]
SEARCH = ("index", "search", "sample.lmk", "queries.lmk", "-o", "found", "-k", "3")


@pytest.fixture(autouse=True)
def queries(lmk: Run, here: Path, tiny: Path) -> Path:
    assert lmk("build-index", "queries", "--model", tiny).code == 0
    return here / "queries.lmk"


def wanted(k: int) -> tuple[list[str], np.ndarray]:
    """Ids of queries and what is nearest to each, by numpy."""
    with Gallery.open("sample.lmk") as gallery, Gallery.open("queries.lmk") as asked:
        known, queries = gallery.embeddings("gallery"), asked.embeddings("gallery")
    order = np.argsort(-(queries.vectors @ known.vectors.T), axis=1, kind="stable")[:, :k]
    return list(queries.ids), np.array(known.ids)[order]


def test_neighbours_are_those_of_numpy(lmk: Run, here: Path) -> None:
    done = lmk(*SEARCH)
    assert (done.code, done.out) == (0, "found: 3 neighbours of 9 queries in 1 file\n")
    assert done.complaints == [done.err.strip()] and done.err.startswith("search: ")
    table = pd.read_parquet("found")
    ids, near = wanted(3)
    assert table["query"].tolist() == ids
    assert np.stack(table["ids"]).tolist() == near.tolist()
    (block,) = read_neighbours(here / "found")
    with Gallery.open("sample.lmk") as gallery:
        assert [gallery.ids(row) for row in block.rows] == near.tolist()


def test_json_says_the_same(lmk: Run, here: Path) -> None:
    facts = json.loads(lmk(*SEARCH, "--json").out)
    assert facts.pop("search")
    assert facts == {"output": "found", "k": 3, "queries": 9, "blocks": 1, "kept": 0}
    again = lmk(*SEARCH)
    assert again.out == (
        "found: 3 neighbours of 9 queries in 1 file, 1 of them from an earlier run\n"
    )


def test_no_more_neighbours_than_there_are_pictures(lmk: Run, here: Path) -> None:
    call = ("index", "search", "sample.lmk", "queries.lmk", "-o")
    done = lmk(*call, "all", "-k", "2000000000")
    assert (done.code, done.out) == (0, "all: 12 neighbours of 9 queries in 1 file\n")
    assert done.complaints[0] == ("lmk: -k 2000000000: the index has only 12 pictures")
    assert np.stack(pd.read_parquet("all")["ids"]).tolist() == wanted(12)[1].tolist()
    done = lmk(*call, "usual")
    assert (done.out, len(done.complaints)) == ("usual: 12 neighbours of 9 queries in 1 file\n", 1)


def test_only_pictures_of_a_landmark(lmk: Run, here: Path) -> None:
    assert lmk(*SEARCH, "--label", "tower", "--label", "bridge").code == 0
    ids = np.stack(pd.read_parquet("found")["ids"]).ravel().tolist()
    assert {id_.split("/")[0] for id_ in ids} <= {"tower", "bridge"}
    lmk(*SEARCH[:-4], "-o", "other", "--label", "towr").refused(2, "'towr'", "lmk index list")
    assert not (here / "other").exists()


def test_vectors_of_ones_own_are_queries(lmk: Run, here: Path) -> None:
    with Gallery.open("queries.lmk") as asked:
        own = asked.embeddings("gallery")
    tensors = {"vectors": own.vectors, "ids": np.frombuffer("\n".join(own.ids).encode(), np.uint8)}
    save_file(tensors, "q.safetensors", metadata={"embedder": own.fingerprint})
    assert lmk(*SEARCH).code == 0
    assert lmk("index", "search", "sample.lmk", "q.safetensors", "-o", "own", "-k", "3").code == 0
    mine, theirs = pd.read_parquet("own"), pd.read_parquet("found")
    assert mine["query"].tolist() == theirs["query"].tolist()
    assert np.stack(mine["ids"]).tolist() == np.stack(theirs["ids"]).tolist()
    save_file(tensors, "q.safetensors", metadata={"embedder": "f" * 64})
    call = ("index", "search", "sample.lmk", "q.safetensors", "-o", "strange")
    lmk(*call).refused(1, "embedder ffffffffffffffff", "the gallery's own embedder")
    assert not (here / "strange").exists()


def test_other_inputs_are_refused(lmk: Run, here: Path, tiny: Path) -> None:
    assert lmk(*SEARCH).code == 0
    lmk(*SEARCH, "-k", "4").refused(2, "found: holds another search", "asked for 3", "remove the")
    lmk(*SEARCH, "--kind", "flat").refused(2, "of another index or kind of search")
    build = ("build-index", "gallery", "-o", "sample.lmk", "--model", tiny)
    assert lmk(*build).code == 0
    lmk(*SEARCH).refused(2, "of another index or kind of search, or it has changed")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("sample.lmk queries.lmk", ["Missing option '-o'", "lmk index search --help"]),
        ("sample.lmk queries.lmk -o found -k 0", ["'-k'", "0 is not in the range"]),
        ("sample.lmk queries.lmk -o found -k few", ["'-k'", "not a valid integer"]),
        ("sample.lmk nowhere -o found", ["nowhere: no such file", "safetensors"]),
        ("sample.lmk gallery -o found", ["gallery: this folder is no gallery"]),
        ("sample.lmk solution.csv -o found", ["solution.csv: holds no queries", "docs/index.md"]),
        ("nowhere queries.lmk -o found", ["nowhere: there is no such folder"]),
        ("sample.lmk queries.lmk -o queries", ["queries: the folder holds something else"]),
        ("sample.lmk queries.lmk -o solution.csv", ["'-o'", "is a file"]),
    ],
)
def test_wrong_calls(lmk: Run, here: Path, call: str, words: list[str]) -> None:
    lmk("index", "search", *call.split()).refused(2, *words)
    assert not (here / "found").exists()


def test_ctrl_c_is_one_line_and_it_goes_on(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batch.write_whole

    def interrupt(path: Path, content: bytes) -> None:
        if path.suffix == ".parquet":
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(batch, "write_whole", interrupt)
        lmk(*SEARCH).refused(130, "stopped")
    assert lmk(*SEARCH).code == 0
    assert pd.read_parquet("found")["query"].tolist() == wanted(3)[0]


@pytest.mark.slow
def test_killed_at_any_time_it_goes_on(
    lmk: Run, here: Path, started: Callable[..., object]
) -> None:
    began = time.monotonic()
    assert started(*SEARCH).wait(120) == 0
    whole = time.monotonic() - began
    first = pd.read_parquet("found")
    for n in range(8):
        for file in (here / "found").iterdir():
            file.unlink()
        process = started(*SEARCH)
        with suppress(subprocess.TimeoutExpired):  # most of the first half is imports
            process.wait(whole * (0.5 + 0.5 * n / 8))
        process.kill()
        process.communicate()
        assert lmk(*SEARCH).code == 0
        pd.testing.assert_frame_equal(pd.read_parquet("found"), first)
