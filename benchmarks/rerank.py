"""From neighbours to answers: what each step of the pipeline is worth on real photos.

DATA is as of accuracy.py: one half of the distractors is the bank, the other half asks with
queries.csv; then swapped; means of both. A network that learnt from one half of them needs a
second one for the swap (--other-half); without it one way round is measured.

Nothing is tuned on what it is scored on: the rows of single steps have the values of their papers,
the last rows choose by nested cross-validation, and so do the threshold and the probabilities.

    python benchmarks/rerank.py [DATA] [--other-half DIR] [--networks landmarks-lite1,lite1,lite0]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accuracy import Split, splits
from numpy.typing import NDArray

from lmk.embed.data.manifest import read_manifest
from lmk.embed.defaults import DEFAULT
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.config import preset
from lmk.eval.scores.average_precision import judge_neighbours
from lmk.eval.scores.bootstrap import gap_interval
from lmk.eval.scores.gap import contest_gap, gap_of_judged
from lmk.eval.scores.judged import Judged
from lmk.eval.tune.calibration_cv import answers_of_photos, calibrated
from lmk.eval.tune.grid import choose, default_grid, fold_scores, name_of, stratified_folds
from lmk.eval.tune.labelled_photos import LabelledPhotos, read_labelled_photos
from lmk.eval.tune.scores import PLAIN, judged_of, part, try_pipelines
from lmk.rerank.fit.calibration import threshold_for
from lmk.rerank.indexing.build import build_index
from lmk.rerank.lists.retrieval import Collection, Retrieval, rerank_lists
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.dba import DbaStep
from lmk.rerank.steps.distractor_similarity import (
    DemoteStep,
    DistractorSimilarityStep,
    QueryPenaltyStep,
)
from lmk.rerank.steps.geometry import GeometryStep
from lmk.rerank.steps.penalty import PenaltyStep, RescaleStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.voting import VoteStep

FOLDS = 5
SMALL = 15  # pictures of a landmark of the long tail
PRECISION = 0.97
ONE = VoteStep(k=1)
STEPS = {
    "top-1 cosine": PLAIN,
    "+ penalty, raw counts": Pipeline(steps=(PenaltyStep(counts="raw"), ONE)),
    "+ penalty, relative counts": Pipeline(steps=(PenaltyStep(), ONE)),
    "+ B(g) of gallery pictures": Pipeline(steps=(DistractorSimilarityStep(), ONE)),
    "+ C(q) of the query, half": Pipeline(steps=(ONE, QueryPenaltyStep())),
    "+ demotion by the third cosine": Pipeline(steps=(ONE, DemoteStep())),
    "+ neighbourhood": Pipeline(steps=(DbaStep(), ONE)),
    "+ vote of 5": Pipeline(steps=(RescaleStep(), VoteStep())),
    "+ vote of 5, prior -.3": Pipeline(steps=(RescaleStep(), VoteStep(prior=-0.3))),
    "the default pipeline": Pipeline(),
}
GEOMETRY = "the default pipeline + geometry"
COLUMNS = "acc@1 | GAP [95 %] | GAP at 98 % none | acc@1, landmarks of 15 pictures or fewer"


@dataclass(frozen=True, eq=False)
class Way:
    """One way round: an index, the photos that ask, and how it is answered.

    Attributes:
        index: opened.
        photos: the queries.
        sizes: pictures of each landmark in the gallery.
    """

    index: Recognizer
    photos: LabelledPhotos
    sizes: Counter[str]

    def row(self, judged: Judged) -> list[float]:
        """acc@1, GAP, its interval, GAP at contest ratio, acc@1 of small landmarks."""
        gap = gap_interval(judged)
        small = np.array(
            [bool(own) and max(self.sizes[x] for x in own) <= SMALL for own in self.photos.labels]
        )
        tail = judged.correct[small].mean()
        contest = contest_gap(judged).value
        return [judged.accuracy(), gap.value, gap.low, gap.high, contest, float(tail)]


def with_geometry(pipeline: Pipeline) -> Pipeline:
    """The same steps with a geometric check before the vote."""
    place = next(i for i, step in enumerate(pipeline.steps) if isinstance(step, VoteStep))
    steps = (*pipeline.steps[:place], GeometryStep(), *pipeline.steps[place:])
    return pipeline.model_copy(update={"steps": steps})


def nested(way: Way, grid: list[Predictions]) -> tuple[Judged, NDArray[np.int64]]:
    """Each fold answered by the pipeline that is best on the others, and which that was.

    Confidences of different pipelines do not compare, so each fold's are replaced by their ranks
    within the fold before they are put together.
    """
    judged = [judged_of(each, way.photos) for each in grid]
    kinds = [" ".join(labels) for labels in way.photos.labels]
    fold = stratified_folds(kinds, FOLDS, 0)
    scores = fold_scores(
        len(judged), fold, lambda each, rows: gap_of_judged(part(judged[each], rows)).value
    )
    chosen = choose(scores).nested
    correct, confidence = judged[0].correct.copy(), judged[0].confidence.copy()
    for number, pipeline in enumerate(chosen.tolist()):
        rows = np.flatnonzero(fold == number)
        correct[rows] = judged[pipeline].correct[rows]
        confidence[rows] = judged[pipeline].confidence[rows].argsort().argsort() / len(rows)
    one = judged[0]
    return Judged(one.query_ids, one.has_landmark, one.answered, correct, confidence), chosen


def refusal(way: Way, predictions: Predictions) -> list[float]:
    """Precision and recall of a threshold for .97, and the ECE: each fold by the others."""
    answers = answers_of_photos(predictions, way.photos, way.sizes)
    found = calibrated(answers, lambda some: threshold_for(some, PRECISION), folds=FOLDS)
    return [found.held_out.precision, found.held_out.recall, found.ece]


def lists(way: Way, retrieval: Retrieval) -> float:
    """mAP@100 of the lists of the photos that show a landmark."""
    gallery = way.index.gallery
    collection = Collection(way.index.searcher, gallery.view("gallery"))
    found = rerank_lists(retrieval, way.photos.embeddings, collection)
    rows = [gallery.labels(row) for row in range(gallery.rows)]
    return float(judge_neighbours(found, rows, way.photos.labels).mean_average_precision())


def show(name: str, rows: list[list[float]]) -> None:
    """The mean of both ways round; the interval is of one way round, the wider one's width."""
    accuracy, gap, low, high, contest, tail = np.mean(rows, axis=0)
    cells = [
        f"{accuracy:.3f}",
        f"{gap:.3f} [{low:.3f} {high:.3f}]",
        f"{contest:.3f}",
        f"{tail:.3f}",
    ]
    print(" | ".join([name, *cells]), flush=True)


def measure(name: str, ways: list[Way], *, geometry: bool) -> None:
    """All tables of one network."""
    print(f"\n## {name} ({len(ways)} way{'s' * (len(ways) > 1)} round)\nsteps | {COLUMNS}")
    print(" | ".join(["---"] * 5), flush=True)
    names = list(STEPS)
    alone = [try_pipelines(way.index, list(STEPS.values()), way.photos) for way in ways]
    for i, step in enumerate(names):
        show(
            step,
            [
                way.row(judged_of(each[i], way.photos))
                for way, each in zip(ways, alone, strict=True)
            ],
        )
    picked: Counter[str] = Counter()
    best = []
    for way in ways:
        grid = list(default_grid())
        judged, chosen = nested(way, try_pipelines(way.index, grid, way.photos))
        picked.update(name_of(grid[number]) for number in chosen.tolist())
        best.append(way.row(judged))
    show("chosen by nested cross-validation", best)
    if geometry:
        checked(ways)
    for step, count in picked.most_common():
        print(f"    chosen in {count} of {FOLDS * len(ways)} folds: {step}")
    print("\nNone of these, each fold by the others: precision | recall | ECE")
    for step in ("top-1 cosine", "the default pipeline"):
        place = names.index(step)
        figures = [refusal(way, each[place]) for way, each in zip(ways, alone, strict=True)]
        print(f"{step} | " + " | ".join(f"{x:.3f}" for x in np.mean(figures, axis=0)))
    print("\nRetrieval lists | mAP@100")
    for text, retrieval in (("plain cosine", Retrieval(steps=())), ("as shipped", Retrieval())):
        print(f"{text} | {np.mean([lists(way, retrieval) for way in ways]):.3f}", flush=True)


def checked(ways: list[Way]) -> None:
    """The geometric check: what it brings, for how many queries it runs, and its cost."""
    rows, seconds = [], []
    for way in ways:
        learnt = way.index.pipeline.threshold()
        pipeline = with_geometry(Pipeline()).with_threshold(learnt)
        started = time.perf_counter()
        (found,) = try_pipelines(way.index, [pipeline], way.photos)
        rows.append(way.row(judged_of(found, way.photos)))
        seconds.append(found.geometry_seconds)
        print(f"    geometry: {time.perf_counter() - started:.0f} s", flush=True)
    show(GEOMETRY, rows)
    spent = np.concatenate(seconds)
    ran = spent > 0
    cost = 1000 * np.median(spent[ran]) if ran.any() else 0
    print(f"    ran for {100 * ran.mean():.0f} % of queries, {cost:.0f} ms each (median)")


def ways_of(data: Path, networks: list[Embedder], folder: Path) -> list[Way]:
    """Builds and opens an index for each way round."""
    gallery = read_manifest(data / "gallery.csv")
    sizes = Counter(label for row in gallery.rows for label in row.labels)
    ways = []
    halves: list[Split] = splits(data)[: len(networks)]
    for number, (embedder, split) in enumerate(zip(networks, halves, strict=True)):
        index = folder / f"{number}.lmk"
        build_index(gallery, index, embedder, distractors=split.bank)
        recognizer = Recognizer.open(index)
        ways.append(Way(recognizer, read_labelled_photos(split.queries, recognizer), sizes))
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    real = Path(os.environ.get("LMK_REAL_DATA", "."))
    parser.add_argument("data", type=Path, nargs="?", default=real)
    parser.add_argument("--networks", default=f"{DEFAULT},lite1,lite0")
    parser.add_argument("--other-half", type=Path, help="the default as learnt from the other half")
    parser.add_argument("--geometry", action="store_true", help="with the geometric check (slow)")
    options = parser.parse_args()
    data = options.data.resolve()
    if not (data / "gallery.csv").exists():
        print(f"skipped: no gallery.csv in {data}; name the folder, or set LMK_REAL_DATA")
        return
    for name in options.networks.split(","):
        first = Embedder.named(name)
        networks = [first, first]
        if name == DEFAULT and preset(name).neck is not None:  # it learnt from one half
            networks = [first, *([Embedder.load(options.other_half)] if options.other_half else [])]
        with tempfile.TemporaryDirectory() as folder:
            ways = ways_of(data, networks, Path(folder))
            try:
                measure(name, ways, geometry=options.geometry and name == DEFAULT)
            finally:
                for way in ways:
                    way.index.close()


if __name__ == "__main__":
    main()
