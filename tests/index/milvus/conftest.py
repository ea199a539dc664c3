from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.milvus import server as milvus_server

FINGERPRINT = "c" * 64
STARTING_S = 120
# What listens on them. All are given, so that servers of several runs do not meet.
PORTS = (
    *("proxy", "proxy_internal", "etcd", "etcd_peer", "metrics", "root_coord", "query_coord"),
    *("query_node", "index_coord", "index_node", "data_coord", "data_node"),
)


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"milvus_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def eager() -> Iterator[None]:
    """Questions for what the server is doing follow each other without a pause that counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(milvus_server, "_POLL", 0.005)
        yield


@pytest.fixture(scope="session")
def fake_server() -> Callable[[], Any]:
    return _module("fake").FakeServer


@pytest.fixture
def server(fake_server: Callable[[], Any]) -> Any:
    """A server in memory; its `connect` is what push and MilvusSearcher take."""
    return fake_server()


def picture(number: int, labels: Sequence[str] = ()) -> Picture:
    name = f"{number:06d}.jpg"
    return Picture(name, tuple(labels), "/photos", name, f"{number:064x}", number, number)


@pytest.fixture(scope="session")
def fill() -> Callable[..., None]:
    """fill(path, vectors, labels=None, distractors=None, create=True, first=0): adds pictures."""

    def fill(
        path: Path,
        vectors: np.ndarray,
        labels: Sequence[Sequence[str]] | None = None,
        distractors: np.ndarray | None = None,
        *,
        create: bool = True,
        first: int = 0,
    ) -> None:
        with GalleryWriter(path, create=create) as writer:
            if create:
                writer.reset(FINGERPRINT, vectors.shape[1])
            for role, part in (("gallery", vectors), ("distractor", distractors)):
                if part is None or not len(part):
                    continue
                named = labels if labels is not None and role == "gallery" else [()] * len(part)
                pictures = [picture(first + i, names) for i, names in enumerate(named)]
                ids = tuple(p.id for p in pictures)
                writer.append(Embeddings(unit_rows(part), ids, FINGERPRINT), pictures, role=role)
                first += len(part)
            if create:
                writer.install_embedder(lambda folder: (folder / "config.json").write_text("{}"))
            writer.commit()

    return fill


@pytest.fixture(scope="session")
def queries() -> Callable[[np.ndarray], Embeddings]:
    def queries(vectors: np.ndarray) -> Embeddings:
        ids = tuple(f"q{i}" for i in range(len(vectors)))
        return Embeddings(unit_rows(vectors), ids, FINGERPRINT)

    return queries


@pytest.fixture(scope="session")
def brute_force() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """All scores of all rows, sorted: the slow way that needs no index and no server."""

    def brute_force(
        gallery: Gallery, queries: Embeddings, k: int, wanted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        vectors = gallery.stored.read(np.arange(gallery.rows)).astype(np.float64)
        rows = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for i, query in enumerate(queries.vectors.astype(np.float64)):
            all_scores = (vectors * query).sum(axis=1).astype(np.float32)
            order = np.lexsort((np.arange(gallery.rows), -all_scores))
            best = order[wanted[order]][:k]
            rows[i, : len(best)], scores[i, : len(best)] = best, all_scores[best]
        return rows, scores

    return brute_force


class RealServer:
    """A Milvus server in a process of its own."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self._python = environment / "bin" / "python"
        self._folder = folder
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
        self._ports = {n: s.getsockname()[1] for n, s in zip(PORTS, sockets, strict=True)}
        for each in sockets:
            each.close()
        self.uri = f"http://127.0.0.1:{self._ports['proxy']}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, again after a kill; returns when it says that it is well."""
        script, ports = Path(__file__).with_name("process.py"), json.dumps(self._ports)
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, script, self._folder, ports], stdout=log, stderr=log
            )
        pause = Event()
        for _ in range(10 * STARTING_S):
            if self._process.poll() is not None:
                break
            if self._is_well():
                return
            pause.wait(0.1)
        end = (self._folder / "server.log").read_text(errors="replace")[-2000:]
        self.kill()
        raise RuntimeError(f"the Milvus server did not start: {end}")

    def _is_well(self) -> bool:
        url = f"http://127.0.0.1:{self._ports['metrics']}/healthz"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return b"OK" in answer.read()
        except OSError:
            return False

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def milvus_environment() -> Path:
    """The virtual environment that holds a Milvus server; without one, the test is skipped."""
    environment = os.environ.get("LMK_MILVUS_VENV")
    if not environment:
        pytest.skip("LMK_MILVUS_VENV names no environment with a Milvus server: `make milvus`")
    return Path(environment).resolve()


@pytest.fixture(scope="module")
def real_server(
    tmp_path_factory: pytest.TempPathFactory, milvus_environment: Path
) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("milvus")
    server = RealServer(milvus_environment, folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)  # 270 MB
