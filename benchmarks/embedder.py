"""The embedder: features as they come against trained ones, landmarks it never saw, ablations.

DATA is as of accuracy.py. What a table needs is trained first, by `lmk train`, into DIR/NAME; a
run that is there whole is taken as it is, one that was stopped goes on. Nothing of queries.csv,
nor of the half of the distractors that asks, is ever trained on: a network that learnt from one
half is asked about the other, and the two halves have a network each.

    default   the preset as shipped, for either half, and the same with Global Context inserted
    draws     three times six landmarks left out of training; they alone are the gallery then
    losses    softmax, ArcFace, sub-centre ArcFace with dynamic margins: one budget, some seeds
    blocks    plain, + Global Context, + GeM: one budget, some seeds
    scratch   ResNeXt from random weights, + Global Context, + GeM: distilled, one budget

    python benchmarks/embedder.py [DATA] --runs DIR [--more FOLDER] [--only default,draws...]
    python benchmarks/embedder.py --ship DIR/landmarks-lite1-bank   (into embed/presets, as fp16)
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accuracy import TOP1, Split, splits

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.config import SHIPPED
from lmk.eval.scores.average_precision import judge_neighbours
from lmk.eval.scores.gap import gap_of_judged
from lmk.eval.tune.labelled_photos import read_labelled_photos
from lmk.eval.tune.scores import judged_of, try_pipelines
from lmk.rerank.indexing.build import build_index
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.penalty import PenaltyStep
from lmk.rerank.steps.pipeline import Pipeline

PRESET = "landmarks-lite1"
HALVES = ("bank", "query")
DRAWS = (1, 2, 3)
LEFT_OUT = 6
PIPELINES = (Pipeline(steps=(TOP1,)), Pipeline(steps=(PenaltyStep(), TOP1)))
FIGURES = "acc@1 | mAP@100 | GAP | GAP with the penalty"

# One budget for the ablations, small enough for three seeds of each: 4 epochs of 60 batches.
_BUDGET = (
    'stages=[{"epochs": 4, "size": 160}]',
    'groups={"classes": 12, "pictures": 2, "unlabelled": 4, "views": 2, "micro_batches": 60}',
    "size=224",
    "keep_start=0",
)
_HEAD = '{"task": "classes", "loss": "%s"%s}'
LOSSES = {
    "softmax": _HEAD % ("softmax", ""),
    "ArcFace": _HEAD % ("arcface", ', "margin": 0.3, "start": "means"'),
    "sub-centre ArcFace, dynamic margins": _HEAD
    % ("subcenter", ', "dynamic_margin": {"form": "rank"}'),
}
BLOCKS = {
    "plain network, average pooling": ("model.pooling=avg", "model.global_context=null"),
    "+ Global Context": ("model.pooling=avg", "model.global_context=0.125"),
    "+ GeM": ("model.pooling=gem", "model.global_context=0.125"),
}
_SMALL = ('stages=[{"epochs": 4, "size": 112}]', "batch=32", "size=112", "ema=null")
SCRATCH = {
    "ResNeXt-26, average pooling": ("model.backbone=resnext26ts", "model.pooling=avg"),
    "+ Global Context": ("model.backbone=gcresnext26ts", "model.pooling=avg"),
    "+ GeM": ("model.backbone=gcresnext26ts", "model.pooling=gem"),
}


@dataclass(frozen=True)
class Training:
    """One run of `lmk train`."""

    name: str
    preset: str
    landmarks: Manifest
    half: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """Where everything lies.

    Attributes:
        data: the photos.
        runs: the trained networks.
        more: further pictures without labels to learn from, or None.
        indexes: a folder for the indexes that are measured.
        seeds: of each row of an ablation.
    """

    data: Path
    runs: Path
    more: Path | None
    indexes: Path
    seeds: int

    def gallery(self) -> Manifest:
        """All landmarks."""
        return read_manifest(self.data / "gallery.csv")

    def train(self, training: Training) -> Path:
        """Trains, or goes on, or finds it done; returns the embedder's folder."""
        out = self.runs / training.name
        if (out / "config.json").exists():
            return out
        lists = self.runs / "lists"
        lists.mkdir(parents=True, exist_ok=True)
        landmarks, others = lists / f"{training.name}.csv", lists / f"{training.half}.csv"
        write_list(landmarks, training.landmarks)
        write_list(others, splits(self.data)[HALVES.index(training.half)].bank)
        command = [
            *(sys.executable, "-c", "from lmk.cli.main import main; main()"),
            *("train", training.preset, "-o", out, "--features", self.runs / "features"),
            *("--data", landmarks, "--data", others, "--root", "/", "--resume"),
            *(("--data", self.more) if self.more else ()),
        ]
        for change in training.changes:
            command += ["--set", change]
        started = time.perf_counter()
        subprocess.run(command, check=True)
        print(f"trained {training.name} in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        return out


def write_list(path: Path, manifest: Manifest) -> None:
    """A CSV of pictures whose paths start at /."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "landmark_id"])
        for row in manifest.rows:
            whole = (manifest.root / row.path).resolve().relative_to("/")
            writer.writerow([row.id, whole, " ".join(row.labels)])


def measure(
    embedder: Embedder, index: Path, gallery: Manifest, split: Split, *, whiten: bool = False
) -> tuple[list[float], float | None]:
    """acc@1, mAP@100, GAP, GAP with the penalty; and pictures/s of a build without any features.

    Args:
        embedder: of the index.
        index: a gallery folder; one that was built by the same embedder lends its features.
        gallery, split: what is indexed and asked.
        whiten: as of build_index.
    """
    started = time.perf_counter()
    report = build_index(gallery, index, embedder, distractors=split.bank, whiten=whiten)
    whole = report.computed == len(gallery) + len(split.bank)
    rate = report.computed / (time.perf_counter() - started) if whole else None
    with Recognizer.open(index) as recognizer:
        photos = read_labelled_photos(split.queries, recognizer)
        found = recognizer.search(photos.embeddings, 100)
        held = recognizer.gallery
        rows = [held.labels(row) for row in range(held.rows)]
        mean_ap = judge_neighbours(found, rows, photos.labels).mean_average_precision()
        plain, punished = (
            judged_of(each, photos) for each in try_pipelines(recognizer, PIPELINES, photos)
        )
    gaps = [gap_of_judged(judged).value for judged in (plain, punished)]
    return [plain.accuracy(), mean_ap, *gaps], rate


def show(name: str, figures: list[list[float]], rate: float | None = None) -> None:
    """One row of a table: means, with standard deviations where there are three or more."""
    means, spread = np.mean(figures, axis=0), np.std(figures, axis=0, ddof=len(figures) > 1)
    cells = [f"{mean:.3f}" for mean in means]
    if len(figures) > 2:
        cells = [f"{cell} ± {sd:.3f}" for cell, sd in zip(cells, spread, strict=True)]
    print(" | ".join([name, *cells, *([f"{rate:.0f}"] if rate else [])]), flush=True)


def heading(title: str, columns: str) -> None:
    print(f"\n## {title}\n{columns}\n" + " | ".join(["---"] * (columns.count("|") + 1)), flush=True)


def known(bench: Bench) -> None:
    """All landmarks: what comes with lmk, and what was trained, for both halves."""
    ways = splits(bench.data)
    heading("Known landmarks (mean of both halves)", f"embedder | {FIGURES} | pictures/s")
    for name, size in (("lite0", 240), ("lite1", 240), ("lite1", 288)):
        embedder, index = Embedder.named(name, size=size), bench.indexes / f"{name}{size}.lmk"
        for whiten in (False, True):
            both = [measure(embedder, index, bench.gallery(), way, whiten=whiten) for way in ways]
            text = f"{name}, {size} px, {'whitened' if whiten else 'raw'}"
            show(text, [figures for figures, _ in both], both[0][1])
    for preset in (PRESET, f"{PRESET}-gc"):
        both = []
        halves = HALVES if preset == PRESET else HALVES[:1]
        for half, way in zip(halves, ways, strict=False):
            folder = bench.train(Training(f"{preset}-{half}", preset, bench.gallery(), half))
            index = bench.indexes / f"{preset}-{half}.lmk"
            both.append(measure(Embedder.load(folder), index, bench.gallery(), way))
        text = f"{preset}, trained" + (" (one way round)" if len(both) == 1 else "")
        show(text, [figures for figures, _ in both], both[0][1])


def left_out(bench: Bench, draw: int) -> set[str]:
    """The landmarks of one draw."""
    names = sorted({label for row in bench.gallery().rows for label in row.labels})
    return set(np.random.default_rng(draw).choice(names, LEFT_OUT, replace=False).tolist())


def draws(bench: Bench) -> None:
    """Landmarks that training never saw: index and queries are those six, with distractors."""
    split = splits(bench.data)[0]
    for draw in DRAWS:
        out = left_out(bench, draw)
        heading(f"Six landmarks left out, draw {draw}: {', '.join(sorted(out))}",
                f"embedder | {FIGURES}")  # fmt: skip
        inside = of_labels(bench.gallery(), out)
        rows = [row for row in split.queries.rows if not row.labels or out & set(row.labels)]
        asked = Split(split.bank, Manifest(split.queries.root, tuple(rows)))
        for size, whiten in ((240, False), (288, True)):
            raw, index = Embedder.named("lite1", size=size), bench.indexes / f"lite1{size}.lmk"
            text = f"lite1, {size} px, {'whitened' if whiten else 'raw'}"
            show(text, [measure(raw, index, inside, asked, whiten=whiten)[0]])
        others = of_labels(bench.gallery(), out, without=True)
        folder = bench.train(Training(f"draw{draw}", PRESET, others, "bank"))
        index = bench.indexes / f"draw{draw}.lmk"
        figures = measure(Embedder.load(folder), index, inside, asked)[0]
        show(f"{PRESET}, trained without", [figures])


def of_labels(manifest: Manifest, labels: set[str], *, without: bool = False) -> Manifest:
    """The pictures of some landmarks, or all but those."""
    rows: tuple[Row, ...] = tuple(
        row for row in manifest.rows if bool(labels & set(row.labels)) != without
    )
    return Manifest(manifest.root, rows)


def ablation(bench: Bench, title: str, rows: dict[str, tuple[str, ...]], preset: str) -> None:
    """One change at a time, the same budget, several seeds."""
    heading(title, f"what is learnt | {FIGURES}")
    split = splits(bench.data)[0]
    for number, (name, changes) in enumerate(rows.items()):
        figures = []
        for seed in range(bench.seeds if preset == PRESET else 1):
            run = f"{title.split()[0].lower()}-{number}-{seed}"
            seeded = (*changes, f"seed={seed}")
            folder = bench.train(Training(run, preset, bench.gallery(), "bank", seeded))
            index = bench.indexes / f"{run}.lmk"
            figures.append(measure(Embedder.load(folder), index, bench.gallery(), split)[0])
        show(name, figures)


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as fp16; norms, means and biases as they are."""
    return {n: (part.half() if part.ndim > 1 else part).contiguous() for n, part in state.items()}


def ship(folder: Path) -> None:
    """Makes a trained embedder the preset that lmk comes with: fp16, norms and means fp32."""
    from safetensors.torch import save_file

    trained = Embedder.load(folder)
    small = half(trained.network().state_dict())
    config = trained.config.model_copy(update={"name": PRESET, "weights": SHIPPED})
    presets = Path(__file__).parent.parent / "embed" / "presets"
    save_file(small, presets / f"{PRESET}.safetensors")
    (presets / f"{PRESET}.json").write_text(config.model_dump_json(indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    real = Path(os.environ.get("LMK_REAL_DATA", "."))
    parser.add_argument("data", type=Path, nargs="?", default=real)
    parser.add_argument("--runs", type=Path, help="where trained networks are kept")
    parser.add_argument("--ship", type=Path, help="the embedder to ship")
    parser.add_argument("--more", type=Path, help="further pictures without labels to learn from")
    parser.add_argument("--seeds", type=int, default=3, help="of each row of an ablation")
    parser.add_argument("--only", default="default,draws,losses,blocks,scratch")
    options = parser.parse_args()
    if options.ship:
        ship(options.ship)
        return
    if not options.runs:
        parser.error("--runs is missing")
    data = options.data.resolve()
    if not (data / "gallery.csv").exists():
        print(f"skipped: no gallery.csv in {data}; name the folder, or set LMK_REAL_DATA")
        return
    losses = {name: (*_BUDGET, f"tasks=[{task}]") for name, task in LOSSES.items()}
    blocks = {name: (*_BUDGET, *changes) for name, changes in BLOCKS.items()}
    scratch = {name: (*_SMALL, *changes) for name, changes in SCRATCH.items()}
    more = options.more and options.more.resolve()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(data, options.runs.resolve(), more, Path(folder), options.seeds)
        tables = {
            "default": lambda: known(bench),
            "draws": lambda: draws(bench),
            "losses": lambda: ablation(bench, "Losses (mean of the seeds)", losses, PRESET),
            "blocks": lambda: ablation(bench, "Blocks (mean of the seeds)", blocks, PRESET),
            "scratch": lambda: ablation(
                bench, "ResNeXt from random weights", scratch, "gcresnext26-distil"
            ),
        }
        for name in options.only.split(","):
            tables[name]()


if __name__ == "__main__":
    main()
