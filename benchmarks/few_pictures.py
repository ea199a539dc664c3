"""Landmarks that no training saw, with 1, 3, 5 and all of their gallery pictures.

DATA holds more.csv (id,path,landmark_id) besides the files that accuracy.py names. Five draws leave
out 20 landmarks each, of those in more.csv that gallery.csv lacks and that have four pictures or
more. A quarter of the pictures of each landmark (10 at most) and one half of the distractors are
asked; the other half is the index's. Each draw is repeated with other queries and gallery pictures.

    python benchmarks/few_pictures.py [DATA] [--model NAME|DIR] [--repeats 2]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from accuracy import TOP1, splits

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.extract.embedder import Embedder
from lmk.eval.scores.average_precision import judge_neighbours
from lmk.eval.scores.gap import gap_of_judged
from lmk.eval.tune.labelled_photos import read_labelled_photos
from lmk.eval.tune.scores import judged_of, try_pipelines
from lmk.rerank.indexing.build import build_index
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.dba import DbaStep
from lmk.rerank.steps.pipeline import DEFAULT_STEPS, Pipeline

DRAWS, LEFT_OUT, LEAST = 5, 20, 4
PICTURES = (1, 3, 5, None)
PIPELINES = {
    "top-1 cosine": Pipeline(steps=(TOP1,)),
    "default, dba over all neighbours": Pipeline(steps=(DbaStep(), *DEFAULT_STEPS[1:])),
    "default without dba": Pipeline(steps=DEFAULT_STEPS[1:]),
    "the default pipeline": Pipeline(),
}


def draws(more: Manifest, known: set[str]) -> list[list[str]]:
    """The landmarks of each draw; a landmark comes again only when all have been drawn."""
    counts = Counter(label for row in more.rows for label in row.labels)
    names = sorted(name for name, n in counts.items() if n >= LEAST and name not in known)
    rng, left = np.random.default_rng(2026), list[str]()
    result = []
    for _ in range(DRAWS):
        drawn: list[str] = []
        while len(drawn) < LEFT_OUT:
            left = left or rng.permutation(names).tolist()
            name = left.pop()
            if name in drawn:
                left.insert(0, name)
            else:
                drawn.append(name)
        result.append(sorted(drawn))
    return result


def parts(more: Manifest, names: list[str], pictures: int | None, repeat: int) -> list[list[Row]]:
    """The gallery's rows and the queries."""
    gallery: list[Row] = []
    asked: list[Row] = []
    for name in names:
        own = [row for row in more.rows if name in row.labels]
        rng = np.random.default_rng([repeat, zlib.crc32(name.encode())])
        order = [own[i] for i in rng.permutation(len(own))]
        queries = min(10, max(1, len(own) // 4))
        asked += order[:queries]
        gallery += order[queries:][:pictures]
    return [gallery, asked]


def measure(index: Path, queries: Manifest) -> Iterator[tuple[str, list[float]]]:
    """acc@1, GAP, and mAP@100 of the list by cosine, for each pipeline."""
    with Recognizer.open(index) as recognizer:
        photos = read_labelled_photos(queries, recognizer)
        near, gallery = recognizer.search(photos.embeddings, 100), recognizer.gallery
        labels = [gallery.labels(row) for row in range(gallery.rows)]
        listed = judge_neighbours(near, labels, photos.labels).mean_average_precision()
        answers = try_pipelines(recognizer, list(PIPELINES.values()), photos)
    for name, predictions in zip(PIPELINES, answers, strict=True):
        judged = judged_of(predictions, photos)
        yield name, [judged.accuracy(), gap_of_judged(judged).value, listed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    real = Path(os.environ.get("LMK_REAL_DATA", "."))
    parser.add_argument("data", type=Path, nargs="?", default=real)
    parser.add_argument("--model", default=None, help="a preset or an embedder's folder")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    if not (options.data / "more.csv").exists():
        print(f"skipped: no more.csv in {options.data}; name the folder, or set LMK_REAL_DATA")
        return
    embedder = Embedder.named(options.model) if options.model else Embedder.named()
    more, split = read_manifest(options.data / "more.csv"), splits(options.data)[0]
    none = [row for row in split.queries.rows if not row.labels]
    gallery = read_manifest(options.data / "gallery.csv")
    drawn = draws(more, {label for row in gallery.rows for label in row.labels})
    figures: dict[tuple[str, int | None], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "few.lmk"
        for draw, names in enumerate(drawn):
            for pictures in PICTURES:
                for repeat in range(options.repeats):
                    rows, asked = parts(more, names, pictures, repeat)
                    build_index(
                        Manifest(more.root, tuple(rows)),
                        index,
                        embedder,
                        distractors=split.bank,
                        allow_removals=True,
                    )
                    for name, values in measure(index, Manifest(more.root, (*asked, *none))):
                        figures.setdefault((name, pictures), []).append([draw, *values])
            print(f"draw {draw + 1} of {DRAWS} done", flush=True)
    show(figures)


def show(figures: dict[tuple[str, int | None], list[list[float]]]) -> None:
    """The table of means, and the gain of the last pipeline over the second in each draw."""
    heads = [f"{n or 'all'}: acc@1 / GAP" for n in PICTURES]
    print(" | ".join(["steps", *heads]))
    for name in PIPELINES:
        means = [np.mean(figures[name, n], axis=0) for n in PICTURES]
        print(" | ".join([name, *(f"{mean[1]:.3f} / {mean[2]:.3f}" for mean in means)]))
    plain = [np.mean(figures["top-1 cosine", n], axis=0)[3] for n in PICTURES]
    print("mAP@100 of the plain list | " + " | ".join(f"{value:.3f}" for value in plain))
    names = list(PIPELINES)
    for n in PICTURES:
        new, old = (np.array(figures[name, n]) for name in (names[-1], names[1]))
        gains = [float((new - old)[new[:, 0] == draw, 2].mean()) for draw in range(DRAWS)]
        print(f"gain of GAP by draw, {n or 'all'}: " + " ".join(f"{gain:+.3f}" for gain in gains))


if __name__ == "__main__":
    main()
