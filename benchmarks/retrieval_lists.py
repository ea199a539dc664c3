"""mAP@100 of retrieval lists on real photos, by the steps that make them.

DATA holds gallery.csv and queries.csv (id,path,landmark_id): the gallery is built by the default
network, and each query wants every picture of its landmark.

    python benchmarks/retrieval_lists.py [DATA]      (DATA defaults to $LMK_REAL_DATA)
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from lmk.embed.data.manifest import read_manifest
from lmk.embed.embeddings import Embeddings
from lmk.embed.extract.embedder import Embedder
from lmk.eval.scores.average_precision import judge_neighbours
from lmk.rerank.indexing.build import build_index
from lmk.rerank.lists.retrieval import Collection, Retrieval, rerank_lists
from lmk.rerank.recognizer import Recognizer

EXPAND, NEIGHBOURHOOD = {"step": "expand", "n": 3}, {"step": "dba"}
INSERT = {"step": "insert_by_label"}
LISTS: tuple[tuple[dict[str, object], ...], ...] = (
    (),
    ({"step": "expand"},),
    (EXPAND,),
    (NEIGHBOURHOOD,),
    ({"step": "k_reciprocal"},),
    ({"step": "diffuse"},),
    ({"step": "sort_by_label"},),
    ({"step": "boost_by_tags"},),
    (INSERT,),
    ({"step": "insert_by_label", "sure": 0.6},),
    (EXPAND, INSERT),
    (NEIGHBOURHOOD, INSERT),
    ({"step": "k_reciprocal"}, INSERT),
    ({"step": "diffuse"}, INSERT),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    real = Path(os.environ.get("LMK_REAL_DATA", "."))
    parser.add_argument("data", type=Path, nargs="?", default=real)
    data = parser.parse_args().data.resolve()
    if not (data / "gallery.csv").exists():
        print(f"skipped: no gallery.csv in {data}; name the folder, or set LMK_REAL_DATA")
        return
    asked = read_manifest(data / "queries.csv")
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "gallery.lmk"
        build_index(read_manifest(data / "gallery.csv"), index, Embedder.named())
        with Recognizer.open(index) as recognizer:
            parts = [batch for batch, _ in recognizer.embed_stream(asked)]
            measure(recognizer, parts, {row.id: row.labels for row in asked.rows})


def measure(
    recognizer: Recognizer, parts: list[Embeddings], labels: dict[str, tuple[str, ...]]
) -> None:
    gallery = recognizer.gallery
    vectors = np.concatenate([part.vectors for part in parts])
    ids = tuple(id_ for part in parts for id_ in part.ids)
    queries = Embeddings(vectors, ids, gallery.fingerprint)
    row_labels = [gallery.labels(row) for row in range(gallery.rows)]
    wanted = [labels[id_] for id_ in ids]
    print(f"{len(queries)} queries, {gallery.rows} pictures, {len(gallery.label_names)} landmarks")
    print("steps | mAP@100 | seconds, what is made once included")
    print("--- | --- | ---")
    for steps in LISTS:
        retrieval = Retrieval.model_validate({"steps": steps})
        collection = Collection(recognizer.searcher, gallery.view())
        started = time.perf_counter()
        found = rerank_lists(retrieval, queries, collection)
        took = time.perf_counter() - started
        value = judge_neighbours(found, row_labels, wanted).mean_average_precision()
        print(f"{', '.join(map(text, steps)) or 'none (cosine)'} | {value:.3f} | {took:.1f}")


def text(step: dict[str, object]) -> str:
    numbers = " ".join(f"{name} {value}" for name, value in step.items() if name != "step")
    return f"{step['step']} {numbers}".strip()


if __name__ == "__main__":
    main()
