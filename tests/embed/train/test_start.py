"""What a run starts from: a whitened neck, a memory; and the whole recipe, going on exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lmk.embed.data.manifest import Manifest, Row
from lmk.embed.errors import ManifestError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.heads import EmbeddingNetwork
from lmk.embed.network.whitening import fit_whitening
from lmk.embed.train import initialise as start_module
from lmk.embed.train.config import TrainConfig
from lmk.embed.train.devices import World
from lmk.embed.train.initialise import Start, prepare_start
from lmk.embed.train.log import read_log
from lmk.embed.train.loop import train
from lmk.embed.train.network import embedder_config, start_network

Small = Callable[..., TrainConfig]
DIM = 8
NAMES = ["contrast", "classes", "repulsion", "neighbours"]


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def teacher(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    Embedder.named("test_resnet", weights=tiny_weights, size=48).save(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def recipe(
    small: Small, teacher: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrainConfig]:
    """The tasks, batches and neck of the preset landmarks-lite1, on a tiny network."""
    named = Embedder.named
    monkeypatch.setattr(Embedder, "named", lambda name, *, size: named(name))
    model = {
        "backbone": "test_resnet",
        "weights": str(tiny_weights),
        "neck": DIM,
        "neck_form": "centred",
        "neck_activation": None,
    }
    tasks = [
        {"task": "contrast"},
        {
            "task": "classes",
            "start": "means",
            "dynamic_margin": {"form": "rank"},
            "loss_weight": 0.5,
        },
        {"task": "repulsion", "loss_weight": 0.5},
        {
            "task": "neighbours",
            "teachers": [{"model": str(teacher), "sizes": [48]}],
            "loss_weight": 3,
        },
    ]
    settings: dict[str, Any] = {
        "model": model,
        "tasks": tasks,
        "sampling": "sqrt",
        "groups": {"classes": 2, "pictures": 2, "unlabelled": 2, "views": 2, "micro_batches": 5},
        "batch": 8,
        "stages": [{"epochs": 2, "size": 48}],
        "size": 64,
        "optimizer": {"kind": "adamw", "lr": 0.001, "head_lr": 10},
        "schedule": {"warmup": 0.5},
        "freeze_norms": True,
        "save_minutes": 0,
    }
    return lambda **changes: small(**(settings | changes))


def prepared(
    config: TrainConfig, manifests: list[Manifest], folder: Path, store: Path
) -> tuple[EmbeddingNetwork, Start]:
    network = start_network(config)
    begun = prepare_start(
        config,
        network,
        manifests,
        stored=folder / "start.safetensors",
        features=store,
        device=torch.device("cpu"),
        world=World(),
    )
    return network, begun


def files(*manifests: Manifest) -> list[Path]:
    return [manifest.file(row) for manifest in manifests for row in manifest.rows]


def test_the_neck_is_the_whitening_of_the_training_pictures(
    recipe: Small,
    gallery: Manifest,
    bank: Manifest,
    tiny_weights: Path,
    tmp_path: Path,
    store: Path,
) -> None:
    """Of the backbone's own features at the size of the embedder that comes out."""
    network, begun = prepared(recipe(), [gallery, bank], tmp_path, store)
    config = embedder_config(recipe())
    plain = EmbeddingNetwork(
        copy.deepcopy(network.backbone), config.model_copy(update={"neck": None})
    ).eval()
    embedder = Embedder.of(config.model_copy(update={"neck": None, "neck_form": "norm"}), plain)
    features = embedder.embed(files(gallery, bank))[0].vectors
    expected = fit_whitening(features, DIM, 0.5).apply(features)
    own = Embedder.of(config, network).embed(files(gallery, bank))[0].vectors
    # Components may differ in sign, cosines do not; features are kept as float16.
    np.testing.assert_allclose(own @ own.T, expected @ expected.T, atol=0.02)
    assert begun.memory is not None and begun.memory.known.all()
    np.testing.assert_allclose(begun.memory.vectors.numpy(), own, atol=2e-3)
    assert begun.skipped == ()


def test_pictures_that_cannot_be_read(
    recipe: Small, gallery: Manifest, tmp_path: Path, store: Path
) -> None:
    rows = (Row("gone", "gone.jpg", ("place_0",)), *gallery.rows)
    _, begun = prepared(recipe(), [Manifest(gallery.root, rows)], tmp_path, store)
    assert [skip.path for skip in begun.skipped] == ["gone.jpg"]
    assert begun.memory is not None
    assert (~begun.memory.known).nonzero().flatten().tolist() == [0]


def test_a_run_that_goes_on_computes_nothing_again(
    recipe: Small, gallery: Manifest, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, begun = prepared(recipe(), [gallery], tmp_path, store)
    monkeypatch.setattr(start_module, "stored_features", None)
    again, other = prepared(recipe(), [gallery], tmp_path, store)
    assert torch.equal(first.neck.matrix, again.neck.matrix)
    assert torch.equal(first.neck.mean, again.neck.mean)
    assert begun.memory is not None and other.memory is not None
    assert torch.equal(begun.memory.vectors, other.memory.vectors)


def test_from_an_embedders_folder_the_neck_stays(
    recipe: Small, gallery: Manifest, tmp_path: Path, store: Path
) -> None:
    first, _ = prepared(recipe(), [gallery], tmp_path, store)
    (tmp_path / "made").mkdir()
    Embedder.of(embedder_config(recipe()), first).save(tmp_path / "made")
    model = recipe().model.model_dump() | {"weights": str(tmp_path / "made")}
    (tmp_path / "other").mkdir()
    network, begun = prepared(recipe(model=model), [gallery], tmp_path / "other", store)
    assert torch.equal(network.neck.matrix, first.neck.matrix) and begun.memory is not None


def test_nothing_to_prepare(small: Small, gallery: Manifest, tmp_path: Path, store: Path) -> None:
    _, begun = prepared(small(), [gallery], tmp_path, store)
    assert begun.memory is None and not any(tmp_path.iterdir())


def test_too_few_pictures(recipe: Small, gallery: Manifest, tmp_path: Path, store: Path) -> None:
    few = Manifest(gallery.root, gallery.rows[:DIM])
    with pytest.raises(ManifestError, match=r"8 readable pictures .* 8 components"):
        prepared(recipe(), [few], tmp_path, store)


def run(config: TrainConfig, manifests: list[Manifest], out: Path, store: Path, **more: Any) -> Any:
    return train(config, manifests, out, device="cpu", features=store, **more)


def test_the_recipe_goes_on_as_if_it_never_was_stopped(
    recipe: Small, gallery: Manifest, bank: Manifest, tmp_path: Path, store: Path
) -> None:
    """Its losses, its weights and its memory; and a part of the whitened start is kept."""
    config, both = recipe(keep_start=0.25), [gallery, bank]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config, both, whole, store)
    for steps in (2, 5, 8):

        def stop(stage: str, done: int, total: int, steps: int = steps) -> None:
            if stage == "training" and done == steps:
                raise Stopped

        with pytest.raises(Stopped):
            run(config, both, parts, store, resume=True, on_progress=stop)
    run(config, both, parts, store, resume=True)
    rows = [read_log(folder / "training" / "steps.csv") for folder in (whole, parts)]
    assert rows[0] == rows[1] and len(rows[0]) == 10
    assert [*rows[0][0]] == ["step", "rate", *NAMES]
    for file in ("weights.safetensors", "training/last.safetensors"):
        ended = [load_file(folder / file) for folder in (whole, parts)]
        assert ended[0].keys() == ended[1].keys()
        assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    began = load_file(whole / "training" / "start.safetensors")
    last = load_file(whole / "training" / "last.safetensors")
    assert not torch.equal(last["memory"], began["vectors"])
    blended = 0.25 * began["neck.matrix"] + 0.75 * last["network.neck.matrix"]
    torch.testing.assert_close(load_file(whole / "weights.safetensors")["neck.matrix"], blended)


def test_the_recipe_learns(
    recipe: Small, gallery: Manifest, bank: Manifest, tmp_path: Path, store: Path
) -> None:
    config = recipe(stages=[{"epochs": 16, "size": 48}], augment={"crop": 0.8}, workers=0)
    run(config, [gallery, bank], tmp_path / "run", store)
    rows = read_log(tmp_path / "run" / "training" / "steps.csv")
    for name in ("contrast", "classes"):
        values = [float(row[name]) for row in rows]
        assert np.mean(values[-15:]) < 0.9 * np.mean(values[:15]), name
    embedder = Embedder.load(tmp_path / "run")
    assert embedder.dim == DIM and embedder.config.neck_form == "centred"


def test_the_memory_takes_in_a_step_when_it_is_done(
    recipe: Small, gallery: Manifest, bank: Manifest, tmp_path: Path, store: Path
) -> None:
    """Both micro-batches of a step see it as it was; the rate is so small that no weight moves."""
    groups = recipe().groups
    assert groups is not None
    still = {
        "groups": groups.model_dump() | {"micro_batches": 2},
        "stages": [{"epochs": 1, "size": 48}],
        "optimizer": {"kind": "adamw", "lr": 1e-30},
    }

    def losses(name: str, **changes: Any) -> list[float]:
        run(recipe(**still, **changes), [gallery, bank], tmp_path / name, store)
        rows = read_log(tmp_path / name / "training" / "steps.csv")
        return [float(row["contrast"]) for row in rows]

    (both,) = losses("both", accumulate=2)
    unchanged = losses("unchanged", memory_keep=1 - 1e-9)
    changing = losses("changing")
    assert both == pytest.approx(np.mean(unchanged), rel=1e-5)
    assert changing[0] == unchanged[0] and abs(changing[1] - unchanged[1]) > 1e-3
