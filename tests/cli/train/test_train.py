"""`lmk train`: from pictures to an embedder for an index; its figures, its page, bad calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmk.cli.train.page import write_page
from lmk.embed.data.manifest import Manifest, read_manifest
from lmk.embed.errors import ManifestError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import feature_stream
from lmk.embed.tags.head import TagHead, load_tag_head
from lmk.embed.train.task_config import Tags
from lmk.eval.tune.train_validation import TagValidation, Validation

SETTINGS = {
    "name": "tiny",
    "model": {"backbone": "test_resnet", "neck": 16},
    "tasks": [{"task": "classes"}],
    "stages": [{"epochs": 2, "size": 48}],
    "batch": 4,
    "optimizer": {"lr": 0.02},
    "workers": 0,
}
Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def work(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tiny.json; the sample's pictures are named by their whole paths."""
    (tmp_path / "tiny.json").write_text(json.dumps(SETTINGS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_pictures_to_an_answer(work: Path, sample: Path, lmk: Run) -> None:
    gallery, bank = sample / "gallery", sample / "bank"
    done = lmk(
        "train", "tiny.json", "--data", gallery, "--val", gallery, "--distractors", bank,
        "-o", "mine",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert re.fullmatch(
        r"mine: trained on 12 pictures in 2 epochs, weights of epoch \d; curves: "
        r"mine/training/report.html; next: lmk build-index GALLERY --model mine\n",
        done.out,
    )
    warning, *epochs = done.complaints
    first = gallery / "bridge" / "0.jpg"
    assert warning == (
        f"lmk: --val: 12 of its 12 pictures are training pictures too (the first is {first}), "
        "so its scores are too high"
    )
    assert [line.partition(":")[0] for line in epochs] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert re.search(r"gap 0\.\d{4}|gap 1\.0000", done.err)
    assert lmk("build-index", gallery, "--model", "mine", "-o", "mine.lmk").code == 0
    answer = lmk("query", gallery / "tower" / "0.jpg", "-i", "mine.lmk", "--json")
    assert json.loads(answer.out)["best"] == "tower"


def test_as_json_and_going_on(work: Path, sample: Path, lmk: Run) -> None:
    call = ("train", "tiny.json", "--data", sample / "gallery", "-o", "mine", "--json")
    done = lmk(*call, "--set", "seed=4")
    facts = json.loads(done.out)
    assert done.err == "" and facts["embedder"] == "mine" and facts["best_epoch"] == 2
    assert [row["epoch"] for row in facts["epochs"]] == [1, 2]
    assert facts["epochs"][0]["gap"] is None and facts["epochs"][0]["classes"] > 0
    assert facts["skipped"] == []
    lmk(*call, "--set", "seed=4").refused(2, "mine: holds a training run already", "--resume")
    lmk(*call, "--resume").refused(2, "was started with other settings: seed")
    again = json.loads(lmk(*call, "--set", "seed=4", "--resume").out)
    assert again == facts


def test_beginning_with_another_embedder(work: Path, sample: Path, lmk: Run) -> None:
    call = ("train", "tiny.json", "--data", sample / "gallery")
    assert lmk(*call, "-o", "first").code == 0
    frozen = ("--set", 'freeze=["backbone"]')
    assert lmk(*call, "-o", "second", "--weights", "first", *frozen).code == 0
    networks = [Embedder.load(work / name).network().state_dict() for name in ("first", "second")]
    same = {name for name in networks[0] if torch.equal(networks[0][name], networks[1][name])}
    assert all(name in same for name in networks[0] if name.startswith("backbone."))
    assert "neck.0.weight" not in same


class TestBadCalls:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["tiny"], "is neither a training preset"),
            (["tiny.json", "--set", "optimizer.rate=1"], "optimizer.rate: unknown key"),
            (["tiny.json", "--weights", "a", "--pretrained"], "give one of --weights and"),
            (["tiny.json", "--val-gallery", "x"], "--val-gallery: belongs to a validation"),
            (["tiny.json", "--distractors", "x"], "--distractors: belongs to a validation"),
            (["tiny.json", "--val", "no-such"], "no-such: no such folder or file"),
            (["tiny.json", "--weights", "no-such"], "no-such: no such weights file"),
            (["tiny.json", "--device", "tpu"], "Invalid value for '--device'"),
        ],
    )
    def test_one_line(
        self, words: list[str], message: str, work: Path, sample: Path, lmk: Run
    ) -> None:
        done = lmk("train", *words, "--data", sample / "gallery", "-o", "mine")
        done.refused(2, message)
        assert not (work / "mine").exists()

    def test_pictures(self, work: Path, sample: Path, lmk: Run) -> None:
        (work / "empty").mkdir()
        (work / "empty.csv").write_text("id,path,landmark_id\n")
        (work / "plain.csv").write_text("id,path\na,a.jpg\nb,b.jpg\n")
        call = ("train", "tiny.json", "-o", "mine", "--data")
        lmk(*call, "empty").refused(2, "no pictures in this folder")
        lmk(*call, "empty.csv").refused(2, "holds no rows")
        lmk(*call, "plain.csv").refused(2, "the pictures have 0 landmarks", "landmark_id")
        lmk(*call, sample / "gallery", "--val", sample / "bank").refused(
            2, "--val: no picture shares a landmark with another one"
        )

    def test_a_gpu_that_is_not_there(
        self, work: Path, sample: Path, lmk: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        call = ("train", "tiny.json", "--data", sample / "gallery", "-o", "mine")
        lmk(*call, "--device", "cuda").refused(2, "no GPU that torch can use", "--device cpu")

    def test_no_folder_for_it(self, work: Path, sample: Path, lmk: Run) -> None:
        call = ("train", "tiny.json", "--data", sample / "gallery", "-o", "no/such/mine")
        lmk(*call).refused(2, "no such folder")


def slow_figures(
    queries: list[tuple[np.ndarray, set[str]]],
    gallery: list[tuple[np.ndarray, set[str]]],
    others: list[np.ndarray],
    same_set: bool,
) -> dict[str, float]:
    """GAP, mAP@100 and accuracy by the contests' definitions, in plain loops."""
    answers, precisions, right = [], [], 0
    for i, (vector, labels) in enumerate(queries):
        found = sorted(
            (-float(vector @ other), j)
            for j, (other, _) in enumerate(gallery)
            if not (same_set and i == j)
        )
        hits = [bool(labels & gallery[j][1]) for _, j in found]
        answers.append((found[0][0], hits[0]))
        right += hits[0]
        if any(hits):
            total, seen = 0.0, 0
            for rank, hit in enumerate(hits[:100], 1):
                seen += hit
                total += hit * seen / rank
            precisions.append(total / min(100, sum(hits)))
    answers += [(min(-float(vector @ v) for v, _ in gallery), False) for vector in others]
    total, seen = 0.0, 0
    for rank, (_, hit) in enumerate(sorted(answers, key=lambda answer: answer[0]), 1):
        seen += hit
        total += hit * seen / rank
    asked = sum(bool(labels) for _, labels in queries)
    return {"gap": total / asked, "map": float(np.mean(precisions)), "accuracy": right / asked}


class TestValidation:
    @pytest.mark.parametrize("apart", [False, True])
    def test_against_plain_loops(self, apart: bool, sample: Path, tiny: Path) -> None:
        embedder = Embedder.load(tiny)
        whole, bank = read_manifest(sample / "gallery"), read_manifest(sample / "bank")
        held_out, gallery = whole, None
        if apart:
            held_out = Manifest(whole.root, whole.rows[::3])
            gallery = Manifest(whole.root, tuple(r for r in whole.rows if r not in held_out.rows))
        got = Validation(held_out, bank, gallery)(embedder)

        def rows(manifest: Manifest) -> list[tuple[np.ndarray, set[str]]]:
            vectors = embedder.embed([manifest.file(row) for row in manifest.rows])[0].vectors
            return [(v, set(r.labels)) for v, r in zip(vectors, manifest.rows, strict=True)]

        queries = rows(held_out)
        expected = slow_figures(
            queries,
            queries if gallery is None else rows(gallery),
            [vector for vector, _ in rows(bank)],
            gallery is None,
        )
        assert got == pytest.approx(expected)
        alone = Validation(held_out, None, gallery)(embedder)
        assert alone["gap"] >= got["gap"] and alone["map"] == got["map"]

    def test_nothing_can_be_found(self, sample: Path) -> None:
        whole = read_manifest(sample / "gallery")
        ones = Manifest(whole.root, whole.rows[::4])  # one picture of each landmark
        with pytest.raises(ManifestError, match=r"--val: no picture shares a landmark"):
            Validation(ones)
        Validation(ones, gallery=whole)


class TestTags:
    @pytest.fixture
    def table(self, work: Path, sample: Path) -> Path:
        """The gallery's pictures with their place and "b"; the bank's without tags."""
        rows = ["id,path,tags"]
        for folder in ("gallery", "bank"):
            manifest = read_manifest(sample / folder)
            for row in manifest.rows:
                tags = f"{row.labels[0]} b" if row.labels else ""
                rows.append(f"{folder}/{row.id},{folder}/{row.path},{tags}")
        path = work / "tags.csv"
        path.write_text("\n".join(rows))
        settings = {
            **SETTINGS,
            "model": {"backbone": "test_resnet", "neck": None},
            "tasks": [{"task": "tags"}],
            "best_by": "tag_map",
        }
        (work / "tags.json").write_text(json.dumps(settings))
        return path

    def test_from_pictures_to_tags(self, table: Path, sample: Path, lmk: Run) -> None:
        done = lmk(
            "train", "tags.json", "--data", table, "--root", sample, "--val", table,
            "-o", "mine", "--json",
        )  # fmt: skip
        assert done.code == 0 and "18 of its 18 pictures are training pictures too" in done.err
        epochs = json.loads(done.out)["epochs"]
        assert all(0 < row["tag_map"] <= 1 and "gap" not in row for row in epochs)
        assert "mAP of tags" in Path("mine/training/report.html").read_text("utf-8")
        embedder, manifest = Embedder.load(Path("mine")), read_manifest(table, root=sample)
        head = load_tag_head(Path("mine"), embedder.feature_fingerprint)
        best = max(row["tag_map"] for row in epochs)
        again = TagValidation(manifest, Tags(task="tags"))(embedder, head)
        assert again["tag_map"] == pytest.approx(best, abs=1e-3)
        scores = {}
        for ids, features, _ in feature_stream(manifest, embedder):
            scores |= dict(zip(ids, head.probabilities(features), strict=True))
        precisions = []
        for column, name in enumerate(head.names):
            ranked = sorted(manifest.rows, key=lambda row: -scores[row.id][column])
            hits = [name in row.labels for row in ranked]
            found = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
            precisions.append(sum(found) / len(found))
        assert again["tag_map"] == pytest.approx(np.mean(precisions), abs=1e-6)

    def test_bad_calls(self, table: Path, sample: Path, lmk: Run) -> None:
        common = ("train", "tags.json", "--data", table, "--root", sample, "-o", "mine")
        done = lmk(*common, "--val", table, "--distractors", sample / "bank")
        assert done.code == 2
        assert "--distractors: belongs to the validation of landmarks, not of tags" in done.err
        done = lmk(*common, "--val", sample / "bank")
        assert done.code == 2 and "--val: no picture has a tag" in done.err

    def test_tags_that_the_embedder_does_not_know(self, tiny: Path, sample: Path) -> None:
        embedder = Embedder.load(tiny)
        weight = np.ones((2, embedder.feature_dim), np.float32)
        head = TagHead(("x", "y"), weight, np.zeros(2, np.float32), "sigmoid", True, "")
        validate = TagValidation(read_manifest(sample / "gallery"), Tags(task="tags"))
        assert validate(embedder, head) == {"tag_map": 0.0}
        with pytest.raises(ValueError, match="has no tags"):
            validate(embedder, None)

    def test_labels_with_weights_are_read_as_those_of_the_training(
        self, tiny: Path, sample: Path
    ) -> None:
        """Of 12 pictures 4 are bridges for sure, and 4 maybe."""
        embedder, plain = Embedder.load(tiny), read_manifest(sample / "gallery")
        sure = {"bridge": "bridge:0.8", "castle": "bridge:0.5", "tower": "bridge:-1"}
        rows = tuple(replace(row, labels=(sure[row.labels[0]],)) for row in plain.rows)
        weight = np.zeros((2, embedder.feature_dim), np.float32)
        head = TagHead(("bridge", "y"), weight, np.zeros(2, np.float32), "sigmoid", True, "")
        for loss, share in (("bce", 4 / 12), ("softmax", 8 / 12)):
            settings = Tags.model_validate(
                {"task": "tags", "loss": {"kind": loss}, "weighted": True}
            )
            found = TagValidation(replace(plain, rows=rows), settings)(embedder, head)
            assert found["tag_map"] == pytest.approx(share)  # all scores are the same
        with pytest.raises(ManifestError, match="--val: the label 'bridge' has no weight"):
            TagValidation(plain, settings)
        likely = Tags(task="tags", weighted=True, positive_from=None)
        found = TagValidation(replace(plain, rows=rows[:1] + plain.rows[1:]), likely)(
            embedder, head
        )
        assert found["tag_map"] == pytest.approx(4 / 12)  # .8 and three without a probability


class TestPage:
    def write(self, folder: Path, steps: int, figures: bool) -> str:
        training = folder / "training"
        training.mkdir(parents=True)
        (training / "config.json").write_text('{"name": "<tiny>"}')
        lines = [f"{i},{i / steps},{5 - 4 * i / steps}" for i in range(steps)]
        (training / "steps.csv").write_text("\n".join(["step,rate,classes", *lines, ""]))
        rows = [f"{e},64,{5 / e},1.0," + ("0.5,0.4,0.6" if figures else ",,") for e in (1, 2)]
        header = "epoch,size,classes,seconds,gap,map,accuracy"
        (training / "epochs.csv").write_text("\n".join([header, *rows, ""]))
        return write_page(folder).read_text()

    def test_curves(self, tmp_path: Path) -> None:
        text = self.write(tmp_path / "run", 1000, True)
        assert re.findall(r'<div id="(\w+)">', text) == ["classes", "rate", "validation"]
        points = [
            len(line.split()) for line in re.findall(r'<polyline[^>]* points="([^"]*)"', text)
        ]
        assert points == [250, 250, 2, 2, 2]
        first, last = re.findall(r'<polyline class="of-1" points="([^" ]+) .*?([^" ]+) ?"', text)[0]
        assert float(first.split(",")[1]) < float(last.split(",")[1])  # the loss falls
        assert "GAP" in text and "&lt;tiny&gt;" in text and "Complete epochs: 2" in text

    def test_it_needs_nothing_else(self, tmp_path: Path) -> None:
        text = self.write(tmp_path / "run", 3, False)
        assert not re.search(r"<script|<link|src=|https?://(?!www\.w3\.org)", text)
        assert 'id="validation"' not in text
        assert text.count("<title") == text.count("</title>") == 3

    def test_before_the_first_step(self, tmp_path: Path) -> None:
        (tmp_path / "run" / "training").mkdir(parents=True)
        (tmp_path / "run" / "training" / "config.json").write_text("{}")
        text = write_page(tmp_path / "run").read_text()
        assert "No epoch is complete yet." in text and "<svg" not in text

    def test_one_step(self, tmp_path: Path) -> None:
        text = self.write(tmp_path / "run", 1, True)
        assert text.count("<circle") == 2
