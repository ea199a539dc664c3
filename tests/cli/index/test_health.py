"""`lmk index verify` and `lmk index repair`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.index.gallery import transaction

Run = Callable[..., object]
QUERY = ("query", "queries/q_tower.jpg", "-i", "sample.lmk", "--json")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def one_file(here: Path, pattern: str) -> Path:
    return sorted((here / "sample.lmk").rglob(pattern))[0]


@pytest.fixture
def segmented(lmk: Run, here: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The index with its vectors in a segment file, as larger ones have them."""
    monkeypatch.setattr(transaction, "INLINE_ROWS", 4)
    build = ("build-index", "gallery", "--distractors", "bank", "--model", tiny)
    assert lmk(*build, "-o", "sample.lmk").code == 0
    return here


def test_a_whole_index_verifies_and_needs_no_repair(lmk: Run, here: Path) -> None:
    done = lmk("index", "verify", "sample.lmk")
    assert (done.code, done.out, done.err) == (0, "sample.lmk: all is well\n", "")
    facts = json.loads(lmk("index", "verify", "sample.lmk", "--json").out)
    assert facts == {"index": "sample.lmk", "findings": []}
    done = lmk("index", "repair", "sample.lmk")
    assert (done.code, done.err) == (0, "")
    assert done.out == "sample.lmk: 0 parts made again, 0 pictures embedded again, 0 lost\n"
    facts = json.loads(lmk("index", "repair", "sample.lmk", "--json").out)
    assert facts == {"index": "sample.lmk", "remade": [], "reembedded": 0, "lost": []}


@pytest.mark.parametrize("pattern", ["graph.bin", "graph.xml", "config.json", "arrays/*.bin"])
def test_a_flipped_bit_is_found_named_and_mended(
    lmk: Run, here: Path, tiny: Path, pattern: str
) -> None:
    whole = json.loads(lmk(*QUERY).out)
    file = one_file(here, pattern)
    flip(file)
    done = lmk("index", "verify", "sample.lmk")
    assert (done.code, done.err) == (1, "")
    name = file.relative_to(here).as_posix()
    line, last = done.out.splitlines()
    assert line.startswith(f"{name}: ") and line.endswith("lmk index repair`")
    assert last == "sample.lmk: 1 finding"
    (finding,) = json.loads(lmk("index", "verify", "sample.lmk", "--json").out)["findings"]
    assert (finding["where"], finding["mend"], finding["rows"]) == (name, "remake", [0, 0])
    done = lmk("index", "repair", "sample.lmk", "--model", tiny)
    assert (done.code, done.err) == (0, "")
    assert done.out == "sample.lmk: 1 part made again, 0 pictures embedded again, 0 lost\n"
    assert lmk("index", "verify", "sample.lmk").code == 0
    assert json.loads(lmk(*QUERY).out) == whole


def test_an_embedder_that_nothing_proves_to_be_the_same(
    lmk: Run, here: Path, make_embedder: Callable[[int], Path]
) -> None:
    for pattern in ("graph.bin", "weights.safetensors"):
        for file in (here / "sample.lmk" / "embedder").rglob(pattern):
            flip(file)
    call = ("index", "repair", "sample.lmk", "--model", make_embedder(1))
    lmk(*call).refused(1, "the embedder is damaged", "lmk build-index")
    lmk("index", "repair", "sample.lmk", "--model", "no").refused(2, "no: is no preset")
    lmk("index", "repair", "sample.lmk", "--size", "64").refused(2, "add --model")


def test_damaged_vectors_are_made_again_from_the_pictures(
    lmk: Run, segmented: Path, tiny: Path
) -> None:
    whole = json.loads(lmk(*QUERY).out)
    flip(one_file(segmented, "segments/*.f16"))
    lmk(*QUERY).refused(1, "segments/", "lmk index repair")
    (finding,) = json.loads(lmk("index", "verify", "sample.lmk", "--json").out)["findings"]
    assert (finding["mend"], finding["rows"]) == ("re-embed", [0, 18])
    done = lmk("index", "repair", "sample.lmk")
    assert (done.code, done.err) == (0, "")
    assert done.out == "sample.lmk: 0 parts made again, 18 pictures embedded again, 0 lost\n"
    mended = json.loads(lmk(*QUERY).out)
    assert mended["label"] == whole["label"]
    assert mended["confidence"] == pytest.approx(whole["confidence"], abs=1e-3)


def test_what_is_lost_is_named_and_the_exit_code_says_so(lmk: Run, segmented: Path) -> None:
    flip(one_file(segmented, "segments/*.f16"))
    shutil.rmtree(segmented / "sample.lmk" / "cache")
    (segmented / "gallery" / "tower" / "0.jpg").unlink()
    done = lmk("index", "repair", "sample.lmk")
    assert done.code == 1
    assert done.out == "sample.lmk: 0 parts made again, 17 pictures embedded again, 1 lost\n"
    assert done.complaints == ["lmk: lost tower/0.jpg"]
    assert lmk("index", "verify", "sample.lmk").code == 0
    assert lmk("index", "list", "sample.lmk").out == "4  bridge\n4  castle\n3  tower\n"


def test_a_drive_that_is_not_mounted(lmk: Run, segmented: Path) -> None:
    flip(one_file(segmented, "segments/*.f16"))
    shutil.rmtree(segmented / "sample.lmk" / "cache")
    for name in ("gallery", "bank"):
        (segmented / name).rename(segmented / f"no-{name}")
    lmk("index", "repair", "sample.lmk").refused(1, "18 pictures", "--drop-lost")
    done = lmk("index", "repair", "sample.lmk", "--drop-lost")
    assert done.code == 1 and done.out.endswith("18 lost\n")


def test_a_damaged_catalog_is_found_and_cannot_be_mended(lmk: Run, here: Path) -> None:
    catalog = here / "sample.lmk" / "catalog.db"
    catalog.write_bytes(catalog.read_bytes()[:-4096])
    done = lmk("index", "verify", "sample.lmk")
    assert done.code == 1 and "catalog.db" in done.out and "lmk build-index" in done.out
    lmk("index", "repair", "sample.lmk").refused(1, "catalog.db", "lmk build-index")


@pytest.mark.parametrize("name", ["verify", "repair"])
@pytest.mark.parametrize("index", ["nowhere", "gallery", "solution.csv"])
def test_what_is_no_index(lmk: Run, here: Path, name: str, index: str) -> None:
    before = sorted(here.rglob("*"))
    lmk("index", name, index).refused(2, index)
    assert sorted(here.rglob("*")) == before
