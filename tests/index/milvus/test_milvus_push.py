"""Pushes to a server in memory that fails at every step in turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pymilvus import MilvusException

from lmk.embed.errors import GalleryError, ServerError, UsageError
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.milvus import collection
from lmk.index.milvus import push as milvus_push
from lmk.index.milvus.searcher import MilvusSearcher, push

URI = "http://127.0.0.1:19530"
DIM = 8
UNPRINTABLE = "caf\udce9.jpg"  # a file name that is not UTF-8


@pytest.fixture
def small(monkeypatch) -> None:
    """Blocks and requests of a few rows."""
    monkeypatch.setattr(milvus_push, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(milvus_push, "_BATCH_BYTES", 5 * 4 * DIM)


@pytest.fixture
def path(tmp_path: Path, fill, small) -> Path:
    path = tmp_path / "Notre-Dame (2).lmk"
    vectors = np.random.default_rng(1).standard_normal((40, DIM)).astype(np.float32)
    labels = [(f"label {i % 3}", UNPRINTABLE)[: i % 3] for i in range(40)]
    fill(path, vectors, labels, distractors=vectors[:3] * -1)
    return path


def records(server, name: str) -> dict[int, dict]:
    rows = server.collections[name].rows
    return {row: {k: v for k, v in rows[row].items() if k != "vector"} for row in sorted(rows)}


def test_all_rows_are_copied_with_what_they_are(path: Path, server) -> None:
    seen = []
    with Gallery.open(path) as gallery:
        report = push(
            gallery, URI, connect=server.connect, on_progress=lambda *step: seen.append(step)
        )
        vectors = gallery.stored.read(np.arange(43))
    assert report == milvus_push.PushReport(URI, "lmk_Notre_Dame_2", "flat", 43, 43, 0)
    rows = server.collections["lmk_Notre_Dame_2"].rows
    assert sorted(rows) == list(range(43))
    assert all(np.array_equal(rows[i]["vector"], vectors[i]) for i in rows)
    assert [rows[i]["role"] for i in (0, 39, 40, 42)] == ["gallery"] * 2 + ["distractor"] * 2
    assert rows[5]["id"] == "000005.jpg"
    assert rows[5]["labels"] == ["label 2", "caf\\udce9.jpg"]
    assert seen[0] == (5, 43)
    assert seen[-1] == (43, 43)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_second_push_sends_nothing(path: Path, server) -> None:
    with Gallery.open(path) as gallery:
        push(gallery, URI, connect=server.connect)
        server.calls.clear()
        report = push(gallery, URI, connect=server.connect)
    assert (report.rows, report.sent, report.deleted) == (43, 0, 0)
    assert not {"upsert", "alter_collection_properties"} & set(server.calls)


def test_a_state_that_was_written_outlasts_a_restart(path: Path, server, fill) -> None:
    """Also of Milvus 2.3, which loses the last change of the properties."""
    with Gallery.open(path) as gallery:
        push(gallery, URI, connect=server.connect)
        server.restart()
        MilvusSearcher(gallery, URI, connect=server.connect)
    fill(path, np.eye(DIM, dtype=np.float32)[:1], create=False, first=900)
    with Gallery.open(path) as gallery:
        seen = []

        def restart() -> None:
            server.restart()
            seen.append(server.collections["lmk_Notre_Dame_2"].properties["lmk.complete"])

        server.plan("upsert", restart)
        push(gallery, URI, connect=server.connect)
        assert seen == ["False"]
        MilvusSearcher(gallery, URI, connect=server.connect)


def test_a_complete_collection_that_lost_rows_is_mended(path: Path, server) -> None:
    with Gallery.open(path) as gallery:
        push(gallery, URI, connect=server.connect)
        rows = server.collections["lmk_Notre_Dame_2"].rows
        del rows[3], rows[30]
        report = push(gallery, URI, connect=server.connect)
    assert (report.rows, report.sent) == (43, 2)


def test_every_failure_leaves_a_collection_that_the_next_push_completes(path, fake_server) -> None:
    """Whichever call fails: one line, no search, and the push that follows sends only the rest."""
    with Gallery.open(path) as gallery:
        server = fake_server()
        push(gallery, URI, connect=server.connect)
        whole, calls = records(server, "lmk_Notre_Dame_2"), list(server.calls)
        assert calls.count("upsert") >= 9
        for step, name in enumerate(calls):
            server = fake_server()
            earlier = calls[:step].count(name)
            server.plan(name, *[None] * earlier, MilvusException(2, "Fail connecting to server"))
            with pytest.raises(ServerError, match=f"{URI}: the Milvus server does not answer; "):
                push(gallery, URI, connect=server.connect)
            complete = [c.properties["lmk.complete"] for c in server.collections.values()]
            if complete == ["True"]:  # only the confirmation was lost
                assert step > len(calls) - 6
            else:
                with pytest.raises(GalleryError, match=r"not complete|no such collection"):
                    MilvusSearcher(gallery, URI, connect=server.connect)
            held = sum(len(c.rows) for c in server.collections.values())
            report = push(gallery, URI, connect=server.connect)
            assert report.sent == 43 - held
            assert records(server, "lmk_Notre_Dame_2") == whole
            MilvusSearcher(gallery, URI, connect=server.connect)


def test_a_request_whose_answer_was_lost_is_not_doubled(path: Path, server) -> None:
    with Gallery.open(path) as gallery:
        late = lambda: server.upsert("lmk_Notre_Dame_2", sent)  # noqa: E731
        push(gallery, URI, connect=server.connect)
        sent = [dict(r) for r in server.collections["lmk_Notre_Dame_2"].rows.values()][:7]
        push(gallery, URI, replace=True, connect=server.connect)
        late()
        assert push(gallery, URI, connect=server.connect).rows == 43


def test_only_what_changed_is_sent_and_what_is_gone_is_deleted(path: Path, server, fill) -> None:
    with Gallery.open(path) as gallery:
        push(gallery, URI, connect=server.connect)
    with GalleryWriter(path) as writer:
        writer.remove([f"{i:06d}.jpg" for i in (2, 17, 18, 41)])
        writer.commit()
    fill(path, np.eye(DIM, dtype=np.float32)[:2], create=False, first=900)
    with Gallery.open(path) as gallery:
        report = push(gallery, URI, connect=server.connect)
        assert (report.rows, report.sent, report.deleted) == (41, 2, 4)
        MilvusSearcher(gallery, URI, connect=server.connect)
    before = set(server.collections["lmk_Notre_Dame_2"].rows)
    with GalleryWriter(path) as writer:
        writer.remove([f"{i:06d}.jpg" for i in (*range(5, 15), *range(20, 34))])
        writer.compact()
        writer.commit()
    with Gallery.open(path) as gallery:
        assert gallery.rows == 17
        report = push(gallery, URI, connect=server.connect)
        held = server.collections[report.collection].rows
        assert sorted(held) == list(range(17))
        vectors = gallery.stored.read(np.arange(17))
        assert all(np.array_equal(held[i]["vector"], vectors[i]) for i in held)
        assert [held[i]["id"] for i in range(17)] == gallery.ids(range(17))
        assert report.deleted == len(before - set(range(17)))


def test_another_push_that_begins_meanwhile_takes_over(path: Path, server) -> None:
    with Gallery.open(path) as gallery:
        server.plan("upsert", None, None, lambda: push(gallery, URI, connect=server.connect))
        with pytest.raises(GalleryError, match="another push to this collection has begun since"):
            push(gallery, URI, connect=server.connect)
        MilvusSearcher(gallery, URI, connect=server.connect)


def test_a_collection_of_something_else_is_replaced_only_when_asked(
    path: Path, server, tmp_path: Path, fill
) -> None:
    with Gallery.open(path) as gallery:
        push(gallery, URI, collection="shared", connect=server.connect)
        server.collections["shared"].properties["lmk.gallery"] = "of 1999"
        expected = (
            f"{URI}, collection shared: it holds another gallery than .*--collection.*--replace"
        )
        with pytest.raises(GalleryError, match=expected):
            push(gallery, URI, collection="shared", connect=server.connect)
        server.collections["shared"].properties.clear()
        with pytest.raises(GalleryError, match="not made by lmk"):
            push(gallery, URI, collection="shared", connect=server.connect)
        report = push(gallery, URI, collection="shared", replace=True, connect=server.connect)
        assert report.sent == 43
        MilvusSearcher(gallery, URI, "shared", connect=server.connect)
        with pytest.raises(UsageError, match="'no-good' is no name for a Milvus collection"):
            push(gallery, URI, collection="no-good", connect=server.connect)


def test_rows_that_the_server_drops_are_not_declared_complete(path: Path, server) -> None:
    with Gallery.open(path) as gallery:
        server.plan("flush", lambda: server.collections["lmk_Notre_Dame_2"].rows.pop(1))
        with pytest.raises(ServerError, match="holds 42 rows after a push of 43; push once more"):
            push(gallery, URI, connect=server.connect)
        assert push(gallery, URI, connect=server.connect).sent == 1


def test_an_empty_gallery_and_one_of_many_requests(tmp_path: Path, server, fill, small) -> None:
    fill(tmp_path / "none.lmk", np.empty((0, DIM), np.float32))
    with Gallery.open(tmp_path / "none.lmk") as gallery:
        assert push(gallery, URI, connect=server.connect).rows == 0
        assert "0 vectors" in MilvusSearcher(gallery, URI, connect=server.connect).reason


def test_the_index_is_chosen_by_size_and_kept(path: Path, server) -> None:
    assert collection.index_for(200_000) == "flat"
    assert collection.index_for(200_001) == "hnsw"
    with Gallery.open(path) as gallery:
        assert push(gallery, URI, index="ivf_flat", connect=server.connect).index == "ivf_flat"
        server.collections["lmk_Notre_Dame_2"].properties["lmk.complete"] = "False"
        assert push(gallery, URI, connect=server.connect).index == "ivf_flat"
        assert server.collections["lmk_Notre_Dame_2"].index == "IVF_FLAT"
