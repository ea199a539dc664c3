"""The loop: what it leaves, going on exactly, one batch however it is cut, faults."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.errors import CheckpointDamaged, LmkError, ManifestError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.train.checkpoint import load_checkpoint, save_checkpoint
from lmk.embed.train.config import TrainConfig
from lmk.embed.train.log import read_log
from lmk.embed.train.loop import TrainingResult, train
from lmk.embed.train.network import start_network
from lmk.embed.train.run_folder import RunFolder

Small = Callable[..., TrainConfig]
FROZEN = {"model": {"backbone": "test_resnet", "neck": None}, "freeze_norms": True}


class Stopped(Exception):
    pass


def stop_after(steps: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done == steps:
            raise Stopped

    return progress


def losses(folder: Path) -> list[float]:
    rows = read_log(folder / "training" / "steps.csv")
    assert [int(row["step"]) for row in rows] == list(range(len(rows)))
    return [float(row["classes"]) for row in rows]


def separation(embedder: Embedder, manifest: Manifest) -> float:
    """By how much the pictures of one landmark are nearer to each other than to the others."""
    embeddings, _ = embedder.embed([manifest.file(row) for row in manifest.rows])
    labels = np.array([row.labels[0] for row in manifest.rows])
    same = labels[:, None] == labels
    cosines = embeddings.vectors @ embeddings.vectors.T
    return float(cosines[same & ~np.eye(len(labels), dtype=bool)].mean() - cosines[~same].mean())


@pytest.fixture(scope="module")
def done(small: Small, gallery: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runs") / "run"
    rows: list[Any] = []
    result = train(small(), [gallery], folder, device="cpu", epoch_done=rows.append)
    return result, rows


class TestWhatItLeaves:
    def test_an_embedder_that_knows_the_landmarks(
        self, done: tuple[TrainingResult, Any], small: Small, gallery: Manifest
    ) -> None:
        result, _ = done
        embedder = Embedder.named(str(result.folder))
        assert embedder.dim == 16 and embedder.config.size == 64 and embedder.config.name == "small"
        before = Embedder.of(embedder.config, start_network(small()).eval())
        assert separation(embedder, gallery) > 5 * separation(before, gallery)

    def test_its_graph_is_its_network(self, done: tuple[TrainingResult, Any]) -> None:
        embedder = Embedder.load(done[0].folder)
        picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (from_graph,) = embedder.features([picture])
        with torch.no_grad():
            plain = embedder.network()(torch.from_numpy(picture)[None])[0].numpy()
        cosine = from_graph @ plain / np.linalg.norm(from_graph) / np.linalg.norm(plain)
        assert cosine >= 0.999

    def test_logs(self, done: tuple[TrainingResult, Any]) -> None:
        result, rows = done
        values = losses(result.folder)
        assert len(values) == 3 * 4  # 20 pictures in micro-batches of 6
        assert np.mean(values[-4:]) < np.mean(values[:4])
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        assert [float(row["classes"]) for row in rows] == pytest.approx(
            [np.mean(values[i : i + 4]) for i in (0, 4, 8)], rel=1e-5
        )
        assert [row["epoch"] for row in result.epochs] == ["1", "2", "3"]
        rates = [float(row["rate"]) for row in read_log(result.folder / "training" / "steps.csv")]
        assert rates[:4] == pytest.approx([0.125, 0.375, 0.625, 0.875])  # an epoch of warm-up
        assert rates[4:] == pytest.approx(
            [0.5 * (1 + np.cos(np.pi * (i + 0.5) / 8)) for i in range(8)]
        )
        assert not result.skipped and result.best == 3

    def test_gem_was_learnt(self, done: tuple[TrainingResult, Any]) -> None:
        assert load_file(done[0].folder / "weights.safetensors")["pool.p"].item() != 3

    def test_going_on_with_a_run_that_is_done_writes_the_same_embedder(
        self, done: tuple[TrainingResult, Any], small: Small, gallery: Manifest, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        shutil.copytree(done[0].folder, folder)
        before = Embedder.load(folder).fingerprint
        (folder / "config.json").unlink()
        again = train(small(workers=1), [gallery], folder, resume=True, device="cpu")
        assert Embedder.load(folder).fingerprint == before
        assert again.epochs == done[0].epochs

    def test_its_settings_run_again(self, done: tuple[TrainingResult, Any], small: Small) -> None:
        text = (done[0].folder / "training" / "config.json").read_text()
        assert TrainConfig.model_validate_json(text) == small()


VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {"ema": 0.9, "clip": 1.0},
    "adamw, accumulated, balanced": {
        "optimizer": {"kind": "adamw", "lr": 0.002},
        "batch": 3,
        "accumulate": 2,
        "sampling": "balanced",
    },
    "two sizes": {"stages": [{"epochs": 1, "size": 48}, {"epochs": 2, "size": 64}]},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_is_stopped_goes_on_as_if_it_never_was(
    name: str, small: Small, gallery: Manifest, tmp_path: Path
) -> None:
    """In the middle of the first epoch, at the end of it, and in the middle of the last."""
    config = small(**VARIANTS[name], save_minutes=0)
    train(config, [gallery], tmp_path / "whole", device="cpu")
    parts = tmp_path / "parts"
    for steps in (2, 5, 11):
        with pytest.raises(Stopped):
            train(
                config, [gallery], parts, resume=True, device="cpu", on_progress=stop_after(steps)
            )
        assert not (parts / "config.json").exists()
    train(config, [gallery], parts, resume=True, device="cpu")
    assert losses(parts) == losses(tmp_path / "whole")
    whole, other = (load_file(f / "weights.safetensors") for f in (tmp_path / "whole", parts))
    assert whole.keys() == other.keys()
    assert all(torch.equal(whole[key], other[key]) for key in whole)
    rows = [read_log(f / "training" / "epochs.csv") for f in (tmp_path / "whole", parts)]
    assert [row["classes"] for row in rows[0]] == [row["classes"] for row in rows[1]]


def test_micro_batches_that_are_accumulated_are_one_large_batch(
    small: Small, gallery: Manifest, tmp_path: Path
) -> None:
    """With class weights, whose sum differs from one micro-batch to the next; BatchNorm apart."""
    rows = (*gallery.rows[:9], *gallery.rows[12:])  # classes of 4, 4, 1, 4 and 4
    manifest = Manifest(gallery.root, rows)
    common = {**FROZEN, "tasks": [{"task": "classes", "class_weights": True}]}
    train(small(**common, batch=8), [manifest], tmp_path / "one", device="cpu")
    cut = small(**common, batch=2, accumulate=4)
    train(cut, [manifest], tmp_path / "four", device="cpu")
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_a_part_of_the_start_is_kept(small: Small, gallery: Manifest, tmp_path: Path) -> None:
    for share in (0.0, 0.25):
        train(small(keep_start=share), [gallery], tmp_path / f"{share}", device="cpu")
    trained, blended = (load_file(tmp_path / f / "weights.safetensors") for f in ("0.0", "0.25"))
    start = start_network(small()).state_dict()
    for name in trained:
        if trained[name].is_floating_point():
            expected = 0.25 * start[name] + 0.75 * trained[name]
            torch.testing.assert_close(blended[name], expected)


class TestValidation:
    def test_the_best_epoch_is_kept(self, small: Small, gallery: Manifest, tmp_path: Path) -> None:
        seen = []
        figures = [0.2, 0.9, 0.4]

        def validate(embedder: Embedder, tags: object) -> dict[str, float]:
            seen.append(embedder.fingerprint)
            return {"gap": figures[len(seen) - 1], "map": 0.5, "accuracy": 0.25}

        result = train(small(), [gallery], tmp_path / "run", device="cpu", validate=validate)
        assert result.best == 2 and len(set(seen)) == 3
        assert Embedder.load(tmp_path / "run").fingerprint == seen[1]
        assert [row["gap"] for row in result.epochs] == ["0.2000", "0.9000", "0.4000"]
        assert {row["map"] for row in result.epochs} == {"0.5000"}

    def test_by_another_figure(self, small: Small, gallery: Manifest, tmp_path: Path) -> None:
        values = iter([0.3, 0.2, 0.1])
        result = train(
            small(best_by="map"),
            [gallery],
            tmp_path / "run",
            device="cpu",
            validate=lambda embedder, tags: {
                "gap": 1 - (v := next(values)),
                "map": v,
                "accuracy": 0,
            },
        )
        assert result.best == 1


class TestPictures:
    def test_those_that_cannot_be_read_are_listed_and_training_goes_on(
        self, small: Small, photos: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "gallery"
        shutil.copytree(photos / "gallery", folder)
        (folder / "place_0" / "0.jpg").write_bytes(b"no picture")
        manifest = read_manifest(folder)
        (folder / "place_1" / "2.jpg").unlink()
        result = train(small(), [manifest], tmp_path / "run", device="cpu")
        reasons = {Path(skip.path).parent.name: skip.reason for skip in result.skipped}
        assert reasons == {
            "place_0": "not a picture that can be decoded",
            "place_1": "no such file",
        }
        with (tmp_path / "run" / "training" / "skipped.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 2
        assert len(losses(tmp_path / "run")) == 12

    def test_none_can_be_read(self, small: Small, tmp_path: Path) -> None:
        rows = tuple(Row(f"{i}", f"{i}.jpg", (f"l{i % 2}",)) for i in range(4))
        with pytest.raises(LmkError, match=r"4 pictures in a row cannot be read.*no such file"):
            train(small(), [Manifest(tmp_path, rows)], tmp_path / "run", device="cpu")

    def test_a_landmark_with_one_picture(
        self, small: Small, gallery: Manifest, tmp_path: Path
    ) -> None:
        manifest = Manifest(gallery.root, gallery.rows[:5])
        dynamic = [{"task": "classes", "dynamic_margin": {"form": "rank"}, "class_weights": True}]
        config = small(tasks=dynamic, sampling="sqrt")
        train(config, [manifest], tmp_path / "run", device="cpu")
        assert np.isfinite(losses(tmp_path / "run")).all()

    def test_pictures_without_a_label(
        self, small: Small, gallery: Manifest, bank: Manifest, tmp_path: Path
    ) -> None:
        """Skipped they add nothing to the loss; as background they are a class."""
        for unlabelled, classes in (("skip", 5), ("background", 6)):
            config = small(tasks=[{"task": "classes", "unlabelled": unlabelled}])
            folder = tmp_path / unlabelled
            train(config, [gallery, bank], folder, device="cpu")
            state = load_file(folder / "training" / "last.safetensors")
            assert state["tasks.0.loss.loss.W"].shape == (16, classes)


class TestRefusals:
    def test_no_labels(self, small: Small, bank: Manifest, tmp_path: Path) -> None:
        with pytest.raises(
            ManifestError, match=r"--data: the pictures have 0 landmarks.*landmark_id"
        ):
            train(small(), [bank], tmp_path / "run", device="cpu")

    def test_no_pictures(self, small: Small, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="there are no pictures"):
            train(small(), [Manifest(tmp_path, ())], tmp_path / "run", device="cpu")

    def test_a_run_is_there(
        self, done: tuple[TrainingResult, Any], small: Small, gallery: Manifest
    ) -> None:
        with pytest.raises(
            UsageError, match="holds a training run already; continue it with --resume"
        ):
            train(small(), [gallery], done[0].folder, device="cpu")

    def test_a_run_of_other_settings_or_pictures(
        self, done: tuple[TrainingResult, Any], small: Small, gallery: Manifest, bank: Manifest
    ) -> None:
        def resume(config: TrainConfig, *manifests: Manifest) -> None:
            train(config, manifests, done[0].folder, resume=True, device="cpu")

        with pytest.raises(UsageError, match="with other settings: batch, seed;"):
            resume(small(batch=3, seed=1), gallery)
        with pytest.raises(UsageError, match="with other settings: the training pictures;"):
            resume(small(), gallery, bank)

    def test_a_run_of_an_older_lmk_goes_on(
        self, done: tuple[TrainingResult, Any], small: Small, gallery: Manifest, tmp_path: Path
    ) -> None:
        """Settings that it did not know have their defaults; what they are not is seen."""
        shutil.copytree(done[0].folder, tmp_path / "run")
        last = tmp_path / "run" / "training" / "last.safetensors"
        tensors, state = load_checkpoint(last)
        del state["config"]["augment"]["rotate_often"], state["config"]["keep_start"]
        for task in state["config"]["tasks"]:
            task["share"] = task.pop("loss_weight")
        save_checkpoint(last, tensors, state)
        train(small(), [gallery], tmp_path / "run", resume=True, device="cpu")
        with pytest.raises(UsageError, match="with other settings: augment, keep_start;"):
            other = small(augment={"rotate_often": 0.5}, keep_start=0.5)
            train(other, [gallery], tmp_path / "run", resume=True, device="cpu")
        state["config"]["of_tomorrow"] = 1
        save_checkpoint(last, tensors, state)
        with pytest.raises(UsageError, match=r"with other settings: .*of_tomorrow"):
            train(small(), [gallery], tmp_path / "run", resume=True, device="cpu")

    def test_a_damaged_checkpoint(
        self, done: tuple[TrainingResult, Any], small: Small, gallery: Manifest, tmp_path: Path
    ) -> None:
        shutil.copytree(done[0].folder, tmp_path / "run")
        last = tmp_path / "run" / "training" / "last.safetensors"
        last.write_bytes(last.read_bytes()[:1000])
        with pytest.raises(CheckpointDamaged, match=r"is not a checkpoint .*: mv .*previous"):
            train(small(), [gallery], tmp_path / "run", resume=True, device="cpu")

    def test_a_flipped_byte_and_the_way_out(
        self, done: tuple[TrainingResult, Any], small: Small, gallery: Manifest, tmp_path: Path
    ) -> None:
        """The checkpoint before the damaged one goes on to the same weights."""
        shutil.copytree(done[0].folder, tmp_path / "run")
        training = tmp_path / "run" / "training"
        last, previous = training / "last.safetensors", training / "previous.safetensors"
        content = bytearray(last.read_bytes())
        content[-1000] ^= 1
        last.write_bytes(content)

        def resume() -> TrainingResult:
            return train(small(), [gallery], tmp_path / "run", resume=True, device="cpu")

        with pytest.raises(CheckpointDamaged, match="has changed since it was written") as caught:
            resume()
        assert f"after 2 epochs and 0 steps: mv {previous} {last}" in str(caught.value)
        previous.replace(last)
        resume()
        before = (done[0].folder / "weights.safetensors").read_bytes()
        assert (tmp_path / "run" / "weights.safetensors").read_bytes() == before

    def test_no_checkpoint_is_whole(
        self, done: tuple[TrainingResult, Any], small: Small, gallery: Manifest, tmp_path: Path
    ) -> None:
        shutil.copytree(done[0].folder, tmp_path / "run")
        training = tmp_path / "run" / "training"
        for name in ("last.safetensors", "previous.safetensors"):
            (training / name).write_bytes(b"none")
        with pytest.raises(CheckpointDamaged, match=f"remove {training}, and run the same"):
            train(small(), [gallery], tmp_path / "run", resume=True, device="cpu")

    def test_a_folder_of_something_else(
        self, small: Small, gallery: Manifest, tmp_path: Path
    ) -> None:
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "dear.txt").write_text("")
        with pytest.raises(UsageError, match="exists already and is not a training run"):
            train(small(), [gallery], tmp_path / "letters", device="cpu")

    def test_a_file_of_that_name(self, small: Small, gallery: Manifest, tmp_path: Path) -> None:
        (tmp_path / "letter").write_text("")
        with pytest.raises(UsageError, match="exists already and is not a training run"):
            train(small(), [gallery], tmp_path / "letter", device="cpu")

    def test_a_folder_that_another_process_of_the_run_is_making(
        self, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is empty when this one looks whether it is there, and full a moment later."""
        listed = Path.iterdir

        def made_meanwhile(path: Path) -> Iterator[Path]:
            (tmp_path / "run" / "training").mkdir(exist_ok=True)
            return iter(list(listed(path)))

        (tmp_path / "run").mkdir()
        monkeypatch.setattr(Path, "iterdir", made_meanwhile)
        folder = RunFolder(tmp_path / "run")
        assert folder.start(small(), "digest", resume=False, write=False) is None

    def test_a_loss_that_is_not_finite(
        self, small: Small, gallery: Manifest, tmp_path: Path
    ) -> None:
        config = small(optimizer={"lr": 1e30}, schedule={"warmup": 0})
        with pytest.raises(
            LmkError, match=r"the loss is not finite at step .*smaller optimizer.lr"
        ):
            train(config, [gallery], tmp_path / "run", device="cpu")

    def test_a_gpu_that_is_not_there(
        self, small: Small, gallery: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UsageError, match=r"there is no GPU that torch can use.*--device cpu"):
            train(small(), [gallery], tmp_path / "run", device="cuda")
        assert not (tmp_path / "run").exists()

    def test_fp16_on_a_cpu(self, small: Small, gallery: Manifest, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="precision fp16: needs a GPU"):
            train(small(precision="fp16"), [gallery], tmp_path / "run", device="cpu")


def test_bf16_on_a_cpu_that_has_it(small: Small, gallery: Manifest, tmp_path: Path) -> None:
    if not torch.cpu._is_avx512_bf16_supported():
        with pytest.raises(UsageError, match="this CPU has no bf16 arithmetic"):
            train(small(precision="bf16"), [gallery], tmp_path / "run", device="cpu")
        return
    for precision in ("bf16", "fp32"):
        config = small(**FROZEN, precision=precision)
        train(config, [gallery], tmp_path / precision, device="cpu")
    reduced, full = losses(tmp_path / "bf16"), losses(tmp_path / "fp32")
    assert reduced != full
    assert reduced[:4] == pytest.approx(full[:4], rel=0.1)
