"""The bound that exact search rests on, and the files its codes are kept in."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import GalleryDamaged
from lmk.index.exact import codes as exact_codes
from lmk.index.exact import searcher as exact_searcher
from lmk.index.exact.codes import PartCodes, QueryCodes, codes_of, float_slacks
from lmk.index.exact.compiled import CompiledScan
from lmk.index.exact.searcher import ExactSearcher
from lmk.index.exact.tiles import INT8_LANES, INT8_QUERIES, PANEL
from lmk.index.gallery.gallery import Gallery
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.scores import scores
from lmk.index.vectors.vectors import VectorPart, Vectors
from lmk.index.vectors.view import View


def coded(vectors: NDArray[np.float32], folder: Path | None = None, key: str = "") -> PartCodes:
    part = VectorPart(0, vectors, key)
    stored = Vectors((part,), vectors.shape[1])
    with ThreadPoolExecutor(2) as workers:
        return codes_of(stored, part, DerivedFiles(folder), workers, int8=True)


def whole_numbers(codes: PartCodes, n: int, dim: int) -> NDArray[np.int64]:
    """The codes of each vector, int64 [n, dim]."""
    rows = codes.codes.transpose(0, 2, 1, 3).reshape(-1, codes.codes.shape[1] * 4)
    return rows[:n, :dim].astype(np.int64) - 128


def query_numbers(asked: QueryCodes, q: int, dim: int) -> NDArray[np.int64]:
    """The codes of each query out of its tile."""
    steps, at, rows = -(-dim // 4), 0, []
    while len(rows) < q:
        left = q - len(rows)
        width = min((w for w in INT8_QUERIES if w >= left), default=INT8_QUERIES[0])
        tile = asked.codes[at : at + steps * width * 4].reshape(steps, width, 4)
        rows += list(tile.transpose(1, 0, 2).reshape(width, -1)[:left])
        at += steps * width * 4
    return np.array(rows, np.int64)[:, :dim]


@given(
    n=st.integers(1, 70),
    q=st.integers(1, 30),
    dim=st.sampled_from([8, 11, 64, 130, 512, 2048]),
    power=st.sampled_from([1, 3, 9]),
    own=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_the_bound_holds(n, q, dim, power, own, seed):
    """Powers of normal numbers have few large components, which cost the others most."""
    rng = np.random.default_rng(seed)
    vectors = unit_rows(rng.standard_normal((n, dim)) ** power)
    queries = unit_rows(rng.standard_normal((q, dim)) ** power)
    if own:
        queries[: min(n, q)] = vectors[: min(n, q)]
    codes, asked = coded(vectors), QueryCodes.of(queries)
    scale, error = (a.reshape(-1)[:n].astype(np.float64) for a in (codes.scales, codes.errors))
    sums = query_numbers(asked, q, dim) @ whole_numbers(codes, n, dim).T
    guess = asked.units[:, None] * scale * sums
    bound = asked.units[:, None] * asked.factors[:q, None] * error + asked.slacks[:, None]
    stored = Vectors((VectorPart(0, vectors, ""),), dim).read(np.arange(n)).astype(np.float64)
    true = queries.astype(np.float64) @ stored.T
    assert (np.abs(true - guess) <= bound).all()
    assert bound.max() < 0.2 + 2e-3 * np.sqrt(dim) * (np.abs(stored).max() + np.abs(queries).max())


@given(
    dim=st.sampled_from([8, 11, 64, 512, 2048]), seed=st.integers(0, 2**32 - 1), one=st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_the_bound_of_float32_holds(dim, seed, one):
    rng = np.random.default_rng(seed)
    vectors, queries = (unit_rows(abs(rng.standard_normal((20, dim)))) for _ in range(2))
    queries = vectors if one else queries
    guess = np.zeros((20, 20), np.float32)
    for j in range(dim):  # the worst order of a sum: one by one
        guess += queries[:, j, None] * vectors[None, :, j]
    true = queries.astype(np.float64) @ vectors.astype(np.float64).T
    assert (np.abs(true - guess) <= float_slacks(queries)[:, None]).all()


def test_what_codes_say_of_their_error_is_not_below_it():
    rng = np.random.default_rng(1)
    vectors = unit_rows(rng.standard_normal((1000, 96)))
    codes = coded(vectors)
    stored = Vectors.of_array(vectors).read(np.arange(1000)).astype(np.float64)
    scale = codes.scales.reshape(-1)[:1000, None].astype(np.float64)
    lost = np.linalg.norm(stored - scale * whole_numbers(codes, 1000, 96), axis=1)
    said = codes.errors.reshape(-1)[:1000]
    assert (said >= lost).all() and (said <= lost * 1.00001).all()
    assert codes.codes.shape == (-(-1000 // PANEL), 24, PANEL, 4)


def test_a_score_is_the_same_in_any_company():
    rng = np.random.default_rng(2)
    vectors, query = unit_rows(rng.standard_normal((50, 37))), unit_rows(rng.random((1, 37)))[0]
    together = scores(query, vectors)
    np.testing.assert_array_equal(together, [scores(query, v[None])[0] for v in vectors])
    pairs = scores(np.repeat(query[None], 50, axis=0), vectors)
    np.testing.assert_array_equal(together, pairs)
    exact_ = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(together, exact_)


def test_a_length_is_the_same_in_any_company():
    """So the compiled scan divides by what Vectors.read divides by."""
    rng = np.random.default_rng(3)
    for dim in (8, 31, 512, 1001):
        stored = Vectors.of_array(unit_rows(rng.standard_normal((40, dim))))
        together = stored.read(np.arange(40))
        alone = [stored.read(np.array([i]))[0] for i in range(40)]
        np.testing.assert_array_equal(together, alone)


needs_bytes = pytest.mark.skipif(not INT8_LANES, reason="no multiply-add of bytes here")


@pytest.fixture(autouse=True)
def small_parts_are_kept(monkeypatch):
    monkeypatch.setattr(exact_codes, "_LEAST_ROWS", 1)


def view_in(folder: Path | None, vectors: NDArray[np.float32]) -> View:
    parts = (
        VectorPart(0, vectors[:90].astype("f2"), "first"),
        VectorPart(90, vectors[90:].astype("f2"), "second"),
    )
    mask = np.ones(len(vectors), np.bool_)
    return View(Vectors(parts, vectors.shape[1]), mask, "e", derived=DerivedFiles(folder))


@pytest.fixture
def vectors() -> NDArray[np.float32]:
    return unit_rows(np.random.default_rng(4).standard_normal((200, 40)))


def answer(kept: ExactSearcher, vectors: NDArray[np.float32]) -> list[int]:
    queries = Embeddings(vectors[::20], tuple(map(str, range(10))), "e")
    return kept.search(queries, 3).rows.reshape(-1).tolist()


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix != ".note"}


@pytest.fixture
def compiled(monkeypatch):
    monkeypatch.setattr(exact_searcher, "_SECONDS_BEFORE_COMPILED", -1.0)


@needs_bytes
@pytest.mark.usefixtures("compiled")
def test_codes_are_kept_by_the_key_of_their_part(tmp_path, vectors, monkeypatch):
    folder = tmp_path / "search"
    expected = answer(ExactSearcher(view_in(None, vectors), int8=True), vectors)
    assert answer(ExactSearcher(view_in(folder, vectors), int8=True), vectors) == expected
    kept = files(folder)
    assert {"int8-1-first", "int8-1-second"} == set(kept)

    def not_again(*args: object) -> None:
        raise AssertionError("coded again")

    monkeypatch.setattr("lmk.index.exact.codes._code", not_again)
    assert answer(ExactSearcher(view_in(folder, vectors), int8=True), vectors) == expected
    assert files(folder) == kept


@needs_bytes
@pytest.mark.usefixtures("compiled")
def test_codes_of_a_small_part_are_not_kept(tmp_path, vectors, monkeypatch):
    monkeypatch.setattr(exact_codes, "_LEAST_ROWS", 100)
    answer(ExactSearcher(view_in(tmp_path, vectors), int8=True), vectors)
    assert list(files(tmp_path)) == ["int8-1-second"]


@needs_bytes
@pytest.mark.usefixtures("compiled")
def test_a_commit_removes_the_codes_of_parts_that_are_no_more(path, scenario, monkeypatch):
    folder = path / "cache" / "search"

    def searched() -> set[str]:
        """The codes there are after a search, and how many parts there are."""
        with Gallery.open(path) as gallery:
            query = gallery.embeddings("gallery")
            ExactSearcher(gallery.view(), int8=True).search(query, 1)
            keys = {part.key for part in gallery.stored.parts}
        found = set(files(folder))
        assert found == {f"int8-1-{key}" for key in keys}
        return found

    for number in range(300, 312):
        searched()
        with scenario.committing(path) as writer:
            writer.append(*scenario.batch([number]))
            ExactSearcher(writer.uncommitted.view(), int8=True).search(scenario.batch([0])[0], 1)
    before = searched()
    with scenario.committing(path) as writer:
        writer.remove(["00000.jpg"])
        writer.compact()
    assert not before & set(files(folder))
    searched()


@needs_bytes
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "gone"])
@pytest.mark.parametrize("name", ["int8-1-first", "lengths-1-second"])
def test_damaged_files_are_made_anew(tmp_path, vectors, damage, name):
    folder, int8 = tmp_path / "search", name.startswith("int8")
    expected = answer(ExactSearcher(view_in(folder, vectors), int8=int8), vectors)
    before = files(folder)
    content = bytearray(before[name])
    content[len(content) // 2] ^= 64
    changed = {
        "flip": bytes(content),
        "cut": before[name][:-4],
        "empty": b"",
        "longer": before[name] + b"x",
    }
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(changed[damage])
    assert answer(ExactSearcher(view_in(folder, vectors), int8=int8), vectors) == expected
    assert files(folder) == before


@needs_bytes
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("int8", [True, False])
def test_a_file_cut_while_it_is_in_use(tmp_path, vectors, int8):
    folder = tmp_path / "search"
    kept = ExactSearcher(view_in(folder, vectors), int8=int8)
    expected = answer(kept, vectors)
    name = "int8-1-first" if int8 else "lengths-1-first"
    (folder / name).write_bytes(b"")
    assert answer(kept, vectors) == expected
    assert (folder / name).stat().st_size > 0


@needs_bytes
@pytest.mark.usefixtures("compiled")
def test_on_a_full_disk_codes_are_held_in_memory(tmp_path, vectors, monkeypatch):
    expected = answer(ExactSearcher(view_in(None, vectors), int8=True), vectors)
    monkeypatch.setattr("os.fsync", full)
    assert answer(ExactSearcher(view_in(tmp_path, vectors), int8=True), vectors) == expected
    assert not files(tmp_path)


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@needs_bytes
def test_codes_of_other_vectors_are_refused(tmp_path, vectors):
    """Whoever swaps the kept files and their notes gets an error, no wrong answer."""
    scan = CompiledScan(view_in(tmp_path, vectors), int8=True, threads=1)
    mask = np.ones(200, np.bool_)
    scan.nearest(mask, vectors[:2], 3)
    lengths = scan._codes[0].lengths * 2
    table = scan._stored.parts.copy()
    table[0, 2] = lengths.ctypes.data
    scan._stored = scan._stored._replace(parts=table)
    with pytest.raises(GalleryDamaged, match="not of these vectors"):
        scan.nearest(mask, vectors[:2], 3)
