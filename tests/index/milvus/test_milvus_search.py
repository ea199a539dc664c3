"""Search through a server in memory: the answers must be those of brute force, whatever it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymilvus import MilvusException

from lmk.embed.errors import EmbedderMismatch, GalleryError, ServerError, UsageError
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.milvus import collection
from lmk.index.milvus import searcher as milvus_searcher
from lmk.index.milvus.searcher import MilvusSearcher, push

URI = "http://127.0.0.1:19530"
DIM = 12
ROWS = 400
NAMES = ["Arc de Triomphe", 'a "quoted" \\ name', "Café\n", "zzz"]


def awkward_vectors() -> np.ndarray:
    """A third random, a third copies of one, a third so near to another that float32 is unsure."""
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((ROWS, DIM))
    vectors[::3] = vectors[0]
    vectors[1::3] = vectors[1] + 1e-3 * rng.standard_normal((len(vectors[1::3]), DIM))
    return vectors.astype(np.float32)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, fill):
    path = tmp_path_factory.mktemp("gallery") / "g.lmk"
    labels = [NAMES[i % 7 % 4 : i % 7 % 4 + 1 + i % 2] for i in range(ROWS)]
    fill(path, awkward_vectors(), labels, distractors=np.eye(DIM, dtype=np.float32))
    with Gallery.open(path) as gallery:
        yield gallery


@pytest.fixture(scope="module")
def shared(gallery, fake_server):
    """A server with the gallery, for tests that do not change it."""
    server = fake_server()
    push(gallery, URI, connect=server.connect)
    return server


@pytest.fixture(scope="module")
def approximate(gallery, fake_server):
    server = fake_server()
    push(gallery, URI, index="hnsw", connect=server.connect)
    return server


@pytest.fixture(scope="module")
def shallow():
    """The bounds that need galleries of thousands of rows, at sizes that fit this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(milvus_searcher, "MOST", 64)
        patch.setattr(milvus_searcher, "_NAMED_ROWS", 30)
        patch.setattr(milvus_searcher, "_LOCAL_ROWS", 20)
        patch.setattr(milvus_searcher, "_MARGIN", 4)
        patch.setattr(milvus_searcher, "_BLOCK_QUERIES", 3)
        patch.setattr(milvus_searcher, "_BLOCK_HITS", 100)
        yield


def looks(seed: int, count: int = 4) -> np.ndarray:
    """Queries, two of them beside the vectors that are hard to tell apart."""
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    vectors[:2] = awkward_vectors()[:2] + 1e-2 * vectors[:2]
    return vectors


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1000),
    k=st.sampled_from([1, 5, 70, 399, 500]),
    allow=st.sampled_from(["all", "label", "labels", "few", "most", "half", "none"]),
    role=st.sampled_from(["gallery", "distractor"]),
)
def test_equals_brute_force(
    shallow, gallery, shared, queries, brute_force, seed, k, allow, role
) -> None:
    rng = np.random.default_rng(seed)
    allowed = {
        "all": None,
        "label": NAMES[seed % 4] if seed % 2 else [NAMES[seed % 4]],
        "labels": NAMES[1:3],
        "few": rng.random(gallery.rows) < 0.05,
        "most": rng.random(gallery.rows) < 0.9,
        "half": np.arange(gallery.rows) < 200,
        "none": np.zeros(gallery.rows, np.bool_),
    }[allow]
    shared.most, shared.blur = 64, 0.0
    searcher = MilvusSearcher(gallery, URI, role=role, connect=shared.connect)
    asked = queries(looks(seed))
    found = searcher.search(asked, k, allowed)
    wanted = gallery.view(role).allowed(allowed)
    rows, scores = brute_force(gallery, asked, k, wanted)
    assert np.array_equal(found.rows, rows)
    assert np.array_equal(found.scores, scores)


@pytest.mark.parametrize("blur", [1e-5, 1e-3])
def test_a_server_that_computes_in_less_than_float32_is_noticed(
    shallow, gallery, shared, queries, brute_force, blur
) -> None:
    shared.most, shared.blur = 64, blur
    searcher = MilvusSearcher(gallery, URI, connect=shared.connect)
    asked = queries(looks(3, 8))
    found = searcher.search(asked, 10)
    rows, scores = brute_force(gallery, asked, 10, gallery.view().mask)
    assert np.array_equal(found.rows, rows)
    assert np.array_equal(found.scores, scores)


@pytest.mark.parametrize("allow", [None, "half", "few"])
def test_an_approximate_index_gives_k_rows_in_order_with_true_scores(
    shallow, gallery, approximate, queries, brute_force, allow
) -> None:
    approximate.most, approximate.missing = 64, 0.2
    searcher = MilvusSearcher(gallery, URI, connect=approximate.connect)
    mask = gallery.view().mask.copy()
    if allow:
        mask &= np.random.default_rng(1).random(len(mask)) < {"half": 0.5, "few": 0.03}[allow]
    asked = queries(looks(5))
    k = 30
    found = searcher.search(asked, k, None if allow is None else mask)
    _, every = brute_force(gallery, asked, gallery.rows, np.ones(gallery.rows, np.bool_))
    everything, _ = brute_force(gallery, asked, gallery.rows, np.ones(gallery.rows, np.bool_))
    kept = min(k, int(mask.sum()))
    for i in range(len(asked)):
        rows = found.rows[i, :kept]
        assert mask[rows].all()
        true = dict(zip(everything[i].tolist(), every[i].tolist(), strict=True))
        assert found.scores[i, :kept].tolist() == [true[row] for row in rows.tolist()]
        order = np.lexsort((rows, -found.scores[i, :kept]))
        assert np.array_equal(order, np.arange(kept))
        assert (found.rows[i, kept:] == -1).all()
    assert "approximate search" in searcher.reason


def test_an_ordinary_query_takes_one_request(gallery, fake_server, queries) -> None:
    server = fake_server()
    push(gallery, URI, connect=server.connect)
    searcher = MilvusSearcher(gallery, URI, connect=server.connect)
    server.calls.clear()
    searcher.search(queries(np.eye(DIM, dtype=np.float32)[:3]), 5)
    assert server.calls.count("search") == 1
    assert searcher.reason == (
        f"exact search on the Milvus server {URI}, collection lmk_g: index flat over 400 vectors"
    )


def test_no_queries_and_nothing_allowed_ask_nothing(gallery, shared, queries) -> None:
    searcher = MilvusSearcher(gallery, URI, connect=shared.connect)
    shared.calls.clear()
    found = searcher.search(queries(looks(0)), 3, np.zeros(gallery.rows, np.bool_))
    assert (found.rows == -1).all()
    assert len(searcher.search(queries(np.empty((0, DIM), np.float32)), 3)) == 0
    assert "search" not in shared.calls


def test_wrong_calls_are_refused_as_by_every_searcher(gallery, shared, queries) -> None:
    searcher = MilvusSearcher(gallery, URI, connect=shared.connect)
    with pytest.raises(UsageError, match="0 neighbours"):
        searcher.search(queries(looks(0)), 0)
    with pytest.raises(UsageError, match="no picture has the label 'Nowhere'"):
        searcher.search(queries(looks(0)), 1, ["Nowhere"])
    with pytest.raises(ValueError, match="components"):
        searcher.search(queries(np.eye(5, dtype=np.float32)), 1)


def test_a_collection_that_is_missing_or_half_pushed_is_refused(gallery, server) -> None:
    with pytest.raises(GalleryError, match=r"no such collection; make it with `lmk index push"):
        MilvusSearcher(gallery, URI, connect=server.connect)
    server.plan("upsert", MilvusException(1, "disk is full"))
    with pytest.raises(ServerError, match=r"refused \(upsert\): disk is full; see its log"):
        push(gallery, URI, collection="mine", connect=server.connect)
    expected = (
        rf"collection mine: it is not complete; complete it with `lmk index push {gallery.path}"
    )
    with pytest.raises(GalleryError, match=expected + rf" --uri {URI} --collection mine`"):
        MilvusSearcher(gallery, URI, "mine", connect=server.connect)


def test_another_gallery_embedder_or_maker_is_refused(gallery, server, tmp_path, fill) -> None:
    push(gallery, URI, connect=server.connect)
    properties = server.collections["lmk_g"].properties
    for key, value, error, message in [
        ("lmk.gallery", "1999-01-01", GalleryError, "another gallery than .*--replace"),
        ("lmk.fingerprint", "d" * 64, EmbedderMismatch, "embedder dddddddddddddddd, .*--replace"),
        ("lmk.generation", "99", GalleryError, "newer state of the gallery .*open the gallery"),
        ("lmk.format", "2", GalleryError, "not made by lmk, or by another version"),
        ("lmk.content", "0", GalleryError, "gallery has changed since"),
    ]:
        kept = properties[key]
        properties[key] = value
        with pytest.raises(error, match=message):
            MilvusSearcher(gallery, URI, connect=server.connect)
        properties[key] = kept
    MilvusSearcher(gallery, URI, connect=server.connect)


def test_rows_lost_on_the_server_are_noticed_at_opening(gallery, server) -> None:
    push(gallery, URI, connect=server.connect)
    del server.collections["lmk_g"].rows[17]
    with pytest.raises(GalleryError, match="holds 411 rows, the gallery 412; mend it with"):
        MilvusSearcher(gallery, URI, connect=server.connect)


def test_no_answer_from_a_collection_that_changes_meanwhile(gallery, server, queries) -> None:
    push(gallery, URI, connect=server.connect)
    searcher = MilvusSearcher(gallery, URI, connect=server.connect)
    properties = server.collections["lmk_g"].properties
    server.plan("search", lambda: properties.update({"lmk.complete": "False"}))
    with pytest.raises(GalleryError, match="not complete"):
        searcher.search(queries(looks(0)), 3)
    properties.update({"lmk.complete": "True", "lmk.push": "another"})
    with pytest.raises(GalleryError, match="has been replaced; open the gallery again"):
        searcher.search(queries(looks(0)), 3)
    server.collections.clear()
    server.plan("search", MilvusException(100, "collection not found"))
    with pytest.raises(ServerError, match="collection not found"):
        searcher.search(queries(looks(0)), 3)


def test_it_stays_usable_when_the_gallery_closes_and_the_server_comes_back(
    tmp_path: Path, server, fill, queries, brute_force
) -> None:
    fill(tmp_path / "g.lmk", awkward_vectors())
    with Gallery.open(tmp_path / "g.lmk") as gallery:
        push(gallery, URI, connect=server.connect)
        searcher = MilvusSearcher(gallery, URI, connect=server.connect)
        asked = queries(looks(2))
        rows, _ = brute_force(gallery, asked, 3, gallery.view().mask)
    server.down = True
    expected = f"{URI}: the Milvus server does not answer; start it, .* same command again"
    with pytest.raises(ServerError, match=expected):
        searcher.search(asked, 3)
    server.down = False
    server.plan("search", *[MilvusException(101, "collection not loaded")] * 3)
    assert np.array_equal(searcher.search(asked, 3).rows, rows)


def test_a_gallery_that_has_changed_must_be_pushed_again(
    tmp_path: Path, server, fill, queries, brute_force
) -> None:
    path = tmp_path / "g.lmk"
    fill(path, awkward_vectors())
    with Gallery.open(path) as before:
        push(before, URI, connect=server.connect)
        old = MilvusSearcher(before, URI, connect=server.connect)
        with GalleryWriter(path) as writer:
            writer.remove(["000000.jpg", "000003.jpg"])
            writer.commit()
        fill(path, awkward_vectors()[:5] + 1, create=False, first=5000)
        with Gallery.open(path) as gallery:
            with pytest.raises(GalleryError, match=r"changed since .*`lmk index push"):
                MilvusSearcher(gallery, URI, connect=server.connect)
            report = push(gallery, URI, connect=server.connect)
            assert (report.rows, report.sent, report.deleted) == (ROWS + 3, 5, 2)
            searcher = MilvusSearcher(gallery, URI, connect=server.connect)
            asked = queries(looks(2))
            found = searcher.search(asked, 9)
            rows, scores = brute_force(gallery, asked, 9, gallery.view().mask)
            assert np.array_equal(found.rows, rows)
            assert np.array_equal(found.scores, scores)
            with pytest.raises(GalleryError, match="changed since"):
                old.search(asked, 9)
        with pytest.raises(GalleryError, match="newer state"):
            push(before, URI, connect=server.connect)


def test_what_is_searched_for_more_rows_is_searched_more_thoroughly() -> None:
    assert collection.search_effort("flat", 50) == {}
    assert collection.search_effort("hnsw", 52) == {"params": {"ef": 128}}
    assert collection.search_effort("hnsw", 16_384) == {"params": {"ef": 32_768}}
    assert collection.search_effort("ivf_flat", 52) == {"params": {"nprobe": 64}}
    assert collection.search_effort("ivf_flat", 16_384) == {"params": {"nprobe": 4096}}
