"""Which search is chosen, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import UsageError
from lmk.index.ann import cells
from lmk.index.ann import searcher as ann_searcher
from lmk.index.ann.faiss_factory import factory_of
from lmk.index.ann.recall import Tuned
from lmk.index.ann.searcher import ApproximateSearcher
from lmk.index.exact.flat import FlatSearcher
from lmk.index.exact.searcher import ExactSearcher
from lmk.index.exact.tiles import INT8_LANES
from lmk.index.search import choose as search_choose
from lmk.index.search.choose import Explained, check_kind, choose, searcher_of
from lmk.index.search.settings import SearchSettings
from lmk.index.vectors import memory
from lmk.index.vectors.view import View


def view_of(rows: int, dim: int = 8) -> View:
    vectors = unit_rows(np.random.default_rng(0).normal(size=(rows, dim)))
    return View.of_embeddings(Embeddings(vectors, tuple(map(str, range(rows))), "f"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An index that needs no building and has a recall."""
    made = SimpleNamespace(recall=0.995, asked=[])

    class Index:
        reason = "an index"

        def __init__(self, view: View, kind: str, *, recall: float, on_message: Any) -> None:
            made.asked.append((kind, recall))
            self.tuned = (Tuned(10, 1, 1, -2.0, 1, 0.0, made.recall),)

        def search(self, queries: Embeddings, k: int, allow: Any = None) -> Any:
            return (queries, k, allow)

    monkeypatch.setattr(ann_searcher, "ApproximateSearcher", Index)
    monkeypatch.setattr(search_choose, "FLAT_ROWS", 100)
    return made


def test_small_galleries_are_searched_with_faiss_for_large_batches_only() -> None:
    assert isinstance(searcher_of(view_of(500)), ExactSearcher)
    assert isinstance(searcher_of(view_of(500), batch=63), ExactSearcher)
    assert isinstance(searcher_of(view_of(500), batch=64), FlatSearcher)


def test_larger_ones_exactly_while_that_is_fast_enough(
    stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = view_of(500)
    assert isinstance(searcher_of(view), ExactSearcher) and not stand_in.asked
    monkeypatch.setattr(search_choose, "_BYTES_A_SECOND", 500 * 8 / 0.099)
    assert isinstance(searcher_of(view), ExactSearcher)
    monkeypatch.setattr(search_choose, "_BYTES_A_SECOND", 500 * 8 / 0.2)
    found = searcher_of(view, recall=0.98)
    assert found.reason == "an index (auto: exact search would take 0.2 s a query)"
    assert stand_in.asked == [("ivf" if INT8_LANES else "ivfpq", 0.98)]
    assert found.search("q", 3, "allow") == ("q", 3, "allow")  # type: ignore[comparison-overlap,arg-type]
    assert isinstance(searcher_of(view, batch=64), ExactSearcher)
    assert isinstance(searcher_of(view, batch=63), Explained)
    assert isinstance(searcher_of(view, recall=1), ExactSearcher)


def test_no_cells_without_a_multiply_add_of_bytes(
    stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_choose, "_BYTES_A_SECOND", 1.0)
    monkeypatch.setattr(cells, "INT8_LANES", 0)
    searcher_of(view_of(500))
    assert stand_in.asked == [("ivfpq", search_choose.RECALL)]
    monkeypatch.undo()
    monkeypatch.setattr(cells, "INT8_LANES", 0)
    with pytest.raises(UsageError, match=r"the kind ivf needs a .*; choose ivfpq, or auto"):
        searcher_of(view_of(1200), "ivf")


def test_codes_that_do_not_fit_into_memory(
    stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = view_of(500)
    monkeypatch.setattr(memory, "free_memory", lambda: 500 * 8)
    assert searcher_of(view).reason.startswith("an index (auto: the codes of exact search, ")
    assert stand_in.asked == [("ivfpq", search_choose.RECALL)]  # its codes are smaller
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * 500 * 8)
    assert isinstance(searcher_of(view), ExactSearcher)


def test_an_index_that_misses_the_goal_is_not_taken(
    stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_choose, "_BYTES_A_SECOND", 1.0)
    stand_in.recall = 0.97
    found = searcher_of(view_of(500))
    assert isinstance(found, Explained) and isinstance(found.searcher, ExactSearcher)
    assert found.reason.endswith("s a query, but an index finds only 0.970 of the nearest)")


def test_kinds_by_name() -> None:
    view = view_of(1200)
    assert isinstance(searcher_of(view, "exact"), ExactSearcher)
    assert isinstance(searcher_of(view, "flat"), FlatSearcher)
    found = searcher_of(view, "IVF4,SQ8", recall=0.9)
    assert isinstance(found, ApproximateSearcher) and found.factory == "IVF4,SQ8"


def test_a_recall_of_1_leaves_a_kind_that_is_named() -> None:
    found = searcher_of(view_of(1200), "IVF4,SQ8", recall=1)
    assert isinstance(found, ApproximateSearcher) and found.tuned[0].recall == 1


def test_few_vectors_are_compared_one_by_one() -> None:
    found = searcher_of(view_of(999), "hnsw")
    assert found.reason == (
        "exact search: 999 vectors are compared with each query (hnsw begins at 1000 vectors)"
    )
    queries = Embeddings(unit_rows(np.ones((1, 8))), ("q",), "f")
    assert (found.search(queries, 3).rows >= 0).all()


@pytest.mark.parametrize("rows", [0, 5, 1500])
def test_a_kind_that_there_is_not(rows: int) -> None:
    with pytest.raises(UsageError, match="choose auto, exact, flat, ivf, ivfpq, hnsw, or a FAISS"):
        searcher_of(view_of(max(rows, 1)), "milvusish")
    with pytest.raises(UsageError, match=r"a recall of 1\.5; choose one from 0 to 1"):
        searcher_of(view_of(5), recall=1.5)


@pytest.mark.parametrize(
    ("kind", "rows", "complaint"),
    [
        ("auto", None, None),
        ("exact", 10, None),
        ("hnsw", 10, None),
        ("ivf", 5, None),
        ("ivfpq", 10**6, None),
        ("IVF64,SQ8", None, None),
        ("IVF64,SQ8", 64 * 39, None),
        ("IVF64,SQ8", 64 * 39 - 1, "has 64 cells, and 2495 vectors can train 63"),
        ("IVF64,SQ8", 999, None),  # too few for an index: they are compared one by one
        ("milvus", None, "choose auto, exact, flat, ivf, ivfpq, hnsw, or a FAISS"),
        ("milvus", 10, "choose auto, exact, flat, ivf, ivfpq, hnsw, or a FAISS"),
        ("", None, "choose auto, exact, flat, ivf, ivfpq, hnsw, or a FAISS"),
    ],
)
def test_a_kind_is_checked_before_there_are_vectors(
    kind: str, rows: int | None, complaint: str | None
) -> None:
    if complaint is None:
        check_kind(SearchSettings(kind), 8, rows=rows)
    else:
        with pytest.raises(UsageError, match=complaint):
            check_kind(SearchSettings(kind), 8, rows=rows)


@pytest.mark.parametrize("recall", [-0.1, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["auto", "exact", "hnsw"])
def test_a_recall_is_from_0_to_1(kind: str, recall: float) -> None:
    with pytest.raises(UsageError, match=r"a recall of .*; choose one from 0 to 1"):
        check_kind(SearchSettings(kind, recall), 8)
    with pytest.raises(UsageError, match="a recall of"):
        searcher_of(view_of(5), kind, recall=recall)


@pytest.mark.parametrize(
    ("rows", "dim", "factory"),
    [
        (1000, 512, "IVF16,PQ256x4fs"),
        (10_000, 64, "IVF256,PQ32x4fs"),
        (1_000_000, 512, "IVF2048,PQ256x4fs"),
        (10**9, 512, "IVF16384,PQ256x4fs"),
        (1000, 7, "Pad8,IVF16,PQ4x4fs"),
        (3, 2, "IVF1,PQ1x4fs"),
    ],
)
def test_cells_grow_with_the_gallery(rows: int, dim: int, factory: str) -> None:
    assert factory_of("ivfpq", rows, dim) == factory


class Chosen:
    """A gallery with a setting, and what searcher_of was called with."""

    path = Path("some.lmk")
    dim = 8

    def __init__(self, monkeypatch: pytest.MonkeyPatch, saved: object) -> None:
        self._saved = saved
        self.calls: list[Any] = []
        monkeypatch.setattr(
            search_choose, "searcher_of", lambda *a, **named: self.calls.append((a, named))
        )

    def setting(self, name: str) -> object:
        return self._saved if name == "search" else None

    def view(self, role: str) -> str:
        return f"view of {role}"

    def choose(self, **given: Any) -> tuple[str, str, float]:
        role = given.pop("role", "gallery")
        choose(self, role, settings=SearchSettings(**given))  # type: ignore[arg-type]
        (view, kind), named = self.calls.pop()
        return view, kind, named["recall"]


def test_what_is_not_given_is_what_was_chosen_at_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Chosen(monkeypatch, None)
    assert plain.choose() == ("view of gallery", "auto", search_choose.RECALL)
    saved = Chosen(monkeypatch, {"kind": "hnsw", "recall": 0.9})
    assert saved.choose(role="distractor") == ("view of distractor", "hnsw", 0.9)
    assert saved.choose(kind="flat", recall=0.0) == ("view of gallery", "flat", 0.0)
    zero = Chosen(monkeypatch, {"recall": 0})
    assert zero.choose() == ("view of gallery", "auto", 0)


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Chosen(monkeypatch, {"backend": "milvus"})
    with pytest.raises(UsageError, match="no Milvus server is named; name it with --uri"):
        saved.choose()
    assert saved.choose(backend="local")[1] == "auto"
    with pytest.raises(UsageError, match="no backend 'cloud'; choose local or milvus"):
        saved.choose(backend="cloud")
    from lmk.index.milvus import searcher as milvus_searcher

    made: list[Any] = []
    monkeypatch.setattr(
        milvus_searcher, "MilvusSearcher", lambda *a, **named: made.append((a, named))
    )
    choose(saved, "distractor", settings=SearchSettings(uri="http://h:1"))  # type: ignore[arg-type]
    choose(saved, settings=SearchSettings(uri="http://h:1", collection="c"))  # type: ignore[arg-type]
    assert made == [
        ((saved, "http://h:1", None), {"role": "distractor"}),
        ((saved, "http://h:1", "c"), {"role": "gallery"}),
    ]


def test_a_kind_alone_is_a_search_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Chosen(monkeypatch, {"backend": "milvus", "uri": "http://h:1"})
    assert saved.choose(kind="flat") == ("view of gallery", "flat", search_choose.RECALL)


def test_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 2**20 < memory.free_memory() < 2**50
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "no groups")
    told = tmp_path / "meminfo"
    told.write_text("MemTotal: 99 kB\nMemAvailable:   7 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", told)
    assert memory.free_memory() == 7 * 1024
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert memory.free_memory() == 4 * 2**30


GROUP_FILES = {
    "0::": ("", "memory.max", "memory.current", ""),
    "4:cpu,memory:": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


@pytest.mark.parametrize("version", GROUP_FILES)
@pytest.mark.parametrize(
    ("own", "outer", "free"),
    [
        (None, None, 9000),
        (("max", 5), None, 9000),
        (("8000", 1000), None, 7000),
        (("8000", 1000), ("max", 1000), 7000),
        (("8000", 1000), ("5000", 3500), 1500),
        (("8000", 8400), None, 0),
        (("20000", 1000), None, 9000),
        (("?", 1000), None, 9000),
    ],
)
def test_a_container_has_less_memory_than_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    version: str,
    own: tuple[str, int] | None,
    outer: tuple[str, int] | None,
    free: int,
) -> None:
    monkeypatch.setattr(memory, "_free_on_machine", lambda: 9000)
    monkeypatch.setattr(memory, "_MOUNT", tmp_path)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    (tmp_path / "groups").write_text(f"9:cpuset:/else\n{version}/a/b\n")
    mount, limit, usage, total = GROUP_FILES[version]
    for group, numbers in (("a/b", own), ("a", outer)):
        if numbers is not None:
            folder = tmp_path / mount / group
            folder.mkdir(parents=True, exist_ok=True)
            (folder / limit).write_text(f"{numbers[0]}\n")
            (folder / usage).write_text(f"{numbers[1] + 300}\n")  # 300 of it are files
            stat = f"anon 5\n{total}active_file 200\n{total}inactive_file 100\n"
            (folder / "memory.stat").write_text(stat)
    assert memory.free_memory() == free


def test_the_setting_of_a_gallery_is_followed(tmp_path: Path, scenario: ModuleType) -> None:
    from lmk.index.gallery.gallery import Gallery

    with scenario.committing(tmp_path / "g.lmk", create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.append(*scenario.batch(range(20)))
        writer.set("search", {"kind": "exact"})
    with Gallery.open(tmp_path / "g.lmk") as gallery:
        assert isinstance(choose(gallery), ExactSearcher)
        assert isinstance(choose(gallery, settings=SearchSettings("flat")), FlatSearcher)


@pytest.mark.parametrize(
    ("kept", "way_out"),
    [
        ({"kind": "fast"}, "--kind auto"),
        ({"kind": "IVF64,SQ8"}, "--kind auto"),
        ({"kind": "flat", "recall": float("nan")}, "--recall 0.99"),
    ],
)
def test_what_is_kept_and_does_not_serve_is_said_with_the_gallery_and_the_way_out(
    tmp_path: Path, scenario: ModuleType, kept: dict[str, Any], way_out: str
) -> None:
    from lmk.index.gallery.gallery import Gallery

    path = tmp_path / "g.lmk"
    vectors = unit_rows(np.random.default_rng(0).standard_normal((1100, 8)))
    with scenario.committing(path, create=True) as writer:
        writer.reset(scenario.A, 8)
        _, pictures = scenario.batch(range(1100))
        writer.append(Embeddings(vectors, tuple(p.id for p in pictures), scenario.A), pictures)
        writer.set("search", kept)
    with Gallery.open(path) as gallery:
        with pytest.raises(UsageError) as caught:
            choose(gallery)
        assert str(caught.value).startswith(f"{path}: ")
        assert f"`lmk index set {path} {way_out}`" in str(caught.value)
        assert isinstance(choose(gallery, settings=SearchSettings("flat", 0.9)), FlatSearcher)
        with pytest.raises(UsageError, match="'slow'"):  # of what is given, not of what is kept
            choose(gallery, settings=SearchSettings("slow"))


def test_a_view_without_rows_is_searched() -> None:
    view = view_of(5)
    none = replace(view, mask=np.zeros(5, np.bool_))
    queries = Embeddings(unit_rows(np.ones((2, 8))), ("a", "b"), "f")
    assert (searcher_of(none).search(queries, 2).rows == -1).all()
