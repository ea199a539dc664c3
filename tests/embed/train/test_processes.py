"""Killed runs and runs of two processes, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lmk.embed.data.manifest import Manifest
from lmk.embed.train.config import TrainConfig
from lmk.embed.train.log import read_log
from lmk.embed.train.loop import train

Small = Callable[..., TrainConfig]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
# A process that is killed would leave half a file of coverage.
UNMEASURED = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("COVERAGE_")}
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

pytestmark = pytest.mark.slow


def command(folder: Path, config: TrainConfig, data: Path, *launcher: str) -> list[str]:
    """`lmk train` with these settings, into folder/run."""
    file = folder / "config.json"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    words = ["train", str(file), "--data", str(data), "-o", str(folder / "run")]
    return [sys.executable, "-P", *launcher, "-m", "lmk.cli", *words, "--device", "cpu"]


def with_memory(weights: Path) -> dict[str, Any]:
    """Tasks that compare pictures with all others, 4 steps an epoch."""
    model = {"weights": str(weights), "neck": 8, "neck_form": "centred"}
    return {
        "model": {"backbone": "test_resnet", "neck_activation": None} | model,
        "freeze_norms": True,
        "tasks": [
            {"task": "classes", "start": "means"},
            {"task": "repulsion"},
            {"task": "neighbours", "teachers": [{"model": "lite0", "sizes": [32]}]},
        ],
        "groups": {"classes": 2, "pictures": 2, "unlabelled": 2, "views": 2, "micro_batches": 4},
        "batch": 8,
        "size": 48,
        "stages": [{"epochs": 2, "size": 48}],
        "optimizer": {"lr": 0.01},
    }


def losses(run: Path) -> list[str]:
    return [row["classes"] for row in read_log(run / "training" / "steps.csv")]


def test_killed_in_the_middle_of_an_epoch(small: Small, gallery: Manifest, tmp_path: Path) -> None:
    config = small(save_minutes=0, ema=0.9, stages=[{"epochs": 4, "size": 64}])
    goes_on_after_a_kill(config, [gallery], tmp_path)


def test_killed_with_a_memory(
    small: Small, gallery: Manifest, bank: Manifest, tiny_weights: Path, tmp_path: Path
) -> None:
    """What it remembers of each picture is of the step it was killed at."""
    settings = with_memory(tiny_weights) | {"stages": [{"epochs": 4, "size": 48}]}
    settings["tasks"] = [{"task": "contrast"}, *settings["tasks"]]
    goes_on_after_a_kill(small(**settings, save_minutes=0), [gallery, bank], tmp_path)


def goes_on_after_a_kill(config: TrainConfig, data: list[Manifest], folder: Path) -> None:
    """A run of 16 steps that is killed -9 after 6 or more ends as one that never was."""
    more = [word for manifest in data[1:] for word in ("--data", str(manifest.root))]
    whole = [*command(_made(folder / "whole"), config, data[0].root), *more]
    subprocess.run(whole, env=ENVIRONMENT, check=True, capture_output=True, timeout=180)
    call = [*command(_made(folder / "killed"), config, data[0].root), *more, "--resume"]
    run, other = folder / "killed" / "run", folder / "whole" / "run"
    with subprocess.Popen(call, env=UNMEASURED, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 150
        while len(losses(run)) < 6 and process.poll() is None and time.monotonic() < deadline:
            pass
        process.kill()
    assert 6 <= len(losses(run)) < 16  # it was still at work
    subprocess.run(call, env=ENVIRONMENT, check=True, capture_output=True, timeout=180)
    logs = [read_log(each / "training" / "steps.csv") for each in (run, other)]
    assert len(logs[0]) == 16 and logs[0] == logs[1]
    ended = [load_file(each / "weights.safetensors") for each in (run, other)]
    assert all(np.array_equal(ended[0][name], ended[1][name]) for name in ended[0])


def test_two_processes_are_one_with_the_same_batch(
    small: Small, gallery: Manifest, tmp_path: Path
) -> None:
    """With class weights and accumulation; BatchNorm, which is each process's own, is frozen."""
    settings: dict[str, Any] = {
        "model": {"backbone": "test_resnet", "neck": None},
        "freeze_norms": True,
        "tasks": [{"task": "classes", "class_weights": True}],
        "batch": 4,
        "accumulate": 2,
        "ema": 0.5,
    }
    train(small(**settings), [gallery], tmp_path / "one", device="cpu")
    call = command(tmp_path, small(**settings), gallery.root, *TWO)
    done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained on 20 pictures") == 1  # one process speaks
    pair = [[float(x) for x in losses(f)] for f in (tmp_path / "one", tmp_path / "run")]
    assert len(pair[0]) == 9 and pair[1] == pytest.approx(pair[0], rel=1e-4)
    ended = [load_file(f / "weights.safetensors") for f in (tmp_path / "one", tmp_path / "run")]
    for name in ended[0]:
        np.testing.assert_allclose(ended[1][name], ended[0][name], rtol=1e-3, atol=1e-5)


def test_two_processes_share_the_state_of_tags(
    small: Small, gallery: Manifest, tmp_path: Path
) -> None:
    """Which tags a step shows, for how many steps, and which negatives are drawn."""
    table = tmp_path / "tags.csv"
    rows = [f"{i},{row.path},{row.labels[0]} n{i % 3}" for i, row in enumerate(gallery.rows)]
    table.write_text("\n".join(["id,path,tags", *rows]))
    loss = {"kind": "tencent", "negatives": 1, "absent": 0.5}
    settings: dict[str, Any] = {
        "model": {"backbone": "test_resnet", "neck": None},
        "freeze_norms": True,
        "tasks": [{"task": "tags", "loss": loss, "repeat": {"threshold": 0.3}}],
        "batch": 4,
        "accumulate": 2,
        "best_by": "tag_map",
        "ema": 0.5,
    }
    for name, launcher in (("one", ()), ("two", TWO)):
        call = command(_made(tmp_path / name), small(**settings), table, *launcher)
        call += ["--root", str(gallery.root)]
        done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
    runs = [tmp_path / name / "run" for name in ("one", "two")]
    one, two = (
        [float(row["tags"]) for row in read_log(run / "training" / "steps.csv")] for run in runs
    )
    assert len(one) > 6 and two == pytest.approx(one, rel=1e-3)
    states = [load_file(run / "training" / "last.safetensors") for run in runs]
    for name in ("run", "state"):
        place = f"tasks.0._tencent.{name}"
        assert np.array_equal(states[0][place], states[1][place])
    heads = [load_file(run / "tags.safetensors") for run in runs]
    np.testing.assert_allclose(heads[1]["weight"], heads[0]["weight"], rtol=1e-3, atol=1e-5)


def test_two_processes_share_a_memory(
    small: Small, gallery: Manifest, bank: Manifest, tiny_weights: Path, tmp_path: Path
) -> None:
    """What compares a picture with the memory alone is the same however the batch is shared out."""
    settings = with_memory(tiny_weights)
    plan = command(_made(tmp_path / "two"), small(**settings), gallery.root, *TWO)
    plan += ["--data", str(bank.root)]
    done = subprocess.run(plan, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    plan = command(_made(tmp_path / "one"), small(**settings), gallery.root)
    plan += ["--data", str(bank.root)]
    subprocess.run(plan, env=ENVIRONMENT, capture_output=True, check=True, timeout=180)
    ended = [tmp_path / name / "run" / "training" for name in ("one", "two")]
    rows = [read_log(training / "steps.csv") for training in ended]
    for name in ("classes", "repulsion", "neighbours"):
        one, two = ([float(row[name]) for row in each] for each in rows)
        assert len(one) == 8 and two == pytest.approx(one, rel=1e-3, abs=1e-6)
    memories = [load_file(training / "last.safetensors")["memory"] for training in ended]
    np.testing.assert_allclose(memories[1], memories[0], atol=1e-4)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_batch_that_cannot_be_shared_out(small: Small, gallery: Manifest, tmp_path: Path) -> None:
    call = command(tmp_path, small(batch=5), gallery.root, *TWO)
    done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode != 0
    assert "batch: 5 pictures cannot be divided among 2 processes" in done.stderr
