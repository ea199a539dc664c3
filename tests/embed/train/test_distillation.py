"""Distillation: the ensemble's vectors, the losses against numpy, and a run that follows them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from lmk.embed.data.manifest import Manifest, read_manifest
from lmk.embed.embeddings import unit_rows
from lmk.embed.errors import ManifestError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.whitening import fit_whitening
from lmk.embed.train import build_tasks
from lmk.embed.train.config import TrainConfig
from lmk.embed.train.distillation import DistillationTask, TeacherVectors, teacher_vectors
from lmk.embed.train.log import read_log
from lmk.embed.train.loop import train
from lmk.embed.train.task_config import Distillation

Small = Callable[..., TrainConfig]
DIM = 8
SETTINGS = Distillation(
    task="distillation",
    teachers=({"model": "one", "sizes": [48, 64]}, {"model": "two", "sizes": [64]}),
    relation=2.0,
)


@pytest.fixture(scope="module", autouse=True)
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Embedder]]:
    """Small networks of random weights by the names "one" and "two"."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, name in enumerate(("one", "two")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = timm.create_model("test_resnet", num_classes=0)
        save_file(network.state_dict(), folder / f"{name}.safetensors")
    named = Embedder.named

    def small(name: str, *, size: int) -> Embedder:
        return named("test_resnet", weights=folder / f"{name}.safetensors", size=size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedder, "named", small)
        yield small


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests, so that the teachers run once."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def taught(gallery: Manifest, bank: Manifest, store: Path) -> TeacherVectors:
    return teacher_vectors(SETTINGS, [gallery, bank], DIM, store)


def test_the_ensemble(
    taught: TeacherVectors, gallery: Manifest, bank: Manifest, teachers: Callable[..., Embedder]
) -> None:
    """Sizes summed, networks side by side, PCA-whitened: once more, picture by picture."""
    files = [m.file(row) for m in (gallery, bank) for row in m.rows]
    units = {
        (name, size): teachers(name, size=size).embed(files)[0].vectors
        for name, size in (("one", 48), ("one", 64), ("two", 64))
    }
    first = unit_rows(units["one", 48] + units["one", 64])
    both = np.concatenate([first, units["two", 64]], axis=1)
    expected = fit_whitening(both, DIM, SETTINGS.power).apply(both)
    assert taught.vectors.shape == (28, DIM) and taught.known.all() and not taught.skipped
    cosines = (taught.vectors.astype(np.float32) * expected).sum(axis=1)
    assert cosines.min() > 0.999


def test_pictures_that_cannot_be_read_have_none(
    gallery: Manifest, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(gallery.root, tmp_path / "gallery")
    (tmp_path / "gallery" / "place_1" / "0.jpg").write_bytes(b"broken")
    manifest = read_manifest(tmp_path / "gallery")
    taught = teacher_vectors(SETTINGS, [manifest], DIM, store)
    assert np.flatnonzero(~taught.known).tolist() == [4]
    assert not taught.vectors[4].any()
    np.testing.assert_allclose(
        np.linalg.norm(taught.vectors[taught.known].astype(np.float32), axis=1), 1, atol=2e-3
    )
    assert [skip.path for skip in taught.skipped] == ["place_1/0.jpg"]
    task = DistillationTask(SETTINGS, taught)
    assert task.weights(task.targets(np.arange(6))).tolist() == [1, 1, 1, 1, 0, 1]
    assert task.repeats("natural").tolist() == [1] * 4 + [0] + [1] * 15


def test_too_few_pictures(gallery: Manifest, store: Path) -> None:
    with pytest.raises(ManifestError, match=r"20 readable pictures .* too few .* 20 components"):
        teacher_vectors(SETTINGS, [gallery], 20, store)


@pytest.mark.parametrize("missing", [(), (1, 3)])
def test_losses(missing: tuple[int, ...]) -> None:
    """feature (1 - cos) + relation mean over the others (cos - cos)^2, in numpy."""
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng.normal(size=(6, DIM)))
    known = np.ones(6, dtype=bool)
    known[list(missing)] = False
    vectors[~known] = 0
    task = DistillationTask(SETTINGS, TeacherVectors(vectors.astype(np.float16), known))
    embeddings = torch.from_numpy(rng.normal(0, 4, (6, DIM))).float()
    targets = task.targets(np.arange(6))
    got = task(embeddings, targets).numpy()
    own, theirs = unit_rows(embeddings.numpy()).astype(float), targets.numpy().astype(float)
    for i in np.flatnonzero(known):
        others = [j for j in range(6) if j != i and known[j]]
        relation = np.mean([(own[i] @ own[j] - theirs[i] @ theirs[j]) ** 2 for j in others])
        assert got[i] == pytest.approx(1 - own[i] @ theirs[i] + 2 * relation, rel=1e-4)


def test_one_picture_has_no_relations() -> None:
    task = DistillationTask(
        SETTINGS, TeacherVectors(np.eye(1, DIM, dtype=np.float16), np.ones(1, dtype=bool))
    )
    losses = task(torch.eye(1, DIM), task.targets(np.array([0])))
    assert losses.tolist() == pytest.approx([0])


def config(small: Small, *more: dict[str, Any], **changes: Any) -> TrainConfig:
    model = {"backbone": "test_resnet", "neck": DIM, "neck_activation": None}
    tasks = [SETTINGS.model_dump(mode="json"), *more]
    return small(
        model=model,
        tasks=tasks,
        stages=[{"epochs": 12, "size": 64}],
        batch=14,
        optimizer={"kind": "adamw", "lr": 0.005},
        augment={"crop": 1, "flip": 0, "rotate": 0, "light": 0},
        **changes,
    )


def test_a_run(
    small: Small,
    gallery: Manifest,
    bank: Manifest,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes nearer to its teacher; going on it does not ask it again."""
    plan = config(small)
    run = tmp_path / "run"
    asked: list[str] = []
    result = train(
        plan,
        [gallery, bank],
        run,
        device="cpu",
        features=store,
        on_progress=lambda stage, done, total: asked.append(stage),
    )
    assert {"teacher one at 48 px", "teacher two at 64 px", "training"} <= set(asked)
    losses = [float(row["distillation"]) for row in result.epochs]
    assert losses[-1] < 0.8 * losses[0]
    monkeypatch.setattr(build_tasks, "teacher_vectors", None)
    train(plan, [gallery, bank], run, resume=True, device="cpu")


def test_with_classes_at_once(
    small: Small, gallery: Manifest, bank: Manifest, store: Path, tmp_path: Path
) -> None:
    """Labelled pictures count for both, unlabelled ones for one; loss_weight weighs them."""
    plan = config(small, {"task": "classes", "loss_weight": 0.1}, sampling="balanced")
    run = tmp_path / "run"
    train(plan, [gallery, bank], run, device="cpu", features=store)
    rows = read_log(run / "training" / "steps.csv")
    assert set(rows[0]) == {"step", "rate", "distillation", "classes"}
    for name in ("distillation", "classes"):
        values = [float(row[name]) for row in rows]
        assert np.mean(values[-5:]) < np.mean(values[:5])
