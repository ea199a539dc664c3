"""Exact search against FAISS IndexFlatIP, blocked fp32 with torch, and USearch.

Vectors clustered like landmarks (landmark_vectors.py), stored in half precision; all sides but
USearch's bytes search the same numbers, and the sides take turns, so every ratio is of one run.
The rows found must be those of IndexFlatIP, apart from its own rounding: where they differ, the
scores of both rows, in float64, must be within what its float32 sums may be off.

    python benchmarks/exact_search.py [--rows 1000000] [--threads 1 2] [--batches 1 16 200 1000]

USearch is compared where it is installed (pip install usearch).
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
from landmark_vectors import landmark_vectors, queries

from lmk.embed.embeddings import Embeddings
from lmk.index.exact.searcher import ExactSearcher
from lmk.index.vectors.scores import scores
from lmk.index.vectors.vectors import VectorPart, Vectors
from lmk.index.vectors.view import View

K = 20
BLOCK = 16_384
SLOW = 10.0  # seconds; who takes longer is not asked again
USEARCH_MOST = 200  # queries: at 1,000 it took 20 GB of memory for 1M vectors
Floats = np.ndarray
Answer = tuple[np.ndarray, np.ndarray]  # rows and scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 200, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    view, floats = vectors(options.rows, options.dim)
    asked = queries(max(options.batches), options.rows, options.dim)
    print(f"{options.rows} x {options.dim}, k = {K}, {platform.processor() or platform.machine()}")
    flat = faiss.IndexFlatIP(options.dim)
    flat.add(floats)
    for threads in options.threads:
        compare(view, floats, flat, asked, threads, options.batches, options.repeats)


def vectors(rows: int, dim: int) -> tuple[View, Floats]:
    """The view that lmk searches, and what it holds as float32 unit rows."""
    stored = np.empty((rows, dim), np.float16)
    done = 0
    for block in landmark_vectors(rows, dim):
        stored[done : done + len(block)] = block
        done += len(block)
    whole = Vectors((VectorPart(0, stored, ""),), dim)
    floats = np.empty((rows, dim), np.float32)
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        floats[start:stop] = whole.read(np.arange(start, stop))
    return View(whole, np.ones(rows, np.bool_), "benchmark"), floats


def compare(
    view: View,
    floats: Floats,
    flat: faiss.IndexFlatIP,
    asked: Floats,
    threads: int,
    batches: list[int],
    repeats: int,
) -> None:
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    start = time.perf_counter()
    exact = ExactSearcher(view, int8=True, threads=threads)
    exact.search(embeddings(asked), 1)
    seconds = time.perf_counter() - start
    no_bytes = ExactSearcher(view, int8=False, threads=threads)
    no_bytes.search(embeddings(asked), 1)
    print(f"\n{threads} threads; the codes and a first search took {seconds:.1f} s\n{exact.reason}")

    def lmk(searcher: ExactSearcher) -> Callable[[Floats], Answer]:
        def search(some: Floats) -> Answer:
            found = searcher.search(embeddings(some), K)
            return found.rows, found.scores

        return search

    sides: dict[str, Callable[[Floats], Answer]] = {
        "IndexFlatIP": lambda some: flat.search(some, K)[::-1],
        "lmk": lmk(exact),
        "lmk without int8": lmk(no_bytes),
        "torch fp32": torch_search(floats),
        **usearch_sides(floats, threads),
    }
    peak = int8_peak(floats.shape[1])
    print(
        f"{'queries':>8} {'':20}{'seconds':>9}{'x FAISS':>9}{'x torch':>9}  rows as IndexFlatIP's"
    )
    for batch in batches:
        some = asked[:batch]
        best = dict.fromkeys(sides, np.inf)
        answers = {}
        for _ in range(repeats if batch > 16 else 3 * repeats):
            for name, search in sides.items():
                if SLOW < best[name] < np.inf:
                    continue
                if name.startswith("USearch") and batch > USEARCH_MOST:
                    continue
                start = time.perf_counter()
                answers[name] = search(some)
                best[name] = min(best[name], time.perf_counter() - start)
        for name, took in best.items():
            if name not in answers:
                print(f"{batch:8} {name:20} left out: it would take too much memory")
                continue
            print(
                f"{batch:8} {name:20}{took:9.4f}{best['IndexFlatIP'] / took:9.1f}"
                f"{best['torch fp32'] / took:9.1f}  {agreement(*answers[name], answers)}"
            )
        for name in ("lmk", "lmk without int8"):
            check(name, *answers[name], *answers["IndexFlatIP"], some, floats)
        products = 2e-9 * floats.size * batch
        print(
            f"{'':9}lmk: {products / best['lmk'] / peak:.0%} of the int8 product's {peak:.0f} GOP/s"
        )


def embeddings(some: Floats) -> Embeddings:
    return Embeddings(some, tuple(map(str, range(len(some)))), "benchmark")


def torch_search(floats: Floats) -> Callable[[Floats], Answer]:
    """Products in blocks into a reused buffer, the best of each block, the best of those."""
    stored = torch.from_numpy(floats)

    def search(some: Floats) -> Answer:
        asked = torch.from_numpy(some)
        products = torch.empty(len(some), min(BLOCK, len(stored)))
        values, rows = [], []
        for start in range(0, len(stored), BLOCK):
            block = stored[start : start + BLOCK]
            out = products[:, : len(block)] if len(block) < BLOCK else products
            torch.mm(asked, block.T, out=out)
            best = out.topk(K, dim=1)
            values.append(best.values)
            rows.append(best.indices + start)
        best = torch.cat(values, 1).topk(K, dim=1)
        return torch.cat(rows, 1).gather(1, best.indices).numpy(), best.values.numpy()

    return search


def usearch_sides(floats: Floats, threads: int) -> dict[str, Callable[[Floats], Answer]]:
    if importlib.util.find_spec("usearch") is None:
        print("usearch is not installed: left out")
        return {}
    from usearch.index import MetricKind, search

    scale = 127 / np.abs(floats).max()

    def bytes_of(some: Floats) -> np.ndarray:
        return np.rint(np.clip(some * scale, -127, 127)).astype(np.int8)

    coded = bytes_of(floats)

    def answer(stored: np.ndarray, some: np.ndarray, metric: MetricKind) -> Answer:
        found = search(stored, some, K, metric, exact=True, threads=threads)
        keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)
        return keys.astype(np.int64), 1 - distances

    return {
        "USearch f32": lambda some: answer(floats, some, MetricKind.IP),
        "USearch int8": lambda some: answer(coded, bytes_of(some), MetricKind.Cos),
    }


def int8_peak(dim: int) -> float:
    """Billions of operations a second of torch's product of bytes, the best of some."""
    left = torch.randint(-127, 128, (8192, dim), dtype=torch.int8)
    right = torch.randint(-127, 128, (dim, 1008), dtype=torch.int8)
    out = torch.empty(8192, 1008, dtype=torch.int32)
    best = np.inf
    for _ in range(20):
        start = time.perf_counter()
        torch._int_mm(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * 8192 * 1008 * dim / best


def agreement(rows: np.ndarray, _: np.ndarray, answers: dict[str, Answer]) -> str:
    return f"{np.mean(rows == answers['IndexFlatIP'][0]):.2%}"


def check(
    name: str,
    rows: np.ndarray,
    values: np.ndarray,
    flat_rows: np.ndarray,
    flat_values: np.ndarray,
    some: Floats,
    floats: Floats,
) -> None:
    """Fails where an answer is not IndexFlatIP's, apart from the rounding of its sums."""
    assert np.abs(values - flat_values).max() <= 1e-5, f"{name}: a score is off by more than 1e-5"
    rounding = 2 * floats.shape[1] * 2.0**-24
    for i in np.flatnonzero((rows != flat_rows).any(axis=1)):
        true = scores(some[i], floats[flat_rows[i]])
        assert (np.abs(true - values[i]) <= rounding).all(), f"{name}: query {i} has other rows"


if __name__ == "__main__":
    main()
