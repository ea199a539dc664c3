"""Approximate search against FAISS's exact one, FAISS's own refinement, and hnswlib.

    python benchmarks/approximate.py [--rows 1000000] [--recall 0.995] [--kinds ivf ivfpq hnsw]

All in one run, on the vectors of landmark_vectors.py. "lmk" searches a half-precision gallery that
is mapped from a file, and scores again from it. "FAISS, RFlat" is the same FAISS index with as many
candidates, refined by FAISS from a float32 copy: "same" with the greater of lmk's two efforts for
every query, "least" with the least one that gives lmk's recall. hnswlib (where it is installed) has
as many links and the least `ef`, of doublings, that gives its recall. The ratio is that of the time
of IndexFlatIP with matrix multiplication (distance_compute_blas_threshold = 1) for all queries at
once, or alone (the median; the last column is the slowest tenth), to that of the search in that
row. MB is what is held beside the half-precision vectors. ivf is no FAISS index, so there is no row
of FAISS for it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import faiss
import landmark_vectors
import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.ann.faiss_factory import CELLS, efforts, search_parameters
from lmk.index.ann.searcher import ApproximateSearcher
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.vectors import VectorPart, Vectors
from lmk.index.vectors.view import View

K = 10
DIM = 512
ONE = 200  # queries asked alone
Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]


class Table:
    """Measures searches, and prints a line for each."""

    def __init__(self, queries: NDArray[np.float32], flat: faiss.IndexFlatIP) -> None:
        self.queries = queries
        faiss.cvar.distance_compute_blas_threshold = 1
        started = time.perf_counter()
        self._true = flat.search(queries, K)[1]
        self._batch = (time.perf_counter() - started) / len(queries)
        faiss.cvar.distance_compute_blas_threshold = 20
        self._one = alone(lambda one: flat.search(one, K)[1], queries[:10])[0]
        batch, one = 1e3 * self._batch, 1e3 * self._one
        heads = ("", "recall", "batch ms", "ratio", "one ms", "ratio", "MB", "built s", "90 %")
        print("{:38} {:>7} {:>9} {:>6} {:>8} {:>6} {:>7} {:>8} {:>8}".format(*heads))
        size = flat.ntotal * DIM * 4e-6
        print(f"{'IndexFlatIP':38} {1:7.4f} {batch:9.3f} {1:6.1f} {one:8.2f} {1:6.1f} {size:7.0f}")

    def recall(self, found: NDArray[np.int64]) -> float:
        """Returns the share of the true neighbours that were found."""
        pairs = zip(found, self._true, strict=True)
        return statistics.fmean(len(np.intersect1d(a, b)) / K for a, b in pairs)

    def line(self, name: str, search: Search, size: float, built: float | None) -> None:
        """Measures one search; size in bytes beside the vectors, built in seconds."""
        search(self.queries[:64])
        started = time.perf_counter()
        found = search(self.queries)
        batch = (time.perf_counter() - started) / len(self.queries)
        one, slow = alone(search, self.queries[:ONE])
        took = "" if built is None else f"{built:.0f}"
        print(
            f"{name:38} {self.recall(found):7.4f} {1e3 * batch:9.3f} {self._batch / batch:6.1f}"
            f" {1e3 * one:8.2f} {self._one / one:6.1f} {size / 1e6:7.0f} {took:>8}"
            f" {1e3 * slow:8.2f}",
            flush=True,
        )


def alone(search: Search, queries: NDArray[np.float32]) -> tuple[float, float]:
    """The time of one query, in seconds: the median, and what nine in ten stay below."""
    times = []
    for i in range(len(queries)):
        started = time.perf_counter()
        search(queries[i : i + 1])
        times.append(time.perf_counter() - started)
    return statistics.median(times), float(np.percentile(times, 90))


def stored(folder: Path, blocks: Iterator[NDArray[np.float32]], rows: int) -> View:
    """A view of vectors written to a file, as a gallery keeps them."""
    path = folder / "vectors.f16"
    with path.open("wb") as file:
        for block in blocks:
            file.write(block.astype("<f2").tobytes())
    mapped = np.memmap(path, "<f2", "r", shape=(rows, DIM))
    vectors = Vectors((VectorPart(0, mapped, "all"),), DIM)
    return View(vectors, np.ones(rows, np.bool_), "f", derived=DerivedFiles(folder / "cache"))


def embeddings(vectors: NDArray[np.float32]) -> Embeddings:
    return Embeddings(vectors, tuple(map(str, range(len(vectors)))), "f")


def of_lmk(table: Table, view: View, kind: str, recall: float) -> tuple[ApproximateSearcher, str]:
    started = time.perf_counter()
    searcher = ApproximateSearcher(view, kind, recall=recall)
    built = time.perf_counter() - started
    size = sum(path.stat().st_size for path in cached(view, searcher))
    table.line(f"lmk {kind}", lambda q: searcher.search(embeddings(q), K).rows, size, built)
    return searcher, searcher.reason


def cached(view: View, searcher: ApproximateSearcher) -> list[Path]:
    names = [name for name in view.derived.names() if name.startswith(searcher._built.stem)]
    return [path for name in names if (path := view.derived.load(name))]


def of_faiss(table: Table, vectors: NDArray[np.float32], searcher: ApproximateSearcher) -> None:
    """The same index, refined by FAISS."""
    index, setting = searcher._built.index, searcher.tuned[0]
    refined = faiss.IndexRefineFlat(index, faiss.swig_ptr(vectors))
    size = len(faiss.serialize_index(index)) + vectors.nbytes

    def search(effort: int, queries: NDArray[np.float32]) -> NDArray[np.int64]:
        parameters = faiss.IndexRefineSearchParameters(
            k_factor=float(setting.factor),
            base_index_params=search_parameters(index, effort, None),
        )
        return refined.search(queries, K, params=parameters)[1]

    goal = table.recall(searcher.search(embeddings(table.queries), K).rows)
    enough = setting.second_effort
    for effort in efforts(index, len(vectors)):
        if table.recall(search(effort, table.queries)) >= goal:
            enough = effort
            break
    for name, effort in (("same", setting.second_effort), ("least", enough)):
        table.line(f"FAISS {searcher.factory},RFlat {name}", partial(search, effort), size, None)


def of_hnswlib(table: Table, vectors: NDArray[np.float32], recall: float) -> None:
    try:
        import hnswlib
    except ImportError:
        print("hnswlib is not installed")
        return
    index = hnswlib.Index("ip", DIM)
    started = time.perf_counter()
    index.init_index(
        len(vectors), ef_construction=40, M=16
    )  # 32 links at the bottom, as FAISS's 32
    index.add_items(vectors)
    built = time.perf_counter() - started
    for ef in (16, 32, 64, 128, 256, 512, 1024):
        index.set_ef(ef)
        found = index.knn_query(table.queries, K)[0].astype(np.int64)
        if table.recall(found) >= recall or ef == 1024:
            break
    size = index.index_file_size()
    table.line(f"hnswlib M=16, ef={ef}", lambda q: index.knn_query(q, K)[0], size, built)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--recall", type=float, default=0.995)
    parser.add_argument("--kinds", nargs="*", default=["ivf", "ivfpq", "hnsw"])
    parser.add_argument("--threads", type=int, default=faiss.omp_get_max_threads())
    parser.add_argument("--folder", type=Path, help="keeps the indexes there for a further run")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    vectors = landmark_vectors.gallery(options.rows, DIM)
    queries = landmark_vectors.queries(options.queries, options.rows, DIM)
    print(f"{options.rows} x {DIM}, recall@{K}, {options.threads} threads")
    flat = faiss.IndexFlatIP(DIM)
    flat.add(vectors)
    table = Table(queries, flat)
    del flat
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        view = stored(folder, iter(np.array_split(vectors, 100)), options.rows)
        reasons = []
        for kind in options.kinds:
            searcher, reason = of_lmk(table, view, kind, options.recall)
            reasons.append(reason)
            if kind != CELLS:
                of_faiss(table, vectors, searcher)
            del searcher
    of_hnswlib(table, vectors, options.recall)
    print(*reasons, sep="\n")


if __name__ == "__main__":
    main()
