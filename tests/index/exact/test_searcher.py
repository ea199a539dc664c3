"""Exact search against brute force in float64, on every way to the answer."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import EmbedderMismatch, GalleryDamaged, UsageError
from lmk.index.exact import compiled, tiles
from lmk.index.exact import searcher as exact_searcher
from lmk.index.exact.searcher import ExactSearcher
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.neighbours import NO_ROW
from lmk.index.vectors.vectors import VectorPart, Vectors
from lmk.index.vectors.view import View

WAYS = ["blocks", "floats"] + (["codes"] if tiles.INT8_LANES else [])
DIMS = [8, 9, 13, 31, 64, 127, 256, 513]


def asked(vectors: NDArray[np.float32]) -> Embeddings:
    return Embeddings(vectors, tuple(f"q{i}" for i in range(len(vectors))), "embedder")


def view_of(
    vectors: NDArray[np.float32],
    mask: NDArray[np.bool_] | None = None,
    half: bool = True,
    cuts: tuple[int, ...] = (),
    folder: Path | None = None,
) -> View:
    """A view of vectors in parts; every second part is float32 if there are several."""
    bounds = [0, *cuts, len(vectors)]
    parts = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        if stop > start:
            dtype = "f2" if half and number % 2 == 0 else "f4"
            key = f"part{number}" if folder else ""
            parts.append(VectorPart(start, vectors[start:stop].astype(dtype), key))
    mask = np.ones(len(vectors), np.bool_) if mask is None else mask
    stored = Vectors(tuple(parts), vectors.shape[1])
    return View(stored, mask, "embedder", derived=DerivedFiles(folder))


def searcher(view: View, way: str, monkeypatch: pytest.MonkeyPatch, threads: int = 2):
    seconds = np.inf if way == "blocks" else -1.0
    monkeypatch.setattr(exact_searcher, "_SECONDS_BEFORE_COMPILED", seconds)
    return ExactSearcher(view, int8=way == "codes", threads=threads)


def brute_force(view: View, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_]):
    """Every score in float64, sorted by (score falling, row rising)."""
    rows = np.flatnonzero(mask)
    found = np.full((len(queries), k), NO_ROW, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    vectors = view.stored.read(rows).astype(np.float64)
    for i, query in enumerate(queries):
        values = np.einsum("ij,j->i", vectors, query.astype(np.float64)).astype(np.float32)
        order = np.lexsort((rows, -values))[:k]
        found[i, : len(order)], scores[i, : len(order)] = rows[order], values[order]
    return found, scores


def check(view: View, way: str, queries, k: int, monkeypatch, allow=None, threads: int = 2):
    found = searcher(view, way, monkeypatch, threads).search(asked(queries), k, allow)
    mask = view.mask if allow is None else view.mask & allow
    rows, scores = brute_force(view, queries, k, mask)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.query_ids == tuple(f"q{i}" for i in range(len(queries)))


def random_units(rng, n: int, dim: int) -> NDArray[np.float32]:
    return unit_rows(rng.standard_normal((n, dim)))


def equal_rows(rng, n: int, dim: int) -> NDArray[np.float32]:
    return np.repeat(random_units(rng, 1, dim), n, axis=0)


def few_values(rng, n: int, dim: int) -> NDArray[np.float32]:
    """Thousands of ties: rows drawn from three."""
    return random_units(rng, 3, dim)[rng.integers(0, 3, n)]


def one_class(rng, n: int, dim: int) -> NDArray[np.float32]:
    centre = rng.standard_normal(dim)
    return unit_rows(centre + 10.0 ** rng.uniform(-6, 0, (n, 1)) * rng.standard_normal((n, dim)))


def signs(rng, n: int, dim: int) -> NDArray[np.float32]:
    """Scores that differ by whole steps, and tie often."""
    return unit_rows(rng.choice([-1.0, 1.0], (n, dim)))


def one_hot(rng, n: int, dim: int) -> NDArray[np.float32]:
    """The rest is exactly zero, and so are most scores."""
    vectors = np.zeros((n, dim), np.float32)
    vectors[np.arange(n), rng.integers(0, dim, n)] = rng.choice([-1.0, 1.0], n)
    return vectors


def spikes(rng, n: int, dim: int) -> NDArray[np.float32]:
    """One large component: the codes of the others lose most."""
    vectors = rng.standard_normal((n, dim)) * 1e-2
    vectors[:, 0] += 1
    return unit_rows(vectors)


def wild_norms(rng, n: int, dim: int) -> NDArray[np.float32]:
    """Tiny and huge before they are made unit rows; the tiniest become (1, 0, 0, ...)."""
    scale = 10.0 ** rng.uniform(-20, 15, (n, 1))
    return unit_rows(rng.standard_normal((n, dim)) * scale)


KINDS = [random_units, equal_rows, few_values, one_class, signs, one_hot, spikes, wild_norms]


@pytest.mark.parametrize("way", WAYS)
@given(
    kind=st.sampled_from(KINDS),
    asked_kind=st.sampled_from(KINDS),
    dim=st.sampled_from(DIMS),
    n=st.integers(0, 300),
    queries=st.sampled_from([1, 2, 4, 5, 12, 13, 30]),
    k=st.sampled_from([1, 2, 20, 150, 310]),
    seed=st.integers(0, 2**32 - 1),
    half=st.booleans(),
    share=st.sampled_from([None, 0.0, 0.05, 0.4, 0.97]),
    own=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_way_equals_brute_force(
    way, kind, asked_kind, dim, n, queries, k, seed, half, share, own
):
    rng = np.random.default_rng(seed)
    vectors = kind(rng, n, dim)
    cuts = tuple(sorted(rng.integers(0, n + 1, 3).tolist())) if seed % 2 else ()
    view = view_of(vectors, half=half, cuts=cuts, mask=rng.random(n) < 0.9)
    wanted = asked_kind(rng, queries, dim)
    if own and n:  # queries that are rows: the best score is 1, or nearly
        wanted = vectors[rng.integers(0, n, queries)]
    allow = None if share is None else rng.random(n) < share
    with pytest.MonkeyPatch.context() as patch:
        check(view, way, wanted, k, patch, allow, threads=1 + seed % 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_2048_components(way, kind, monkeypatch):
    rng = np.random.default_rng(5)
    vectors = kind(rng, 150, 2048)
    check(view_of(vectors), way, kind(rng, 3, 2048), 10, monkeypatch)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [equal_rows, few_values])
def test_ties_by_thousands(way, kind, monkeypatch):
    rng = np.random.default_rng(6)
    vectors = kind(rng, 20_000, 24)
    queries = np.concatenate([vectors[:3], random_units(rng, 10, 24)])
    check(view_of(vectors, cuts=(7000,)), way, queries, 25, monkeypatch)


@pytest.mark.parametrize("way", WAYS)
def test_a_gallery_of_classes_in_order(way, monkeypatch):
    rng = np.random.default_rng(7)
    centres = random_units(rng, 200, 32)
    vectors = unit_rows(np.repeat(centres, 60, axis=0) + 0.1 * rng.standard_normal((12_000, 32)))
    queries = unit_rows(centres[:40] + 0.1 * rng.standard_normal((40, 32)))
    view = view_of(vectors, cuts=(5000, 5001, 9000))
    check(view, way, queries, 20, monkeypatch)
    sparse = rng.random(len(vectors)) < 0.1
    check(view, way, queries, 20, monkeypatch, allow=sparse)


@pytest.mark.parametrize("way", WAYS)
def test_the_number_of_threads_changes_nothing(way, monkeypatch):
    rng = np.random.default_rng(8)
    vectors, queries = few_values(rng, 9000, 40), asked(random_units(rng, 33, 40))
    answers = [
        searcher(view_of(vectors), way, monkeypatch, threads).search(queries, 15)
        for threads in (1, 2, 7)
    ]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer.rows, answers[0].rows)
        np.testing.assert_array_equal(answer.scores, answers[0].scores)


@pytest.mark.parametrize("way", WAYS)
def test_searches_at_the_same_time(way, monkeypatch):
    rng = np.random.default_rng(15)
    kept = searcher(view_of(random_units(rng, 4000, 24)), way, monkeypatch)
    batches = [asked(random_units(rng, 30, 24)) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda some: kept.search(some, 7), batches))
    for some, found in zip(batches, together, strict=True):
        np.testing.assert_array_equal(found.rows, kept.search(some, 7).rows)


@pytest.mark.parametrize("way", WAYS)
def test_a_query_alone_and_in_company(way, monkeypatch):
    rng = np.random.default_rng(9)
    view = view_of(random_units(rng, 3000, 50))
    queries = random_units(rng, 20, 50)
    kept = searcher(view, way, monkeypatch)
    together = kept.search(asked(queries), 9)
    for i in range(len(queries)):
        alone = kept.search(asked(queries[i : i + 1]), 9)
        np.testing.assert_array_equal(alone.rows[0], together.rows[i])
        np.testing.assert_array_equal(alone.scores[0], together.scores[i])


def test_queries_are_compared_in_blocks_of_little_memory(monkeypatch):
    monkeypatch.setattr(compiled, "_MEMORY", 40_000)
    rng = np.random.default_rng(10)
    check(view_of(random_units(rng, 500, 16)), "floats", random_units(rng, 40, 16), 5, monkeypatch)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux says what is mapped")
def test_a_mapped_file_does_not_stay_in_memory(tmp_path, monkeypatch):
    rng = np.random.default_rng(14)
    path = tmp_path / "vectors.npy"
    np.save(path, random_units(rng, 20_000, 64).astype(np.float16))
    mapped = np.load(path, mmap_mode="r")
    stored = Vectors((VectorPart(0, mapped, ""),), 64)
    view = View(stored, np.ones(20_000, np.bool_), "embedder")
    queries = random_units(rng, 300, 64)
    kept = searcher(view, "codes", monkeypatch)
    found = kept.search(asked(queries), 50)
    after = resident(path)
    rows, scores = brute_force(view, queries, 50, view.mask)  # reads all of the file
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)
    assert after < resident(path) / 4


def resident(path: Path) -> int:
    """Kilobytes of a mapped file that are in this process's memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    return next(int(line.split()[1]) for line in lines[at:] if line.startswith("Rss:"))


@pytest.mark.parametrize("way", WAYS)
def test_no_rows_and_no_queries(way, monkeypatch):
    none = np.empty((0, 8), np.float32)
    found = searcher(view_of(none), way, monkeypatch).search(asked(np.eye(8, dtype="f4")), 3)
    assert (found.rows == NO_ROW).all() and found.rows.shape == (8, 3)
    found = searcher(view_of(np.eye(8, dtype="f4")), way, monkeypatch).search(asked(none), 3)
    assert found.rows.shape == (0, 3)


@pytest.mark.parametrize("way", WAYS)
def test_a_vector_damaged_after_it_was_coded(way, monkeypatch):
    rng = np.random.default_rng(11)
    view = view_of(random_units(rng, 100, 16), half=False)
    kept = searcher(view, way, monkeypatch)
    query = view.stored.parts[0].array[7:8].copy()
    kept.search(asked(query), 1)
    view.stored.parts[0].array[7] *= 1.2
    with pytest.raises(GalleryDamaged, match=r"row 7 has length 1\.2"):
        kept.search(asked(query), 1)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "blocks"])
def test_a_vector_damaged_before_it_is_coded(way, monkeypatch):
    vectors = np.eye(8, dtype="f4")
    vectors[5] = 0
    with pytest.raises(GalleryDamaged, match="row 5 has length 0"):
        searcher(view_of(vectors), way, monkeypatch).search(asked(np.eye(8, dtype="f4")), 1)


def test_wrong_calls():
    kept = ExactSearcher(view_of(np.eye(8, dtype="f4")))
    queries = asked(np.eye(8, dtype="f4"))
    with pytest.raises(UsageError, match="0 neighbours"):
        kept.search(queries, 0)
    with pytest.raises(EmbedderMismatch):
        kept.search(Embeddings(queries.vectors, queries.ids, "another"), 1)
    with pytest.raises(ValueError, match="bool"):
        kept.search(queries, 1, np.ones(3, np.bool_))


def test_little_work_is_done_without_loading_the_compiled_scan():
    code = """
import sys
import numpy as np
from lmk.embed.embeddings import Embeddings
from lmk.index.exact.searcher import ExactSearcher
from lmk.index.vectors.view import View
some = Embeddings(np.eye(64, dtype="f4"), tuple(map(str, range(64))), "e")
kept = ExactSearcher(View.of_embeddings(some))
assert kept.search(some, 1).rows[:, 0].tolist() == list(range(64))
print(kept.reason)
loaded = {"torch", "numba", "faiss"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("exact search: 64 vectors are compared with each query")


def test_work_done_with_numpy_adds_up(monkeypatch):
    view = view_of(random_units(np.random.default_rng(12), 1000, 16))
    kept = ExactSearcher(view)
    monkeypatch.setattr(exact_searcher, "_SECONDS_BEFORE_COMPILED", 2.5 * kept._estimate(1))
    query = asked(view.stored.read(np.array([3])))
    before = kept.search(query, 4)
    kept.search(query, 4)
    assert kept._scan is None
    after = kept.search(query, 4)
    assert kept._scan is not None
    np.testing.assert_array_equal(before.rows, after.rows)
    np.testing.assert_array_equal(before.scores, after.scores)


def test_half_precision_that_the_processor_cannot_read(monkeypatch):
    monkeypatch.setattr(compiled, "HALVES", False)
    rng = np.random.default_rng(13)
    view = view_of(random_units(rng, 100, 16))
    check(view, "floats", random_units(rng, 3, 16), 5, monkeypatch)
    assert ExactSearcher(view).reason.endswith("with numpy alone")


def test_the_reason_names_the_way(monkeypatch):
    view = view_of(np.eye(16, dtype="f4"))
    assert "too few" in searcher(view, "blocks", monkeypatch).reason
    floats = searcher(view, "floats", monkeypatch).reason
    assert floats.startswith("exact search: 16 vectors are compared with each query in float32")
    if tiles.INT8_LANES:
        assert "in bytes" in searcher(view, "codes", monkeypatch).reason


@pytest.mark.parametrize(("lanes", "way"), [(16, "bytes"), (8, "bytes"), (0, "float32")])
def test_bytes_are_compared_where_the_processor_can(lanes, way, monkeypatch):
    monkeypatch.setattr(compiled, "INT8_LANES", lanes)
    monkeypatch.setattr(exact_searcher, "_SECONDS_BEFORE_COMPILED", -1.0)
    assert f"in {way}" in ExactSearcher(view_of(np.eye(16, dtype="f4"))).reason


@pytest.mark.slow
@pytest.mark.parametrize("features", ["+avx2,+fma,+f16c", "+avx2,+fma,+f16c,+avxvnni"])
def test_narrower_processors(features: str, tmp_path: Path):
    """The same tests, compiled for processors with shorter vectors."""
    missing = {name[1:] for name in features.split(",")} - tiles.features()
    if missing:
        pytest.skip(f"this processor has no {', '.join(sorted(missing))}")
    env = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features}
    chosen = "brute_force or 2048 or ties_by_thousands"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-k", chosen],
        env={**os.environ, **env, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
