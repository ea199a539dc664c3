"""How the vote's k and power and the whitening's least number of pictures were chosen.

Votes: each gallery picture is asked of the gallery without itself, beside one part of a half of the
distractors, the other part being the bank: no query is seen. GAP by k and power, on raw and on
whitened features; k = 1 is top-1.

Whitening: small galleries drawn from the whole (landmarks x pictures + distractors), asked the
queries of their landmarks and twice as many of the other half of the distractors; mean GAP of ten
draws: top-1 and the default steps on raw features, the default steps on whitened ones.

    python benchmarks/choices.py [DATA]      (DATA defaults to $LMK_REAL_DATA)
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import extract
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.network.whitening import fit_whitening
from lmk.eval.scores.gap import gap
from lmk.index.exact.flat import FlatSearcher
from lmk.index.vectors.labels import Membership
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.view import View
from lmk.rerank.fit.background import landmark_sums
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.penalty import PenaltyStep, RescaleStep, count_hits, penalty_of
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.state import QueryBatch
from lmk.rerank.steps.voting import VoteStep

KS, POWERS = (1, 3, 5, 10, 20), (1, 3, 6, 9, 12, 20, 30)
DRAWS = 10
SUBSETS = ((5, 5, 0), (12, 10, 0), (12, 10, 60), (20, 20, 100), (29, 60, 300), (29, 60, 1185))
TOP1 = Pipeline(steps=(VoteStep(k=1, power=1),))
Vectors = np.ndarray


def features(data: Path) -> tuple[Vectors, list[Row], dict[str, np.ndarray]]:
    """Unit features of all pictures, their rows, and the places of each set among them."""
    gallery, queries = read_manifest(data / "gallery.csv"), read_manifest(data / "queries.csv")
    with (data / "distractors.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    halves = [[Row(r["id"], r["path"]) for r in table if r["half"] == h] for h in ("bank", "query")]
    parts = [list(gallery.rows), list(queries.rows), *halves]
    rows = [row for part in parts for row in part]
    embedder = Embedder.named("lite1")
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), embedder.feature_fingerprint, embedder.feature_dim)
        done = extract(Manifest(data, tuple(rows)), embedder, store)
        found = unit_rows(store.read([picture.sha256 for picture in done.pictures]))
    assert len(found) == len(rows), "every picture of the data must be readable"
    ends = np.cumsum([len(part) for part in parts])
    names = ("gallery", "queries", "bank", "query")
    places = {
        name: np.arange(end - len(part), end)
        for name, part, end in zip(names, parts, ends, strict=True)
    }
    return found, rows, places


def embeddings(vectors: Vectors) -> Embeddings:
    return Embeddings(vectors, tuple(map(str, range(len(vectors)))), "benchmark")


class AskedPhotos:
    """A gallery and its queries, ready to be answered by any pipeline."""

    def __init__(
        self,
        vectors: Vectors,
        gallery: list[Row],
        known: np.ndarray,
        bank: np.ndarray,
        asked: np.ndarray,
        truth: list[tuple[str, ...]],
        *,
        without_self: bool = False,
    ) -> None:
        self.labels = [row.labels for row in gallery]
        self.truth = truth
        self.bank = View.of_embeddings(embeddings(vectors[bank]))
        context = PipelineContext.of_labels(self.labels)
        view = View.of_embeddings(embeddings(vectors[known]))
        labels = Membership(
            ~view.mask, view.mask, context.label_names, context.label_offsets, context.label_codes
        )
        self.background = landmark_sums(replace(view, labels=labels)).mean_cosine()
        self.searcher = FlatSearcher(view)
        self.asked = embeddings(vectors[asked])
        found = self.searcher.search(self.asked, 101)
        self.found = leave_out(found, asked, known) if without_self else found

    def gap(self, pipeline: Pipeline) -> float:
        """GAP of what a pipeline answers."""
        n = len(self.labels)
        step = pipeline.step_that_needs("hits")
        penalty = None
        if isinstance(step, PenaltyStep) and self.bank.mask.any() and n:
            hits = count_hits(self.searcher, self.bank, rows=n, gallery=n, top=step.top)
            background = self.background if pipeline.rescales() else 0.0
            penalty = penalty_of(hits, step, background=background)
        context = PipelineContext.of_labels(self.labels, penalty, self.background)
        answers = pipeline.predict(QueryBatch(self.asked), self.found, context)
        right = [label in names for label, names in zip(answers.labels, self.truth, strict=True)]
        positives = sum(bool(names) for names in self.truth)
        return gap(answers.confidence, np.array(right), positives).value


def leave_out(found: Neighbours, asked: np.ndarray, known: np.ndarray) -> Neighbours:
    """The neighbours without the picture itself."""
    rows, scores = found.rows.copy(), found.scores.copy()
    own = known[np.maximum(rows, 0)] == asked[:, None]
    rows[own], scores[own] = NO_ROW, -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    return Neighbours(
        np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1), found.query_ids
    )


def whitened(vectors: Vectors, learnt_on: np.ndarray) -> Vectors:
    return fit_whitening(vectors[learnt_on]).apply(vectors)


def votes(vectors: Vectors, rows: list[Row], places: dict[str, np.ndarray]) -> None:
    gallery = places["gallery"]
    mixed = np.random.default_rng(0).permutation(places["bank"])
    bank, others = mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
    asked = np.concatenate([gallery, others])
    truth = [rows[i].labels for i in asked]
    known = [rows[i] for i in gallery]
    for name, space in (
        ("raw", vectors),
        ("whitened", whitened(vectors, np.concatenate([gallery, bank]))),
    ):
        question = AskedPhotos(space, known, gallery, bank, asked, truth, without_self=True)
        print(f"\nGAP of gallery pictures asked without themselves, {name} features")
        print("k \\ power |", " | ".join(map(str, POWERS)))
        for k in KS:
            cells = []
            for power in POWERS if k > 1 else POWERS[:1]:
                steps = (RescaleStep(), PenaltyStep(), VoteStep(k=k, power=power))
                cells.append(f"{question.gap(Pipeline(steps=steps)):.4f}")
            print(f"{k} |", " | ".join(cells), flush=True)


def subsets(vectors: Vectors, rows: list[Row], places: dict[str, np.ndarray]) -> None:
    print("\nlandmarks x pictures + distractors | raw, top-1 | raw, default | whitened, default")
    names = sorted({label for i in places["gallery"] for label in rows[i].labels})
    for landmarks, pictures, distractors in SUBSETS:
        scores = []
        for draw in range(1 if distractors > 1000 else DRAWS):
            chance = np.random.default_rng(draw)
            chosen = set(chance.permutation(names)[:landmarks])
            known = np.concatenate(
                [
                    chance.permutation([i for i in places["gallery"] if name in rows[i].labels])[
                        :pictures
                    ]
                    for name in sorted(chosen)
                ]
            )
            bank = chance.permutation(places["bank"])[:distractors]
            own = [i for i in places["queries"] if set(rows[i].labels) & chosen]
            others = chance.permutation(places["query"])[: 2 * len(own)]
            asked = np.concatenate([own, others]).astype(np.int64)
            truth = [rows[i].labels for i in asked]
            gallery = [rows[i] for i in known]
            raw = AskedPhotos(vectors, gallery, known, bank, asked, truth)
            learnt = whitened(vectors, np.concatenate([known, bank]))
            white = AskedPhotos(learnt, gallery, known, bank, asked, truth)
            scores.append((raw.gap(TOP1), raw.gap(Pipeline()), white.gap(Pipeline())))
        cells = " | ".join(f"{value:.3f}" for value in np.mean(scores, axis=0))
        print(f"{landmarks} x {pictures} + {distractors} | {cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    real = Path(os.environ.get("LMK_REAL_DATA", "."))
    parser.add_argument("data", type=Path, nargs="?", default=real)
    data = parser.parse_args().data.resolve()
    if not (data / "gallery.csv").exists():
        print(f"skipped: no gallery.csv in {data}; name the folder, or set LMK_REAL_DATA")
        return
    vectors, rows, places = features(data)
    votes(vectors, rows, places)
    subsets(vectors, rows, places)


if __name__ == "__main__":
    main()
