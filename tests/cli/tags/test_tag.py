"""lmk tag, tag-thresholds, and query with tags: from pictures to tags."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.checksums import write_with_checksum
from lmk.embed.data.manifest import read_manifest
from lmk.embed.errors import GalleryError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.tags.detector import Box
from lmk.rerank.indexing.build import build_index
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.dba import DbaStep
from lmk.rerank.steps.penalty import PenaltyStep, RescaleStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.voting import ThresholdStep, VoteStep
from lmk.rerank.tags.taggers import VoteTagger, open_tagger, tag_files
from lmk.rerank.tags.thresholds import TagThreshold, TagThresholds

Run = Callable[..., object]
Table = Callable[..., Path]
SCORED = (DbaStep(own_below=10), RescaleStep(), PenaltyStep())  # of an index unless told otherwise


@pytest.fixture(scope="session")
def _tagged(
    sample: Path, tiny: Path, things: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An index of the gallery whose pictures have tags."""
    index = tmp_path_factory.mktemp("tagged") / "tags.lmk"
    manifest = read_manifest(sample / "gallery")
    rows = tuple(replace(row, labels=tuple(things[row.labels[0]].split())) for row in manifest.rows)
    build_index(replace(manifest, rows=rows), index, Embedder.load(tiny))
    return index


@pytest.fixture
def tag_index(here: Path, _tagged: Path) -> Path:
    """The same, of one's own."""
    return shutil.copytree(_tagged, here / "tags.lmk")


def tags_of(line: str) -> dict[str, float]:
    return {one["tag"]: one["score"] for one in json.loads(line)["tags"]}


class TestTag:
    def test_by_a_trained_tagger(self, lmk: Run, tagger: Path) -> None:
        done = lmk("tag", "queries/q_castle.jpg", "queries/q_tower.jpg", "--tagger", tagger)
        assert (done.code, done.err) == (0, "")
        first, second = done.out.splitlines()
        assert re.fullmatch(
            r"queries/q_castle.jpg: (castle|stone) [\d.]+, (castle|stone) [\d.]+", first
        )
        assert second.startswith("queries/q_tower.jpg: tower ")

    def test_by_the_votes_of_an_index(self, lmk: Run, tag_index: Path) -> None:
        done = lmk("tag", "queries/q_bridge.jpg", "-i", tag_index, "--json")
        assert done.code == 0
        found = json.loads(done.out)
        assert found["picture"] == "queries/q_bridge.jpg"
        scores = {one["tag"]: one["score"] for one in found["best"]}
        assert set(scores) == {"bridge", "castle", "stone", "tower"}
        assert scores["stone"] == pytest.approx(scores["bridge"] + scores["castle"], abs=1e-5)
        assert scores["bridge"] == max(scores["bridge"], scores["castle"], scores["tower"])
        assert all(one["threshold"] == 0.5 for one in found["best"])

    def test_relations_boxes_and_what_is_not_given(
        self, lmk: Run, tagger: Path, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Fake:
            size, labels = 32, ("cell phone", "tower")

            def __init__(self, weights: str) -> None:
                assert weights == "weights.pth"

            def boxes(self, picture: np.ndarray) -> list[Box]:
                assert picture.shape == (32, 32, 3)
                return [Box("cell phone", 0.7, (0, 0, 1, 1)), Box("tower", 0.3, (0, 0, 1, 1))]

        monkeypatch.setattr("lmk.embed.tags.detector.SsdLite", Fake)
        (here / "relations.csv").write_text("child,parent\nphone,thing\ncastle,building\n")
        (here / "classes.csv").write_text("class,tag\ncell phone,phone\n")
        done = lmk(
            "tag", "queries/q_castle.jpg", "--tagger", tagger, "--relations", "relations.csv",
            "--detector", "weights.pth", "--classes", "classes.csv", "--json",
        )  # fmt: skip
        found = {one["tag"]: one for one in json.loads(done.out)["tags"]}
        assert found["phone"] == {"tag": "phone", "score": 0.7, "source": "detector"}
        assert found["thing"] == {"tag": "thing", "score": 0.7, "source": "relation"}
        assert found["building"]["source"] == "relation"
        assert "tower" not in found
        (here / "classes.csv").write_text("class,tag\n")
        for words, why in (
            (("--classes", "classes.csv"), "needs --detector"),
            (("--detector", "weights.pth", "--classes", "classes.csv"), "no tag has the name"),
        ):
            lmk("tag", "queries/q_castle.jpg", "--tagger", tagger, *words).refused(2, why)

    def test_a_list_of_pictures_to_be_scored(
        self, lmk: Run, tagger: Path, here: Path, tag_table: Table
    ) -> None:
        tag_table(here / "known.csv", "queries")
        done = lmk("tag", "known.csv", "--tagger", tagger, "-o", "out.csv", "--html", "tags.html")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("out.csv: 9 pictures, ")
        with (here / "out.csv").open() as file:
            rows = {row["id"]: row for row in csv.DictReader(file)}
        assert set(rows["q_castle"]["given"].split()) == {"castle", "stone"}
        assert rows["q_castle"]["path"] == "queries/q_castle.jpg"
        assert len(rows["q_none0"]["tags"].split()) == 5
        (here / "sub").mkdir()
        done = lmk("tag", "queries", "--tagger", tagger, "-o", "sub/out.csv")
        assert done.err == f"lmk: sub/out.csv: read it with --root {here / 'queries'}\n"
        again = read_manifest(here / "sub" / "out.csv", root=here / "queries")
        assert all(again.file(row).is_file() for row in again.rows)
        page = (here / "tags.html").read_text()
        assert page.count("<article>") == 9
        assert "data:image/jpeg" in page
        scored = json.loads(lmk("eval", "tags", "out.csv", "known.csv", "--json").out)
        assert scored["given"]["tags"]["castle"]["recall"] == 1
        assert scored["macro_map"] > 0.5  # it knows nothing of the six other pictures
        assert "P" in lmk("eval", "tags", "out.csv", "known.csv").out.splitlines()[5].split()

    def test_the_photo_and_its_tiles_maximum_are_averaged(self, tagger: Path) -> None:
        import cv2

        from lmk.embed.data.tiles import tiled

        files = [("a", Path("queries/q_tower.jpg")), ("gone", Path("gone.jpg")),
                 ("b", Path("queries/q_castle.jpg"))]  # fmt: skip
        with open_tagger(tagger) as opened:
            (batch,) = tag_files(opened, files, tiles=True)
            assert batch.ids == ("a", "b")
            assert [skip.path for skip in batch.skipped] == ["gone.jpg"]
            data = cv2.imencode(".jpg", cv2.imread("queries/q_tower.jpg"))[1].tobytes()
            assert len(tiled(data, 64)) == 10
            data = Path("queries/q_tower.jpg").read_bytes()
            looks = np.stack(list(opened.embedder.features(tiled(data, 64))))
            scores = opened.scores(looks).astype(np.float64).clip(1e-6, 1 - 1e-6)
            odds = np.sqrt((scores / (1 - scores))[0] * (scores / (1 - scores))[1:].max(axis=0))
            np.testing.assert_allclose(batch.scores[0], odds / (1 + odds), rtol=1e-3)

    def test_a_picture_without_tags_has_a_best_guess(self, lmk: Run, tagger: Path) -> None:
        with open_tagger(tagger) as opened:
            opened.save(TagThresholds(default=1.01))
        (line,) = lmk("tag", "queries/q_tower.jpg", "--tagger", tagger).out.splitlines()
        assert re.search(r": no tags  \(the best guess, tower, has [\d.]+; 1.01 is needed\)", line)
        never = TagThreshold(value=None, pictures=1, precision=0, recall=0)
        with open_tagger(tagger) as opened:
            opened.save(TagThresholds(default=1.01, tags={"tower": never}))
        assert "it is never given" in lmk("tag", "queries/q_tower.jpg", "--tagger", tagger).out

    def test_what_cannot_be_read(self, lmk: Run, tagger: Path, here: Path) -> None:
        (here / "broken.jpg").write_bytes(b"nothing")
        done = lmk(
            "tag", "broken.jpg", "none.jpg", "--tagger", tagger, "--json", "--html", "t.html"
        )
        assert done.code == 1
        assert [json.loads(line)["error"] for line in done.out.splitlines()] == [
            "not a picture that can be decoded", "no such file",
        ]  # fmt: skip
        assert len(done.complaints) == 2
        assert "no such file" in (here / "t.html").read_text()
        (here / "twice.csv").write_text("id,path\na,broken.jpg\nb,broken.jpg\n")
        done = lmk("tag", "twice.csv", "--tagger", tagger, "--json")
        assert [json.loads(line)["picture"] for line in done.out.splitlines()] == ["a", "b"]

    def test_calls_that_are_wrong(
        self, lmk: Run, tagger: Path, tag_index: Path, tiny: Path
    ) -> None:
        ask = ("tag", "queries/q_castle.jpg")
        lmk(*ask, "-i", tag_index, "--tagger", tagger).refused(2, "an index and a tagger")
        lmk(*ask, "--tagger", tiny).refused(2, "knows no tags", "lmk train")
        lmk(*ask, "--tagger", "none").refused(2, "no such tagger", "lmk train tags")
        lmk(*ask, "-i", tagger).refused(2, "is not an index")
        lmk("tag", "queries", "gallery/../queries", "--tagger", tagger).refused(2, "two pictures")
        lmk(*ask, "--tagger", tagger, "-o", "no/where.csv").refused(2, "no such folder")

    def test_an_index_without_tags_cannot_vote(self, lmk: Run, here: Path, tiny: Path) -> None:
        assert lmk("build-index", "bank", "--model", tiny, "-o", "bare.lmk").code == 0
        lmk("tag", "queries/q_castle.jpg", "-i", "bare.lmk").refused(2, "no picture of the index")


class TestThresholds:
    def test_learnt_kept_and_used(
        self, lmk: Run, tagger: Path, here: Path, tag_table: Table
    ) -> None:
        known = tag_table(here / "known.csv", "queries")
        with known.open("a") as file:
            file.write("extra,queries/q_none0.jpg,zebra\n")
        call = ("tag-thresholds", "--tagger", tagger, "--data", known, "--precision", 1)
        call += ("--confidence", 0.5)
        done = lmk(*call, "--json")
        assert done.code == 0
        assert done.complaints == [f"lmk: {known}: the tagger does not know 1 tag: zebra"]
        found = json.loads(done.out)
        assert (found["pictures"], found["precision"], found["recall"]) == (10, 1, 0.5)
        assert found["without_picture"] == ["unicorn"]
        assert found["tags"]["castle"]["reached"]
        given = json.loads(lmk("tag", "queries/q_castle.jpg", "--tagger", tagger, "--json").out)
        needed = {one["tag"]: one["threshold"] for one in given["best"]}
        assert needed["castle"] == found["tags"]["castle"]["value"]
        assert needed["unicorn"] == 0.5
        text = lmk(*call).out
        assert "reach precision 1 and recall 0.5 on 10 pictures, the ones that" in text
        assert "no picture, so the threshold stays 0.5: unicorn" in text

    def test_kept_with_an_index_and_its_relations(
        self, lmk: Run, tag_index: Path, here: Path, tag_table: Table
    ) -> None:
        known = tag_table(here / "known.csv", "queries")
        (here / "relations.csv").write_text("child,parent\ncastle,building\n")
        done = lmk("tag-thresholds", "-i", tag_index, "--data", known, "--relations",
                   "relations.csv", "--precision", 0.3, "--recall", 0)  # fmt: skip
        assert done.code == 0, done
        tags = tags_of(lmk("tag", "queries/q_castle.jpg", "-i", tag_index, "--json").out)
        assert tags["building"] == tags["castle"]
        lmk("index", "add", tag_index, "bank", "--distractors")
        assert lmk("tag", "queries/q_castle.jpg", "-i", tag_index).code == 0

    def test_what_follows_from_a_tag_that_the_tagger_does_not_know_is_true(
        self, lmk: Run, tagger: Path, here: Path, tag_table: Table
    ) -> None:
        known = tag_table(here / "known.csv", "queries")
        known.write_text(known.read_text().replace(",castle stone", ",chateau"))
        (here / "relations.csv").write_text("child,parent\nchateau,castle\n")
        done = lmk("tag-thresholds", "--tagger", tagger, "--data", known, "--relations",
                   "relations.csv", "--json")  # fmt: skip
        assert done.complaints == [f"lmk: {known}: the tagger does not know 1 tag: chateau"]
        found = json.loads(done.out)["tags"]
        assert found["castle"]["pictures"] == 1
        assert found["castle"]["value"] is not None

    def test_a_tag_that_every_picture_has_is_named(
        self, lmk: Run, tagger: Path, here: Path
    ) -> None:
        (here / "known.csv").write_text("id,path,tags\na,queries/q_castle.jpg,castle\n")
        done = lmk("tag-thresholds", "--tagger", tagger, "--data", "known.csv")
        assert done.code == 0
        (said,) = done.complaints
        assert said.startswith("lmk: known.csv: every picture has 1 tag: castle; ")

    def test_a_precision_to_be_sure_of(
        self, lmk: Run, tagger: Path, here: Path, tag_table: Table
    ) -> None:
        """Of nine pictures no tag has enough of them."""
        known = tag_table(here / "known.csv", "queries")
        call = ("tag-thresholds", "--tagger", tagger, "--data", known)
        done = lmk(*call)
        assert done.code == 0 and "precision 0.9 and recall 0.5 with confidence 0.8" in done.out
        assert "0 of 4 tags reach" in done.out
        (unsure,) = (
            line for line in done.out.splitlines() if line.startswith("reached, but on too")
        )
        assert "castle" in unsure
        sure = json.loads(lmk(*call, "--json").out)
        measured = json.loads(lmk(*call, "--json", "--confidence", 0.5).out)
        assert (sure["confidence"], measured["confidence"]) == (0.8, None)
        assert "castle" in sure["unsure"] and measured["unsure"] == []
        castle = [found["tags"]["castle"] for found in (sure, measured)]
        assert [one.pop("reached") for one in castle] == [False, True] and castle[0] == castle[1]
        assert lmk(*call, "--confidence", 1).code == 2

    def test_tiles_go_with_the_thresholds(
        self, lmk: Run, tagger: Path, here: Path, tag_table: Table
    ) -> None:
        known = tag_table(here / "known.csv", "queries", 3)
        ask = ("tag", "queries/q_castle.jpg", "--tagger", tagger, "--json")
        assert lmk(*ask, "--tiles").err == ""  # nothing was learnt yet
        tiled = json.loads(lmk(*ask, "--tiles").out)["best"][0]["score"]
        assert lmk("tag-thresholds", "--tagger", tagger, "--data", known).code == 0
        assert "run lmk tag-thresholds with --tiles" in lmk(*ask, "--tiles").err
        assert lmk("tag-thresholds", "--tagger", tagger, "--data", known, "--tiles").code == 0
        done = lmk(*ask)
        assert done.err == ""
        assert json.loads(done.out)["best"][0]["score"] == pytest.approx(tiled)

    def test_those_of_another_head_are_refused(
        self, lmk: Run, tagger: Path, here: Path, tag_table: Table
    ) -> None:
        known = tag_table(here / "known.csv", "queries")
        assert lmk("tag-thresholds", "--tagger", tagger, "--data", known).code == 0
        head = json.loads((tagger / "tag_thresholds.json").read_text()) | {"tagger": "other"}
        write_with_checksum(tagger / "tag_thresholds.json", json.dumps(head).encode())
        ask = ("tag", "queries/q_castle.jpg", "--tagger", tagger)
        lmk(*ask).refused(1, "chosen for other tags", "lmk tag-thresholds")

    def test_those_of_other_steps_are_refused(self, tag_index: Path) -> None:
        with open_tagger(tag_index, votes=True) as opened:
            opened.save(TagThresholds(tagger=opened.fingerprint))
        for kept, steps in (
            (True, (*SCORED, VoteStep(k=2), ThresholdStep(value=0.7))),
            (False, (*SCORED[:-1], PenaltyStep(top=3), VoteStep())),
            (False, (VoteStep(),)),
        ):
            with Recognizer.open(tag_index, pipeline=Pipeline(steps=steps)) as recognizer:
                if kept:
                    assert VoteTagger(recognizer).thresholds.tagger
                else:
                    with pytest.raises(GalleryError, match="other steps"):
                        VoteTagger(recognizer)

    def test_what_they_cannot_be_learnt_from(
        self, lmk: Run, tagger: Path, tag_index: Path, here: Path, tag_table: Table
    ) -> None:
        call = ("tag-thresholds", "--data")
        tag_table(here / "train.csv", "gallery")
        lmk(*call, "train.csv", "-i", tag_index).refused(2, "is a picture of the index and")
        lmk(*call, "bank", "--tagger", tagger).refused(2, "no picture has a tag")
        (here / "gone.csv").write_text("id,path,tags\na,gone.jpg,castle\n")
        done = lmk(*call, "gone.csv", "--tagger", tagger)
        assert done.code == 2
        assert "can be read" in done.complaints[-1]


class TestQuery:
    def test_none_of_these_has_tags_where_there_is_a_tagger(
        self, lmk: Run, tagger: Path, here: Path
    ) -> None:
        ask = ("query", "queries/q_tower.jpg", "queries/q_none1.jpg", "-i", "sample.lmk")
        assert "tags:" not in lmk(*ask).out
        known, none = map(json.loads, lmk(*ask, "--tagger", tagger, "--json").out.splitlines())
        assert (known["label"], known["tags"], none["label"]) == ("tower", None, None)
        alone = json.loads(lmk("tag", "queries/q_none1.jpg", "--tagger", tagger, "--json").out)
        assert none["tags"] == alone["tags"]
        done = lmk(*ask, "--tagger", tagger, "--html", "q.html")
        assert done.out.count("  tags: ") == 1
        assert "Tags: " in (here / "q.html").read_text()

    def test_an_index_built_with_a_tagger_has_it(
        self, lmk: Run, tagger: Path, here: Path, tag_table: Table
    ) -> None:
        known = tag_table(here / "known.csv", "queries")
        assert lmk("tag-thresholds", "--tagger", tagger, "--data", known).code == 0
        assert lmk("build-index", "gallery", "--distractors", "bank", "--model", tagger,
                   "-o", "mine.lmk").code == 0  # fmt: skip
        lmk("index", "verify", "mine.lmk")
        line = lmk("query", "queries/q_none1.jpg", "-i", "mine.lmk", "--json").out
        alone = json.loads(lmk("tag", "queries/q_none1.jpg", "--tagger", tagger, "--json").out)
        assert json.loads(line)["tags"] == alone["tags"]
        with open_tagger(here / "mine.lmk") as own, open_tagger(tagger) as first:
            assert own.names == first.names
            assert own.fingerprint == first.fingerprint
            assert own.thresholds.model_dump() == first.thresholds.model_dump()
            own.save(own.thresholds.model_copy(update={"default": 0.25}))
        with open_tagger(here / "mine.lmk") as own:
            assert own.thresholds.default == 0.25
        with open_tagger(here / "mine.lmk", votes=True) as votes:
            assert votes.names == ("bridge", "castle", "tower")


def test_train_tags_is_short_for_the_preset(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def config(name: str, changes: object) -> None:
        asked.append(name)
        raise UsageError("enough")

    monkeypatch.setattr("lmk.embed.train.config.training_config", config)
    for name in ("tags", "landmarks-lite1"):
        lmk("train", name, "--data", "gallery", "-o", "mine").refused(2, "enough")
    assert asked == ["tags-lite1", "landmarks-lite1"]
