"""Batch search: the same neighbours as in one piece, block by block, resumed, never mixed up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import EmbedderMismatch, GalleryLocked, LmkError, StorageError, UsageError
from lmk.index.catalog.lock import take_lock
from lmk.index.gallery.gallery import Gallery
from lmk.index.search import batch
from lmk.index.search.batch import BatchReport, read_neighbours, search_batches
from lmk.index.search.query_files import QueryFile, open_queries, state_of
from lmk.index.vectors.neighbours import NO_ROW, Neighbours

DIM, PRINT = 8, "e" * 64
SEARCHED = {"generation": 1}


def unit_vectors(n: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((n, dim)))


class Brute:
    """A searcher that cannot be wrong; it counts its calls and may be told to fail."""

    reason = "brute force"

    def __init__(self, rows: int = 20, fail_at: int | None = None) -> None:
        self.vectors, self.calls, self.fail_at = unit_vectors(rows, 99), 0, fail_at
        self.asked: list[tuple[str, ...]] = []

    def search(self, queries: Embeddings, k: int, allow: Sequence[str] | None = None) -> Neighbours:
        if queries.fingerprint != PRINT:
            raise EmbedderMismatch("another embedder")
        self.calls += 1
        self.asked.append(queries.ids)
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        scores = queries.vectors.astype(np.float64) @ self.vectors.astype(np.float64).T
        if allow is not None:
            scores[:, [str(row % 3) not in allow for row in range(len(self.vectors))]] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(scores, order, axis=1)
        rows = np.where(np.isneginf(best), NO_ROW, order)
        short = ((0, 0), (0, k - rows.shape[1]))
        rows = np.pad(rows, short, constant_values=NO_ROW)
        best = np.pad(best, short, constant_values=-np.inf)
        return Neighbours(rows.astype(np.int64), best.astype(np.float32), queries.ids)


def write_queries(path: Path, n: int, seed: int = 0, dtype: type = np.float32) -> Path:
    ids = "\n".join(f"q{i}" for i in range(n))
    tensors = {
        "vectors": unit_vectors(n, seed).astype(dtype),
        "ids": np.frombuffer(ids.encode(), np.uint8),
    }
    save_file(tensors, path, metadata={"embedder": PRINT})
    return path


def joined(out: Path) -> tuple[list[list[int]], list[list[float]], list[str]]:
    blocks = list(read_neighbours(out))
    rows = [row for block in blocks for row in block.rows.tolist()]
    scores = [row for block in blocks for row in block.scores.tolist()]
    return rows, scores, [id_ for block in blocks for id_ in block.query_ids]


def at_once(n: int, k: int, seed: int = 0) -> tuple[list[list[int]], list[list[float]], list[str]]:
    ids = tuple(f"q{i}" for i in range(n))
    near = Brute().search(Embeddings(unit_vectors(n, seed), ids, PRINT), k)
    return near.rows.tolist(), near.scores.tolist(), list(ids)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(n=st.integers(0, 30), k=st.integers(1, 25), block=st.integers(1, 31))
def test_blocks_joined_are_the_search_in_one_piece(
    tmp_path_factory: pytest.TempPathFactory, n: int, k: int, block: int
) -> None:
    folder = tmp_path_factory.mktemp("batch")
    queries = QueryFile.of_file(write_queries(folder / "q.safetensors", n))
    report = search_batches(Brute(), queries, k, folder / "found", searched=SEARCHED, block=block)
    assert report == BatchReport(n, -(-n // block), 0)
    rows, scores, ids = joined(folder / "found")
    wanted = at_once(n, k)
    assert (rows, ids) == (wanted[0], wanted[2])
    np.testing.assert_allclose(np.array(scores), np.array(wanted[1]), rtol=1e-6)


@pytest.fixture
def queries(tmp_path: Path) -> QueryFile:
    return QueryFile.of_file(write_queries(tmp_path / "q.safetensors", 10))


@pytest.fixture
def search(tmp_path: Path, queries: QueryFile) -> Callable[..., BatchReport]:
    """Ten queries in blocks of three; keywords replace what is not the usual."""

    def run(searcher: Brute | None = None, **other: Any) -> BatchReport:
        given = {"queries": queries, "k": 4, "out": tmp_path / "found", "searched": SEARCHED}
        given |= {"block": 3, **other}
        return search_batches(searcher or Brute(), **given)

    return run


@pytest.mark.parametrize(
    ("k", "block"), [(0, 4096), (1, 4096), (1024, 4096), (1025, 4092), (10**6, 4), (10**9, 1)]
)
def test_a_block_holds_fewer_queries_of_many_neighbours(k: int, block: int) -> None:
    assert batch.block_of(k) == block


def test_the_number_of_neighbours_decides_the_block(
    search: Callable[..., BatchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_HITS", 20)
    assert search(block=None).blocks == 2  # 20 // 4 queries in each


def test_pandas_reads_the_folder(tmp_path: Path, search: Callable[..., BatchReport]) -> None:
    search(ids_of=lambda rows: [f"picture {row}" for row in rows.tolist()], k=25)
    table = pd.read_parquet(tmp_path / "found")
    rows, scores, ids = at_once(10, 25)
    assert table["query"].tolist() == ids
    assert [each.tolist() for each in table["rows"]] == rows
    np.testing.assert_allclose(np.stack(table["scores"]), scores, rtol=1e-6)
    names = [None if row == NO_ROW else f"picture {row}" for row in rows[0]]
    assert table["ids"][0].tolist() == names
    assert names[-5:] == [None] * 5 and None not in names[:-5]


def test_labels_are_passed_on(tmp_path: Path, search: Callable[..., BatchReport]) -> None:
    search(allow=["2"])
    for near in read_neighbours(tmp_path / "found"):
        assert set((near.rows % 3).ravel().tolist()) == {2}


def test_a_second_run_searches_nothing(tmp_path: Path, search: Callable[..., BatchReport]) -> None:
    assert search() == BatchReport(10, 4, 0)
    before = {file.name: file.read_bytes() for file in (tmp_path / "found").iterdir()}
    brute, seen = Brute(), []
    report = search(brute, on_progress=lambda done, total: seen.append((done, total)))
    assert report == BatchReport(10, 4, 4)
    assert brute.calls == 0
    assert seen == [(3, 10), (6, 10), (9, 10), (10, 10)]
    assert {file.name: file.read_bytes() for file in (tmp_path / "found").iterdir()} == before


def test_a_stopped_search_goes_on(tmp_path: Path, search: Callable[..., BatchReport]) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(Brute(fail_at=4))  # the first call is a trial
    with pytest.raises(LmkError, match=r"000002\.parquet.*missing.*run the same search again"):
        joined(tmp_path / "found")
    brute = Brute()
    assert search(brute) == BatchReport(10, 4, 2)
    assert brute.asked == [("q6", "q7", "q8"), ("q9",)]
    assert joined(tmp_path / "found")[0] == at_once(10, 4)[0]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_batch as t
from lmk.index.search import batch

real, left = batch.write_whole, int(sys.argv[3])

def write(path, content):
    global left
    left -= 1
    if not left:  # half of the file is written
        path.with_name(f".{path.name}.0123456789abcdef.part").write_bytes(content[:9])
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, content)

batch.write_whole = write
folder = Path(sys.argv[2])
queries = t.QueryFile.of_file(folder / "q.safetensors")
t.search_batches(t.Brute(), queries, 4, folder / "found", searched=t.SEARCHED, block=3)
"""


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_killed_search_goes_on(
    tmp_path: Path, search: Callable[..., BatchReport], step: int
) -> None:
    """Killed while it writes what all is made from, a block, and the note of a block."""
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path), str(step)]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    assert list((tmp_path / "found").glob(".*.part"))
    assert search().kept == {1: 0, 4: 1, 5: 1}[step]
    assert joined(tmp_path / "found")[0] == at_once(10, 4)[0]
    assert not list((tmp_path / "found").glob(".*.part"))


def damages(content: bytes) -> dict[str, bytes | None]:
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {
        "missing": None,
        "empty": b"",
        "cut": content[:-1],
        "bit": bytes(flipped),
        "more": content + b"x",
        "strange": b"[]",
    }


@pytest.mark.parametrize("name", ["000001.parquet", "_000001.json"])
@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "bit", "more", "strange", "other"])
def test_a_damaged_block_is_found_and_made_again(
    tmp_path: Path, search: Callable[..., BatchReport], name: str, kind: str
) -> None:
    search()
    file = tmp_path / "found" / name
    whole = file.read_bytes()
    other = (tmp_path / "found" / name.replace("1", "2")).read_bytes()
    content = other if kind == "other" else damages(whole)[kind]
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(LmkError, match=r"000001\.parquet: this block .* missing or damaged"):
        joined(tmp_path / "found")
    brute = Brute()
    assert search(brute) == BatchReport(10, 4, 3)
    assert brute.asked == [("q3", "q4", "q5")]
    assert file.read_bytes() == whole
    assert joined(tmp_path / "found")[0] == at_once(10, 4)[0]


def test_a_block_of_another_search_is_not_taken(
    tmp_path: Path, search: Callable[..., BatchReport]
) -> None:
    search()
    search(k=5, out=tmp_path / "five")
    for name in ("000000.parquet", "_000000.json"):
        (tmp_path / "found" / name).write_bytes((tmp_path / "five" / name).read_bytes())
    assert search().kept == 3
    assert joined(tmp_path / "found")[0] == at_once(10, 4)[0]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"k": 5}, "asked for 4 neighbours, now for 5"),
        ({"searched": {"generation": 2}}, "of another index or kind of search, or it has changed"),
        ({"allow": ["1", "0"]}, r"labels allowed None, now \['0', '1'\]"),
        ({"ids_of": lambda rows: ["x"] * len(rows)}, "ids written: False, now True"),
        ({"block": 2}, "blocks of 3 queries, now of 2"),
    ],
)
def test_a_search_of_other_inputs_is_refused(
    tmp_path: Path, search: Callable[..., BatchReport], other: dict[str, Any], words: str
) -> None:
    search()
    before = {file.name: file.read_bytes() for file in (tmp_path / "found").iterdir()}
    with pytest.raises(UsageError, match=rf"found: holds another search \({words}\); remove the"):
        search(**other)
    assert {file.name: file.read_bytes() for file in (tmp_path / "found").iterdir()} == before


def test_other_queries_are_refused_and_moved_ones_are_not(
    tmp_path: Path, search: Callable[..., BatchReport]
) -> None:
    search()
    other = QueryFile.of_file(write_queries(tmp_path / "other.safetensors", 10, seed=1))
    with pytest.raises(UsageError, match="of other queries, or they have changed"):
        search(queries=other)
    (tmp_path / "q.safetensors").rename(tmp_path / "moved.safetensors")
    assert search(queries=QueryFile.of_file(tmp_path / "moved.safetensors")).kept == 4


def test_what_cannot_be_searched_leaves_no_folder(
    tmp_path: Path, search: Callable[..., BatchReport], queries: QueryFile
) -> None:
    strange = QueryFile(1, DIM, "f" * 64, {}, lambda low, high: Embeddings(
        unit_vectors(1), ("q",), "f" * 64
    ))  # fmt: skip
    with pytest.raises(EmbedderMismatch):
        search(queries=strange)
    assert not (tmp_path / "found").exists()
    with pytest.raises(ValueError, match="blocks of 0 queries"):
        search(block=0)


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, search: Callable[..., BatchReport]
) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds something else \(mine\.txt\).*of its own"):
        search()
    with pytest.raises(UsageError, match="a file, a folder is wanted"):
        search(out=tmp_path / "q.safetensors")
    assert [file.name for file in (tmp_path / "found").iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="something else"):
        joined(tmp_path / "found")
    with pytest.raises(UsageError, match="holds no batch search; make one: lmk index search"):
        joined(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 2}', b"\xff"])
def test_a_damaged_or_newer_description_is_refused(
    tmp_path: Path, search: Callable[..., BatchReport], content: bytes
) -> None:
    search()
    (tmp_path / "found" / "_search.json").write_bytes(content)
    for act in (search, lambda: joined(tmp_path / "found")):
        with pytest.raises(UsageError, match=r"_search\.json: was not written by this version"):
            act()


def test_two_searches_do_not_write_to_one_folder(
    tmp_path: Path, search: Callable[..., BatchReport]
) -> None:
    search()
    import os

    lock = take_lock(tmp_path / "found")
    try:
        with pytest.raises(GalleryLocked, match=f"process {os.getpid()}"):
            search()
    finally:
        os.close(lock)
    assert search().kept == 4


def test_a_full_disk_is_one_line_and_the_search_goes_on(
    tmp_path: Path, search: Callable[..., BatchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = batch.write_whole, []

    def write(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise StorageError("cannot write: no space left on device", where=path)
        real(path, content)

    monkeypatch.setattr(batch, "write_whole", write)
    with pytest.raises(StorageError, match="no space left"):
        search()
    assert search().kept == 1


def test_memory_holds_a_block_not_all(tmp_path: Path) -> None:
    n, dim = 40_000, 64
    tensors = {
        "vectors": unit_vectors(n, dim=dim),
        "ids": np.frombuffer("\n".join(map(str, range(n))).encode(), np.uint8),
    }
    save_file(tensors, tmp_path / "q.safetensors", metadata={"embedder": PRINT})
    del tensors

    class Constant:
        reason = "constant"

        def search(self, queries: Embeddings, k: int, allow: object = None) -> Neighbours:
            rows = np.tile(np.arange(k), (len(queries), 1))
            return Neighbours(rows, np.zeros(rows.shape, np.float32), queries.ids)

    queries = QueryFile.of_file(tmp_path / "q.safetensors")
    tracemalloc.start()
    try:
        search_batches(Constant(), queries, 20, tmp_path / "found", searched={}, block=500)
        count = sum(len(block) for block in read_neighbours(tmp_path / "found"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == n
    assert peak < n * dim * 4 / 5  # bytes; all queries would be five times that and more


def test_pictures_of_a_gallery_are_queries(tmp_path: Path, scenario: ModuleType) -> None:
    scenario.rebuild(tmp_path / "q.lmk", count=7)
    with open_queries(tmp_path / "q.lmk") as queries:
        assert (queries.count, queries.dim, queries.fingerprint) == (7, 8, scenario.A)
        read = queries.read(2, 5)
        assert read.ids == ("00002.jpg", "00003.jpg", "00004.jpg")
        wanted = np.array([scenario.vector_of(n) for n in (2, 3, 4)])
        np.testing.assert_allclose(read.vectors, wanted, atol=1e-3)
        before = dict(queries.identity)
    json.dumps(before)
    with Gallery.open(tmp_path / "q.lmk") as gallery:
        assert state_of(gallery) == before
    scenario.grow(tmp_path / "q.lmk")
    with open_queries(tmp_path / "q.lmk") as queries:
        assert queries.identity != before


def test_galleries_made_alike_are_told_apart(tmp_path: Path, scenario: ModuleType) -> None:
    """Of one embedder, in one second, with as many rows."""
    states = []
    for name, numbers in (("a", range(5)), ("b", range(5, 10))):
        with scenario.committing(tmp_path / name, create=True) as writer:
            writer.reset(scenario.A, 8)
            writer.append(*scenario.batch(numbers))
        with Gallery.open(tmp_path / name) as gallery:
            states.append(state_of(gallery) | {"created": "now"})
    assert states[0] != states[1]


def test_half_precision_and_other_alphabets_are_read(tmp_path: Path) -> None:
    tensors = {
        "vectors": unit_vectors(3).astype(np.float16),
        "ids": np.frombuffer("tour Eiffel.jpg\nпамятник\n塔".encode(), np.uint8),
    }
    save_file(tensors, tmp_path / "q.safetensors", metadata={"embedder": PRINT})
    with open_queries(tmp_path / "q.safetensors") as queries:
        read = queries.read(1, 3)
    assert read.ids == ("памятник", "塔")
    assert np.abs(np.linalg.norm(read.vectors, axis=1) - 1).max() < 1e-6
    np.testing.assert_allclose(read.vectors, unit_vectors(3)[1:], atol=1e-3)


def lines(*ids: str) -> np.ndarray:
    return np.frombuffer("\n".join(ids).encode(), np.uint8)


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"ids": lines("a")}, {"embedder": PRINT}, "no tensor 'vectors'"),
        ({"vectors": unit_vectors(1)}, {"embedder": PRINT}, "no tensor 'ids'"),
        ({"vectors": unit_vectors(1), "ids": lines("a")}, None, "do not name the embedder"),
        ({"vectors": unit_vectors(1)[0], "ids": lines("a")}, {"embedder": PRINT}, r"F32 \[8\]"),
        (
            {"vectors": unit_vectors(1).astype(np.float64), "ids": lines("a")},
            {"embedder": PRINT},
            r"F64 \[1, 8\], not F32 or F16",
        ),
        (
            {"vectors": unit_vectors(2), "ids": lines("a")},
            {"embedder": PRINT},
            "2 vectors but 1 ids",
        ),
        (
            {"vectors": unit_vectors(2), "ids": lines("a", "a")},
            {"embedder": PRINT},
            "an id is repeated",
        ),
        (
            {"vectors": unit_vectors(1), "ids": np.arange(3)},
            {"embedder": PRINT},
            r"ids are I64 \[3\], not U8 \[bytes\]",
        ),
    ],
)
def test_a_file_that_holds_no_queries_says_why(
    tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None, words: str
) -> None:
    save_file(tensors, tmp_path / "q.safetensors", metadata=metadata)
    with pytest.raises(
        UsageError, match=rf"q\.safetensors: holds no queries: .*{words}.*index\.md"
    ):
        QueryFile.of_file(tmp_path / "q.safetensors")


def test_ids_of_a_type_that_numpy_does_not_know(tmp_path: Path) -> None:
    """bfloat16, which save_file of numpy cannot write; the format is that of safetensors."""
    entries = {
        "__metadata__": {"embedder": PRINT},
        "ids": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "vectors": {"dtype": "F32", "shape": [1, 8], "data_offsets": [4, 36]},
    }
    header = json.dumps(entries).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4) + unit_vectors(1).tobytes()
    (tmp_path / "q.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"its ids are BF16 \[2\], not U8 \[bytes\]"):
        QueryFile.of_file(tmp_path / "q.safetensors")


def test_a_file_that_is_damaged_or_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing: no such file; name an index"):
        QueryFile.of_file(tmp_path / "nothing")
    file = write_queries(tmp_path / "q.safetensors", 5)
    for content in (b"", b"a,b\n1,2\n", file.read_bytes()[:-1]):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="is no safetensors file"):
            QueryFile.of_file(file)


@pytest.mark.parametrize("length", [0.0, 2.0, np.nan, np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_vector_that_is_not_of_length_one_is_named(tmp_path: Path, length: float) -> None:
    vectors = unit_vectors(3)
    vectors[1] *= np.float32(length)
    tensors = {"vectors": vectors, "ids": lines("a", "b", "c")}
    save_file(tensors, tmp_path / "q.safetensors", metadata={"embedder": PRINT})
    queries = QueryFile.of_file(tmp_path / "q.safetensors")
    assert queries.read(0, 1).ids == ("a",)
    with pytest.raises(UsageError, match=r"the vector of 'b' has length .*, not 1; divide each"):
        queries.read(0, 3)


def test_ids_that_are_no_text_are_said_to_be_none(tmp_path: Path) -> None:
    tensors = {"vectors": unit_vectors(2), "ids": np.frombuffer(b"a\n\xff", np.uint8)}
    save_file(tensors, tmp_path / "q.safetensors", metadata={"embedder": PRINT})
    with pytest.raises(UsageError, match="ids are not UTF-8"):
        QueryFile.of_file(tmp_path / "q.safetensors").read(0, 2)
