"""The tagger that lmk comes with: asked by default, left as it is, copied, part of an index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lmk.embed.data.manifest import read_manifest
from lmk.embed.defaults import DEFAULT_TAGGER
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.config import shipped_tagger
from lmk.rerank.indexing.build import build_index
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.tags.taggers import HeadTagger, open_tagger
from lmk.rerank.tags.thresholds import THRESHOLDS_FILE

Run = Callable[..., object]
Render = Callable[..., np.ndarray]
NAME = Path(DEFAULT_TAGGER)


@pytest.fixture(scope="module")
def tagger() -> HeadTagger:
    return HeadTagger.open(NAME)


@pytest.fixture
def labelled(here: Path) -> Path:
    """Pictures of which half are said to show a dog; one has a tag that nobody knows."""
    manifest = read_manifest(here / "gallery")
    rows = [
        f"{row.id},gallery/{row.path},{'dog' if i % 2 else ''}{' unicorn' if i == 1 else ''}"
        for i, row in enumerate(manifest.rows)
    ]
    path = here / "labelled.csv"
    path.write_text("\n".join(["id,path,tags", *rows]) + "\n")
    return path


def test_its_files_belong_together(tagger: HeadTagger) -> None:
    """The thresholds are of this head, whose features are those of this network."""
    assert len(tagger.names) == 18 and {"person", "traffic_light"} < set(tagger.names)
    assert set(tagger.thresholds.tags) == set(tagger.names)
    assert tagger.thresholds.tagger == tagger.fingerprint
    assert (tagger.thresholds.min_precision, tagger.thresholds.min_recall) == (0.9, 0.5)
    assert any(one.reached for one in tagger.thresholds.tags.values())
    folder = shipped_tagger()
    assert tagger.embedder.folder == folder
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20e6
    assert tagger.embedder.graph() == folder / "graph.xml"  # no torch, no export


def test_its_network_is_that_of_its_graph(tagger: HeadTagger, render: Render) -> None:
    """Where there is a GPU, or no OpenVINO, torch runs the weights beside the graph."""
    size = tagger.embedder.config.size
    pictures = [render(i, width=size, height=size) for i in range(3)]
    by_graph = np.stack(list(tagger.embedder.features(pictures)))
    by_torch = tagger.embedder.network()(torch.from_numpy(np.stack(pictures))).detach().numpy()
    np.testing.assert_allclose(tagger.scores(by_graph), tagger.scores(by_torch), atol=0.02)
    assert Embedder.named(DEFAULT_TAGGER).fingerprint == tagger.embedder.fingerprint


def test_it_is_asked_by_default(lmk: Run, here: Path, tagger: HeadTagger) -> None:
    done = lmk("tag", "queries/q_castle.jpg", "--json")
    assert done.code == 0
    best = json.loads(done.out)["best"]
    assert len(best) == 5 and {one["tag"] for one in best} < set(tagger.names)
    needed = dict(zip(tagger.names, tagger.thresholds.values(tagger.names), strict=True))
    for one in best:
        assert (one["threshold"] or np.inf) == needed[one["tag"]]


def test_other_thresholds_are_of_a_copy(lmk: Run, here: Path, labelled: Path) -> None:
    thresholds = shipped_tagger() / THRESHOLDS_FILE
    before = thresholds.read_bytes()
    wanted = ("tag-thresholds", "--data", labelled, "--precision", "0.4")
    done = lmk(*wanted, "--tagger", NAME)
    assert (done.code, done.out) == (2, "")
    assert "tags-lite1: is part of lmk and cannot be changed; name a folder" in done.err
    done = lmk(*wanted, "--tagger", NAME, "-o", "mine")
    assert done.code == 0, done.err
    assert thresholds.read_bytes() == before
    copy = HeadTagger.open(here / "mine")
    assert copy.thresholds.tags["dog"].reached and copy.thresholds.min_precision == 0.4
    assert copy.fingerprint == HeadTagger.open(NAME).fingerprint
    done = lmk("tag", "gallery", "--tagger", "mine", "-o", "found.csv")
    assert done.code == 0
    given = [line.rpartition(",")[2] for line in (here / "found.csv").read_text().splitlines()]
    assert sum("dog" in tags.split() for tags in given) >= 6
    done = lmk(*wanted, "--tagger", "mine", "-o", "mine")
    assert done.code == 2 and "mine: is not empty; name a new folder" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tagger", "votes.lmk", "-o", "y"), "--output: applies to a tagger"),
        ((), "no tagger is given; name a tagger or an index: --tagger or -i"),
        (("-i", "x.lmk", "-o", "y"), "--output: applies to a tagger"),
        (("--tagger", "tags-lite7"), "tags-lite7: no such tagger; train one: lmk train tags, or "),
        (("--tagger", "lite1"), "lite1: "),
        (("--tagger", NAME, "-o", "no/where"), "no: no such folder; create it first"),
    ],
)
def test_mistakes(
    lmk: Run, labelled: Path, tiny: Path, options: tuple[str, ...], message: str
) -> None:
    if "votes.lmk" in options:
        assert lmk("build-index", labelled, "--model", tiny, "-o", "votes.lmk").code == 0
    done = lmk("tag-thresholds", "--data", labelled, *options)
    assert done.code != 0 and message in done.err


def test_a_folder_of_its_name_is_not_meant(lmk: Run, here: Path) -> None:
    """Unless it is named, and is one."""
    (here / NAME).mkdir()
    assert lmk("tag", "queries/q_castle.jpg").code == 0
    assert lmk("tag", "queries/q_castle.jpg", "--tagger", NAME).code == 0


def test_an_index_brings_it_along(sample: Path, tmp_path: Path, tagger: HeadTagger) -> None:
    index = tmp_path / "places.lmk"
    build_index(read_manifest(sample / "gallery"), index, Embedder.named(DEFAULT_TAGGER))
    with Recognizer.open(index) as recognizer:
        own = HeadTagger.of_index(recognizer)
    assert own is not None and own.fingerprint == tagger.fingerprint
    assert own.thresholds == tagger.thresholds
    with open_tagger(index) as opened:
        assert opened.names == tagger.names
