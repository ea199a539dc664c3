"""acc@1, mAP@100 and GAP of networks as they come, and of the simple pipelines.

DATA holds gallery.csv (id,path,landmark_id), queries.csv (the same) and distractors.csv
(id,path,half): one half of the distractors is the bank, the other half is asked; then swapped;
the mean is printed. Features of all pictures are computed once for each network and size.

    python benchmarks/accuracy.py [DATA] [--quick]      (DATA defaults to $LMK_REAL_DATA)
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.embeddings import Embeddings
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import extract_stream
from lmk.eval.files.submission import Submission
from lmk.eval.files.truth import Truth
from lmk.eval.scores.average_precision import judge_neighbours
from lmk.eval.scores.gap import contest_gap, gap_of_judged
from lmk.eval.scores.judged import judge
from lmk.rerank.indexing.build import build_index
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.penalty import PenaltyStep, RescaleStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.voting import VoteStep

TOP1 = VoteStep(k=1, power=1)
PIPELINES = {
    "top-1 cosine": Pipeline(steps=(TOP1,)),
    "top-1, penalty to the letter (raw counts)": Pipeline(steps=(PenaltyStep(counts="raw"), TOP1)),
    "top-1, penalty by relative counts": Pipeline(steps=(PenaltyStep(), TOP1)),
    "vote of 5, no penalty": Pipeline(steps=(RescaleStep(), VoteStep())),
    "vote of 5, penalty to the letter": Pipeline(
        steps=(RescaleStep(), PenaltyStep(counts="raw"), VoteStep())
    ),
    "vote of 3, power 3 (the pick of leave-one-out)": Pipeline(
        steps=(RescaleStep(), PenaltyStep(), VoteStep(k=3, power=3))
    ),
    "vote of 5, penalty by relative counts": Pipeline(
        steps=(RescaleStep(), PenaltyStep(), VoteStep())
    ),
    "the default pipeline": Pipeline(),
}
DEFAULT = list(PIPELINES)[-1]


@dataclass(frozen=True)
class Split:
    """One way round: the bank's rows and the queries (landmarks, then the other half)."""

    bank: Manifest
    queries: Manifest


def splits(data: Path) -> list[Split]:
    asked = read_manifest(data / "queries.csv")
    with (data / "distractors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    halves = {
        half: tuple(Row(row["id"], row["path"]) for row in rows if row["half"] == half)
        for half in ("bank", "query")
    }
    return [
        Split(Manifest(data, halves[bank]), Manifest(data, (*asked.rows, *halves[other])))
        for bank, other in (("bank", "query"), ("query", "bank"))
    ]


def embed_queries(recognizer: Recognizer, queries: Manifest) -> Embeddings:
    parts = [batch for batch, _ in extract_stream(queries, recognizer.embedder)]
    ids = tuple(id_ for part in parts for id_ in part.ids)
    vectors = np.concatenate([part.vectors for part in parts])
    return Embeddings(vectors, ids, recognizer.embedder.fingerprint)


def scores(
    recognizer: Recognizer, queries: Manifest, vectors: Embeddings
) -> dict[str, list[float]]:
    """(acc@1, mAP@100, GAP, GAP at contest ratio) of each pipeline."""
    labels = tuple(row.labels for row in queries.rows)
    truth = Truth(tuple(row.id for row in queries.rows), labels, (None,) * len(queries))
    gallery = recognizer.gallery
    row_labels = [gallery.labels(row) for row in range(gallery.rows)]
    found = recognizer.search(vectors, 100)
    mean_ap = judge_neighbours(found, row_labels, labels).mean_average_precision()
    result = {}
    for name, pipeline in PIPELINES.items():
        answering = recognizer.with_pipeline(pipeline)
        submission = Submission.from_predictions(answering.predict(vectors))
        judged = judge(submission, truth)
        result[name] = [
            judged.accuracy(),
            mean_ap,
            gap_of_judged(judge(submission, truth)).value,
            contest_gap(judged).value,
        ]
    return result


def measure(
    data: Path, embedder: Embedder, whiten: bool | None, folder: Path
) -> tuple[dict[str, np.ndarray], float]:
    """The mean over both ways round, and pictures/s of extraction."""
    gallery = read_manifest(data / "gallery.csv")
    both, rate = [], 0.0
    for split in splits(data):
        started = time.perf_counter()
        report = build_index(gallery, folder, embedder, distractors=split.bank, whiten=whiten)
        if report.computed:
            rate = report.computed / (time.perf_counter() - started)
        with Recognizer.open(folder) as recognizer:
            vectors = embed_queries(recognizer, split.queries)
            both.append(scores(recognizer, split.queries, vectors))
    return {name: np.mean([one[name] for one in both], axis=0) for name in PIPELINES}, rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    real = Path(os.environ.get("LMK_REAL_DATA", "."))
    parser.add_argument("data", type=Path, nargs="?", default=real)
    parser.add_argument(
        "--quick", action="store_true", help="the network at its own size, whitened, only"
    )
    options = parser.parse_args()
    data = options.data.resolve()
    if not (data / "gallery.csv").exists():
        print(f"skipped: no gallery.csv in {data}; name the folder, or set LMK_REAL_DATA")
        return
    choices = (
        [("lite1", 288)]
        if options.quick
        else [("lite0", 240), ("lite1", 240), ("lite1", 288), ("lite1", 320)]
    )
    print("embedder | pipeline | acc@1 | mAP@100 | GAP | GAP at 98 % non-landmarks | pictures/s")
    print("--- | --- | --- | --- | --- | --- | ---")
    with tempfile.TemporaryDirectory() as folder:
        for (name, size), whiten in product(choices, (False, True)):
            embedder = Embedder.named(name, size=size)
            # Whole builds, start-up and learning included.
            table, rate = measure(data, embedder, whiten, Path(folder) / f"{name}{size}.lmk")
            shipped = (name, size, whiten) == ("lite1", 288, True)
            for pipeline, row in table.items():
                if shipped or pipeline in ("top-1 cosine", DEFAULT):
                    text = f"{name} {size} px{', whitened' if whiten else ', raw'}"
                    numbers = " | ".join(f"{value:.3f}" for value in row)
                    speed = f"{rate:.0f}" if rate else ""
                    print(f"{text} | {pipeline} | {numbers} | {speed}", flush=True)


if __name__ == "__main__":
    main()
