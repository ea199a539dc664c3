"""`lmk data check` of an index: its stored vectors are used, and its network for anything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.embed import defaults
from lmk.embed.defaults import DEFAULT
from lmk.embed.extract.embedder import Embedder

Run = Callable[..., object]


def findings(done: object) -> list[tuple[str, list[str]]]:
    told = json.loads(done.out)  # type: ignore[attr-defined]
    return [(one["kind"], [p["id"] for p in one["pictures"]]) for one in told["findings"]]


@pytest.fixture
def faulty(lmk: Run, here: Path) -> Path:
    """The sample with a file under two landmarks and one twice, in the folder and in the index."""
    shutil.copy("gallery/tower/0.jpg", "gallery/castle/t.jpg")
    shutil.copy("gallery/bridge/0.jpg", "gallery/bridge/copy.jpg")
    assert lmk("index", "add", "sample.lmk", "gallery", "--duplicates").code == 0
    return here


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Embedder, "start", None)  # computing anything would fail


def test_an_index_is_checked_as_its_folder_is(
    lmk: Run, faulty: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lmk("data", "check", "gallery", "--model", tiny, "--json")
    assert ("duplicate_conflict", ["castle/t.jpg", "tower/0.jpg"]) in findings(expected)
    assert ("duplicate", ["bridge/0.jpg", "bridge/copy.jpg"]) in findings(expected)
    monkeypatch.setattr(Embedder, "start", None)  # from here on nothing can be computed
    for words in (("-i", "sample.lmk"), ("sample.lmk",), ()):
        done = lmk("data", "check", *words, "--json")
        assert (done.code, done.err) == (1, "")
        got = {(kind, frozenset(ids)) for kind, ids in findings(done)}
        assert got == {(kind, frozenset(ids)) for kind, ids in findings(expected)}
        assert json.loads(done.out)["pictures"] == 14
    paths = [p["path"] for p in json.loads(done.out)["findings"][0]["pictures"]]
    assert sorted(paths) == ["castle/t.jpg", "tower/0.jpg"]
    page = lmk("data", "check", "sample.lmk", "--html", "sheet.html")
    assert page.code == 1 and "data:image/jpeg" in Path("sheet.html").read_text()


def test_a_folder_takes_what_an_index_holds(
    lmk: Run, faulty: Path, tiny: Path, no_network: None, paint: Callable[..., Path]
) -> None:
    done = lmk("data", "check", "gallery", "-i", "sample.lmk", "--json")
    assert ("duplicate_conflict", ["castle/t.jpg", "tower/0.jpg"]) in findings(done)
    paint(faulty / "gallery" / "bridge" / "new.jpg", 0, 50)
    assert "TypeError" in lmk("data", "check", "gallery", "-i", "sample.lmk").err  # it is computed


def test_new_pictures_are_embedded_by_the_network_of_the_index(
    lmk: Run, faulty: Path, paint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(faulty / "gallery" / "bridge" / "new.jpg", 0, 50)
    looked: list[int] = []
    real = Embedder.features

    def watched(embedder: Embedder, pictures: object) -> object:
        for feature in real(embedder, pictures):  # type: ignore[arg-type]
            looked.append(len(feature))
            yield feature

    monkeypatch.setattr(Embedder, "features", watched)
    done = lmk("data", "check", "gallery", "-i", "sample.lmk", "--json")
    assert json.loads(done.out)["pictures"] == 15 and len(looked) == 1


def test_files_that_are_gone_are_told(lmk: Run, faulty: Path, no_network: None) -> None:
    shutil.rmtree("gallery/castle")
    done = lmk("data", "check", "sample.lmk", "--json")
    assert done.code == 1
    (told,) = done.complaints
    assert "sample.lmk: 5 picture files disappeared or changed" in told and "lmk index sync" in told
    assert ("duplicate_conflict", ["tower/0.jpg", "castle/t.jpg"]) in findings(done)


def test_options_that_an_index_leaves_nothing_to_do(lmk: Run, faulty: Path) -> None:
    lmk("data", "check", "sample.lmk", "--model", "lite0").refused(
        2, "--model", "has its own network"
    )
    lmk("data", "check", "sample.lmk", "--root", "gallery").refused(2, "--root")
    lmk("data", "check", "-i", "sample.lmk", "--save-features", "f").refused(2, "--save-features")
    lmk("data", "check", "gallery", "-i", "no.lmk").refused(2, "no.lmk")
    shutil.copytree("sample.lmk", "other.lmk")
    lmk("data", "check").refused(2, "2 indexes here")


def test_one_default_network_everywhere(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever command embeds without being told by which network asks for the same one."""
    asked: list[object] = []

    def named(name: str = "missing", **options: object) -> Embedder:
        asked.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(Embedder, "named", named)
    (here / "t.csv").write_text("id,path,tags\na,gallery/tower/0.jpg,x\n")
    for words in (
        ("build-index", "gallery"), ("data", "check", "gallery"), ("data", "relabel", "t.csv"),
    ):  # fmt: skip
        assert lmk(*words).code == 130
    assert asked == [DEFAULT] * 3 == [defaults.DEFAULT] * 3
    for words in (("build-index", "-h"), ("data", "check", "-h"), ("data", "relabel", "-h")):
        text = " ".join(lmk(*words).out.split())
        assert f"[default: {DEFAULT}]" in text or f"or {DEFAULT}]" in text
