"""Against a real Milvus server, started here and killed without mercy.

`make test-all` runs these tests. By hand, after `make milvus`:
LMK_MILVUS_VENV=.venv-milvus pytest -m milvus tests/index/milvus
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from lmk.embed.errors import GalleryError, ServerError
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.milvus import push as milvus_push
from lmk.index.milvus.searcher import MilvusSearcher, push

pytestmark = [pytest.mark.milvus, pytest.mark.slow]
DIM = 64
ROWS = 10_000
LABELS = ["Arc de Triomphe", 'a "quoted" \\ name', "Café's\n名 🗼", "zzz"]


def landmark_vectors(rows: int, seed: int) -> np.ndarray:
    """Long-tailed classes of near vectors, and a hundred copies of one."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((rows // 20, DIM))
    of = (len(centres) * rng.random(rows) ** 2).astype(int)
    vectors = centres[of] + 0.7 * rng.standard_normal((rows, DIM))
    vectors[rows // 2 : rows // 2 + 100] = vectors[0]
    return vectors.astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory, fill) -> Path:
    path = tmp_path_factory.mktemp("gallery") / "landmarks.lmk"
    labels = [LABELS[i % 11 % 4 : i % 11 % 4 + 1 + i % 2] for i in range(ROWS)]
    fill(path, landmark_vectors(ROWS, 1), labels, distractors=landmark_vectors(200, 2))
    return path


@pytest.fixture(scope="module")
def asked(queries):
    vectors = landmark_vectors(ROWS, 1)[:40]
    return queries(vectors + 0.3 * np.random.default_rng(3).standard_normal(vectors.shape))


@pytest.fixture(scope="module", params=["flat", "hnsw", "ivf_flat"])
def index(request, path, real_server) -> str:
    with Gallery.open(path) as gallery:
        report = push(gallery, real_server.uri, collection=request.param, index=request.param)
    assert (report.rows, report.sent, report.index) == (ROWS + 200, ROWS + 200, request.param)
    return request.param


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """The share of the rows wanted that were found."""
    pairs = zip(found.tolist(), wanted.tolist(), strict=True)
    return sum(len({*a} & {*b} - {-1}) for a, b in pairs) / (wanted >= 0).sum()


@pytest.mark.parametrize("role", ["gallery", "distractor"])
@pytest.mark.parametrize("k", [1, 20, 150, 11_000])
def test_answers_are_those_of_brute_force(
    path, real_server, asked, brute_force, index, role, k
) -> None:
    with Gallery.open(path) as gallery:
        searcher = MilvusSearcher(gallery, real_server.uri, index, role=role)
        found = searcher.search(asked, k)
        most = min(k, gallery.rows)  # a search returns no more columns than there are rows
        rows, scores = brute_force(gallery, asked, most, gallery.view(role).mask)
    if index == "flat":
        assert np.array_equal(found.rows, rows)
        assert np.array_equal(found.scores, scores)
    else:
        assert np.array_equal(found.rows == -1, rows == -1)
        assert recall(found.rows, rows) > 0.95


@pytest.mark.parametrize(
    "allow", ["label", "labels", "quoted", "unicode", "few", "named", "half", "rare", "none"]
)
def test_what_may_be_found_is_what_is_found(
    path, real_server, asked, brute_force, index, allow
) -> None:
    with Gallery.open(path) as gallery:
        chance = np.random.default_rng(4).random(gallery.rows)
        allowed = {
            "label": "zzz",
            "labels": ["zzz", LABELS[0]],
            "quoted": [LABELS[1]],
            "unicode": [LABELS[2]],
            "few": chance < 0.001,
            "named": chance < 0.5,
            "half": chance < 0.9,
            "rare": np.arange(gallery.rows) >= 1500,
            "none": chance < 0,
        }[allow]
        found = MilvusSearcher(gallery, real_server.uri, index).search(asked, 20, allowed)
        wanted = gallery.view().allowed(allowed)
        rows, scores = brute_force(gallery, asked, 20, wanted)
    if index == "flat":
        assert np.array_equal(found.rows, rows)
        assert np.array_equal(found.scores, scores)
    else:
        assert np.array_equal(found.rows == -1, rows == -1)
        assert wanted[found.rows[found.rows >= 0]].all()
        # Six graphs had a recall of 1 or of .886 to .909 with any ef: a filter and the hundred
        # copies together may cut parts of a graph of Milvus 2.3 off.
        assert not wanted.any() or recall(found.rows, rows) > 0.8


def test_changes_are_brought_over(tmp_path, real_server, asked, brute_force, fill) -> None:
    path = tmp_path / "changing.lmk"
    fill(path, landmark_vectors(2000, 1))
    with Gallery.open(path) as gallery:
        push(gallery, real_server.uri)
    with GalleryWriter(path) as writer:
        writer.remove([f"{i:06d}.jpg" for i in range(0, 2000, 3)])
        writer.commit()
    fill(path, landmark_vectors(100, 5), create=False, first=5000)
    for compact in (False, True):
        if compact:
            with GalleryWriter(path) as writer:
                writer.compact()
                writer.commit()
        with Gallery.open(path) as gallery:
            with pytest.raises(GalleryError, match="changed since"):
                MilvusSearcher(gallery, real_server.uri)
            report = push(gallery, real_server.uri)
            assert report.rows == 2000 - 667 + 100
            assert compact or (report.sent, report.deleted) == (100, 667)
            searcher = MilvusSearcher(gallery, real_server.uri)
            rows, scores = brute_force(gallery, asked, 30, gallery.view().mask)
            found = searcher.search(asked, 30)
            assert np.array_equal(found.rows, rows)
            assert np.array_equal(found.scores, scores)


def test_a_server_killed_in_mid_push(path, real_server, asked, brute_force, monkeypatch) -> None:
    """A clear error, no half answers, and the push goes on when the server is back."""
    monkeypatch.setattr(milvus_push, "_BATCH_BYTES", 500 * 4 * DIM)
    monkeypatch.setattr(milvus_push, "_BLOCK_ROWS", 1000)

    def kill_half_way(done: int, total: int) -> None:
        if done > total // 2 and not killed:
            killed.append(done)
            real_server.kill()

    killed: list[int] = []
    with Gallery.open(path) as gallery:
        with pytest.raises(ServerError, match="the Milvus server does not answer; start it"):
            push(
                gallery, real_server.uri, collection="broken", on_progress=kill_half_way, timeout=5
            )
        with pytest.raises(ServerError, match="the Milvus server does not answer; start it"):
            push(gallery, real_server.uri, collection="broken", timeout=5)
        real_server.start()
        with pytest.raises(GalleryError, match="not complete; complete it with `lmk index push"):
            MilvusSearcher(gallery, real_server.uri, "broken")
        report = push(gallery, real_server.uri, collection="broken")
        assert report.rows == gallery.rows
        assert report.sent <= gallery.rows - killed[0] + 500  # what was acknowledged was kept
        found = MilvusSearcher(gallery, real_server.uri, "broken").search(asked, 20)
        rows, scores = brute_force(gallery, asked, 20, gallery.view().mask)
    assert np.array_equal(found.rows, rows)
    assert np.array_equal(found.scores, scores)


def test_a_server_killed_between_searches(path, real_server, asked, brute_force) -> None:
    with Gallery.open(path) as gallery:
        push(gallery, real_server.uri, collection="lasting")
        searcher = MilvusSearcher(gallery, real_server.uri, "lasting")
        rows, scores = brute_force(gallery, asked, 20, gallery.view().mask)
    for _ in range(2):
        real_server.kill()
        with pytest.raises(ServerError, match="the Milvus server does not answer; start it"):
            searcher.search(asked, 20)
        real_server.start()
        for _ in range(20):  # the first answers after a start are as good as the later ones
            found = searcher.search(asked, 20)
            assert np.array_equal(found.rows, rows)
            assert np.array_equal(found.scores, scores)


def test_the_server_ends_with_the_test_process(tmp_path, milvus_environment) -> None:
    """As when a test run is killed: nothing is left behind."""
    code = f"""
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("c", {str(Path(__file__).with_name("conftest.py"))!r})
conftest = importlib.util.module_from_spec(spec); spec.loader.exec_module(conftest)
server = conftest.RealServer(pathlib.Path({str(milvus_environment)!r}),
                             pathlib.Path({str(tmp_path)!r}))
server.start()
print(server._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(done.stdout)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(100):
            os.kill(pid, 0)
            Event().wait(0.1)
        pytest.fail("the server has outlived the process that started it")
