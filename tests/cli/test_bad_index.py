"""Damaged, foreign and read-only indexes, and the choice of one where -i is left out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., object]
MENDED = ("arrays", "embedder", "segments")  # by a repair, unlike the catalog
QUERY = ("query", "queries/q_tower.jpg", "-i", "sample.lmk", "-k", "2")


def checked_files(index: Path) -> list[Path]:
    """The files of an index that an answer rests on."""
    return [
        file
        for file in sorted(index.rglob("*"))
        if file.is_file() and file.name != ".lock" and "cache" not in file.parts
    ]


def test_an_index_of_which_any_file_is_cut_short_is_refused(lmk: Run, here: Path) -> None:
    whole = lmk(*QUERY)
    assert whole.code == 0
    names = [file.relative_to(here / "sample.lmk") for file in checked_files(here / "sample.lmk")]
    assert {name.suffix for name in names} >= {".db", ".bin", ".json", ".xml", ".safetensors"}
    for name in names:
        file = here / "sample.lmk" / name
        content = file.read_bytes()
        for cut in (content[: len(content) // 2], content[:-1], b"", None):
            if cut is None:
                file.unlink()
            else:
                file.write_bytes(cut)
            done = lmk(*QUERY)
            never_built = name.name == "catalog.db" and not cut
            done.refused(2 if never_built else 1, "sample.lmk")
            mending = "lmk index repair" if name.parts[0] in MENDED else "lmk build-index"
            assert mending in done.err
            if not never_built:
                assert str(name) in done.err
        file.write_bytes(content)
    assert lmk(*QUERY) == whole


def test_a_damaged_index_is_mended_by_the_command_that_the_message_names(
    lmk: Run, here: Path, tiny: Path
) -> None:
    whole = lmk(*QUERY)
    graph = next((here / "sample.lmk").rglob("graph.bin"))
    graph.write_bytes(graph.read_bytes()[:1000])
    lmk(*QUERY).refused(1, "graph.bin: the file has 1000 bytes", "mend it with `lmk index repair`")
    build = ("build-index", "gallery", "--distractors", "bank", "--model", tiny)
    built = lmk(*build, "-o", "sample.lmk", "--json")
    assert json.loads(built.out)["computed"] == 0  # the features were kept
    assert lmk(*QUERY) == whole


CATALOG_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "header": lambda data: b"overwritten header" + data[18:],
    "half": lambda data: data[: len(data) // 2],
    "state": lambda data: data.replace(b'"fingerprint": "', b'"fingerprinT": "'),
}


@pytest.mark.parametrize("damage", CATALOG_DAMAGES)
def test_a_damaged_catalog_is_mended_by_the_command_that_the_message_names(
    lmk: Run, here: Path, tiny: Path, damage: str
) -> None:
    whole = lmk(*QUERY)
    catalog = here / "sample.lmk" / "catalog.db"
    damaged = CATALOG_DAMAGES[damage](catalog.read_bytes())
    assert damaged != catalog.read_bytes()
    catalog.write_bytes(damaged)
    lmk(*QUERY).refused(1, "catalog.db", "rebuild it with `lmk build-index`")
    build = ("build-index", "gallery", "--distractors", "bank", "--model", tiny)
    built = lmk(*build, "-o", "sample.lmk", "--json")
    assert json.loads(built.out)["computed"] == 0  # the features were kept
    assert lmk(*QUERY) == whole
    assert catalog.with_name("catalog.db.damaged").read_bytes() == damaged


def test_a_users_folder_with_names_like_ours_is_left_alone(
    lmk: Run, here: Path, tiny: Path
) -> None:
    (here / "mine" / "segments").mkdir(parents=True)
    (here / "mine" / "segments" / "notes.txt").write_text("mine")
    done = lmk("build-index", "gallery", "-o", "mine", "--model", tiny)
    done.refused(2, "mine: the folder holds something else (segments)")
    assert [file.name for file in (here / "mine").rglob("*")] == ["segments", "notes.txt"]


def test_another_model_over_an_index_replaces_it_whole(
    lmk: Run, here: Path, make_embedder: Callable[[int], Path]
) -> None:
    before = json.loads(lmk("info", "sample.lmk", "--json").out)
    other = make_embedder(1)
    built = lmk("build-index", "gallery", "-o", "sample.lmk", "--model", other, "--json")
    assert json.loads(built.out)["computed"] == 12
    after = json.loads(lmk("info", "sample.lmk", "--json").out)
    assert after["fingerprint"] != before["fingerprint"]
    assert after["distractors"] == 0
    answer = json.loads(lmk(*QUERY, "--json").out)
    assert answer["neighbours"][0]["labels"] == ["tower"]


def test_an_embedder_of_another_index_is_noticed(
    lmk: Run, here: Path, make_embedder: Callable[[int], Path]
) -> None:
    other = make_embedder(1)
    assert lmk("build-index", "gallery", "-o", "other.lmk", "--model", other).code == 0
    mine, theirs = (next((here / f"{n}.lmk" / "embedder").iterdir()) for n in ("sample", "other"))
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    lmk(*QUERY).refused(1, "sample.lmk/embedder/", "mend it with `lmk index repair`")
    lmk("info", "sample.lmk").refused(1, "sample.lmk/embedder/")
    lmk("submit", "queries", "-i", "sample.lmk", "-o", "s.csv").refused(1, "sample.lmk/embedder/")
    assert not (here / "s.csv").exists()


def test_vectors_of_another_model_are_refused(
    here: Path, make_embedder: Callable[[int], Path]
) -> None:
    from lmk.embed.errors import EmbedderMismatch
    from lmk.embed.extract.embedder import Embedder
    from lmk.rerank.recognizer import Recognizer

    foreign, _ = Embedder.load(make_embedder(1)).embed([Path("queries/q_tower.jpg")])
    with Recognizer.open("sample.lmk") as recognizer, pytest.raises(EmbedderMismatch):
        recognizer.predict(foreign)


def test_an_index_of_a_newer_format_is_refused(lmk: Run, here: Path) -> None:
    import sqlite3

    with sqlite3.connect(here / "sample.lmk" / "catalog.db") as catalog:
        catalog.execute("PRAGMA user_version = 999")
    done = lmk(*QUERY)
    done.refused(1, "sample.lmk", "lmk")
    assert "newer" in done.err or "format" in done.err


def test_the_only_index_here_is_taken(lmk: Run, here: Path) -> None:
    named = lmk("query", "queries/q_tower.jpg", "-i", "sample.lmk")
    assert lmk("query", "queries/q_tower.jpg") == named
    assert lmk("submit", "queries", "-o", "s.csv").code == 0
    (here / "file.lmk").write_text("a file is no index folder")
    assert lmk("query", "queries/q_tower.jpg") == named


def test_no_index_here_is_said(lmk: Run, here: Path) -> None:
    (here / "sample.lmk").rename(here / "sample.old")
    lmk("query", "queries/q_tower.jpg").refused(
        2, str(here), "there is no index (*.lmk folder)", "lmk build-index GALLERY", "-i"
    )


def test_two_indexes_here_are_listed(lmk: Run, here: Path) -> None:
    (here / "old.lmk").mkdir()
    for call in ("query queries/q_tower.jpg", "submit queries -o s.csv"):
        lmk(*call.split()).refused(2, "2 indexes", "old.lmk, sample.lmk", "-i old.lmk")


@pytest.mark.parametrize(
    ("gallery", "index"),
    [
        ("gallery", "gallery.lmk"),
        ("gallery/", "gallery.lmk"),
        ("./gallery", "gallery.lmk"),
        ("here.csv", "here.lmk"),
        ("gallery/bridge", "gallery/bridge.lmk"),
        ("gallery/bridge/..", "gallery.lmk"),
        (".", "../here.lmk"),
    ],
)
def test_the_index_is_named_after_the_gallery(
    lmk: Run, here: Path, tiny: Path, gallery: str, index: str
) -> None:
    (here / "here.csv").write_text("id,path,landmark_id\na,gallery/tower/0.jpg,tower\n")
    done = lmk("build-index", gallery, "--model", tiny, "--json")
    assert done.code == 0, done.err
    assert Path(json.loads(done.out)["index"]).resolve() == (here / index).resolve()
    assert (here / index / "catalog.db").is_file()


def test_a_flat_gallery_answers_but_is_told_that_it_names_nothing(
    lmk: Run, here: Path, tiny: Path
) -> None:
    done = lmk("build-index", "bank", "--model", tiny)
    assert done.code == 0
    assert len(done.complaints) == 1
    assert "bank: no picture has a landmark" in done.err
    assert "sub-folder" in done.err
    asked = lmk("query", "bank/n0.jpg", "-i", "bank.lmk", "-k", "1", "--html", "a.html")
    assert asked.code == 0
    first, near = asked.out.splitlines()
    assert first == "bank/n0.jpg: none of these (no picture in the index has a landmark)"
    assert re.fullmatch(r"    1  1\.000 ->  0\.\d{3}      -  \(no landmark\)  bank/n0\.jpg", near)
    assert "No picture of the index has a landmark." in (here / "a.html").read_text()


@pytest.mark.parametrize("cache", ["kept", "lost"])
def test_a_read_only_index_still_answers(
    lmk: Run,
    lmk_process: Run,
    here: Path,
    tiny: Path,
    cache: str,
    heed_permissions: Callable[[], None],
) -> None:
    expected = lmk(*QUERY)
    if cache == "lost":
        shutil.rmtree(here / "sample.lmk" / "cache")
    folders = [here, *(path for path in here.rglob("*") if path.is_dir())]
    before = sorted(here.rglob("*"))
    for path in before:
        path.chmod(0o444 if path.is_file() else 0o555)
    here.chmod(0o555)
    try:
        done = lmk_process(*QUERY, preexec_fn=heed_permissions)
        if done.code == 77:
            pytest.skip("root cannot give up its power over files here")
        assert done == expected
        build = ("build-index", "gallery", "-o", "sample.lmk", "--model", tiny)
        refused = lmk_process(*build, preexec_fn=heed_permissions)
        refused.refused(1, "sample.lmk", "permission denied", "check the permissions")
        page = lmk_process(*QUERY, "--html", "answer.html", preexec_fn=heed_permissions)
        assert page.code == 1
        assert "lmk: answer.html: cannot write: permission denied" in page.err
        assert sorted(here.rglob("*")) == before
    finally:
        for path in folders:
            path.chmod(0o755)
