"""`lmk index set`, and the search that an index was built with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.search.batch import read_neighbours

Run = Callable[..., object]


def setting(index: str = "sample.lmk") -> dict[str, object]:
    with Gallery.open(index) as gallery:
        found = gallery.setting("search")
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("kind", ["flat", "exact"])
def test_the_kind_is_used_and_answers_stay(lmk: Run, here: Path, kind: str) -> None:
    query = ("query", "queries/q_tower.jpg", "queries/q_none0.jpg", "--json")
    before = lmk(*query)
    done = lmk("index", "set", "sample.lmk", "--kind", kind)
    assert (done.code, done.err) == (0, "")
    reason = json.loads(lmk("info", "sample.lmk", "--json").out)["search"]
    assert done.out == f"sample.lmk: {reason}\n"
    assert setting() == {"kind": kind}
    assert lmk(*query) == before
    facts = json.loads(lmk("index", "set", "sample.lmk", "--recall", "0.9", "--json").out)
    assert facts["setting"] == {"kind": kind, "recall": 0.9} == setting()


@pytest.fixture
def many(here: Path) -> Path:
    """An index of 1,500 vectors of no pictures."""
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng.standard_normal((1500, 16)))
    ids = tuple(f"{n}.jpg" for n in range(1500))
    pictures = [
        Picture(id_, (), "/photos", id_, sha256(id_.encode()).hexdigest(), 1, 1) for id_ in ids
    ]
    with GalleryWriter(here / "many.lmk", create=True) as writer:
        writer.reset("a" * 64, 16)
        writer.append(Embeddings(vectors, ids, "a" * 64), pictures)
        writer.commit()
    return here / "many.lmk"


def test_an_index_is_made_at_once_and_said_to_be(lmk: Run, here: Path, many: Path) -> None:
    done = lmk("index", "set", "many.lmk", "--kind", "hnsw", "--recall", "0.9")
    assert done.code == 0, done.err
    assert done.complaints and all(line.startswith("lmk: ") for line in done.complaints)
    assert "hnsw" in done.out.lower()
    again = lmk("index", "set", "many.lmk", "--kind", "hnsw")
    assert (again.code, again.err) == (0, "")  # it is kept
    found = lmk("index", "search", "many.lmk", "many.lmk", "-o", "found", "-k", "1")
    assert found.code == 0
    (near,) = read_neighbours(here / "found")
    assert (near.rows[:, 0] == np.arange(1500)).mean() > 0.9  # each is the nearest to itself


@pytest.mark.parametrize(
    ("kind", "begins"),
    [("IVF8,SQ8", "training IVF8,SQ8"), ("HNSW8,Flat", "building HNSW8,Flat of 1500 vectors")],
)
def test_info_builds_nothing(
    lmk: Run, here: Path, many: Path, tiny: Path, kind: str, begins: str
) -> None:
    with GalleryWriter(many) as writer:
        writer.install_embedder(lambda folder: shutil.copytree(tiny, folder, dirs_exist_ok=True))
        writer.commit()
    ready = lmk("index", "set", "many.lmk", "--kind", kind).out.removeprefix("many.lmk: ").strip()

    def info() -> str:
        done = lmk("info", "many.lmk", "--json")
        assert (done.code, done.err) == (0, "")
        return str(json.loads(done.out)["search"])

    cache = many / "cache" / "search"
    assert info() == ready
    for measured in cache.glob("*.0.99.json"):
        measured.unlink()
    begin = "the next search first needs: "
    assert info() == f"{begin}measuring the recall of {kind}"
    shutil.rmtree(cache)
    assert info().startswith(begin + begins)
    assert not cache.exists()


def test_a_build_keeps_what_it_was_given(lmk: Run, here: Path, tiny: Path) -> None:
    build = ("build-index", "gallery", "--model", tiny)
    assert lmk(*build, "--kind", "exact", "--recall", "1", "--dtype", "f32").code == 0
    assert setting("gallery.lmk") == {"kind": "exact", "recall": 1.0}
    facts = json.loads(lmk("info", "gallery.lmk", "--json").out)
    assert facts["precision"] == "f32"


@pytest.mark.parametrize(
    ("words", "complaint"), [("--kind fast", "choose"), ("--recall nan", "not a number")]
)
def test_a_build_for_a_search_that_there_is_not_ends_at_once(
    lmk: Run, here: Path, tiny: Path, words: str, complaint: str
) -> None:
    build = ("build-index", "gallery", "--model", tiny, *words.split())
    lmk(*build).refused(2, words.split()[1], complaint)
    assert not (here / "gallery.lmk").exists()


def test_a_kept_kind_that_there_is_not_is_mended_by_the_command_that_the_message_names(
    lmk: Run, here: Path
) -> None:
    with GalleryWriter(here / "sample.lmk") as writer:
        writer.set("search", {"kind": "fast"})
        writer.commit()
    query = ("query", "queries/q_tower.jpg", "--json")
    way_out = "`lmk index set sample.lmk --kind auto`"
    lmk(*query).refused(2, "sample.lmk: ", "'fast'", way_out)
    lmk("index", "set", "sample.lmk", "--recall", "0.9").refused(2, way_out)
    assert lmk("index", "set", "sample.lmk", "--kind", "auto").code == 0
    assert lmk(*query).code == 0


@pytest.mark.parametrize(
    ("words", "complaints"),
    [
        ("", ["sample.lmk: no setting is given", "--kind"]),
        ("--kind fast", ["fast"]),
        ("--recall 2", ["'--recall'", "0<=x<=1"]),
        ("--recall nan", ["'--recall'", "not a number"]),
        ("--recall high", ["'--recall'", "not a valid float"]),
        ("--backend milvus", ["--uri URI"]),
        ("--uri http://localhost:1", ["--backend milvus"]),
        ("--backend cloud", ["'cloud' is not one of"]),
        ("--backend milvus --uri nonsense", ["nonsense"]),
    ],
)
def test_what_is_wrong_is_not_kept(lmk: Run, here: Path, words: str, complaints: list[str]) -> None:
    before = setting()
    lmk("index", "set", "sample.lmk", *words.split()).refused(2, *complaints)
    assert setting() == before


def test_a_second_writer_is_told_of_the_first(lmk: Run, here: Path) -> None:
    with GalleryWriter(here / "sample.lmk"):
        call = ("index", "set", "sample.lmk", "--kind", "flat")
        lmk(*call).refused(1, "sample.lmk", f"process {os.getpid()} is writing")
