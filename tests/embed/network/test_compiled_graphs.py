"""The cache of compiled graphs: the same vectors with it, without it and after damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.compiled_graphs import _MOST_FILES, cache_folder
from lmk.embed.network.runtime import OpenVinoRuntime, import_openvino, openvino_usable

pytestmark = pytest.mark.skipif(not openvino_usable(), reason="OpenVINO is not installed")


@pytest.fixture
def graph(tiny: Embedder, tmp_path: Path) -> Path:
    tiny.save(tmp_path)
    return tmp_path / "graph.xml"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lmk" / "graphs"


def _features(graph: Path, side: int) -> np.ndarray:
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return next(OpenVinoRuntime(graph, streams=1).stream([picture]))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that compile a graph or read a compiled one, in order."""
    calls: list[str] = []
    core = import_openvino().Core
    for name in ("compile_model", "import_model"):
        plain = getattr(core, name)

        def spy(self, *args, _name=name, _plain=plain):
            calls.append(_name)
            return _plain(self, *args)

        monkeypatch.setattr(core, name, spy)
    return calls


def test_a_second_start_reads_the_compiled_graph(graph, cache, compiled, tiny):
    first, second = (_features(graph, tiny.config.size) for _ in range(2))
    assert compiled == ["compile_model", "import_model"]
    assert np.array_equal(first, second)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder"])
def test_a_damaged_file_is_compiled_again(graph, cache, compiled, tiny, damage):
    first = _features(graph, tiny.config.size)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes({"cut": content[:-9], "flipped": content, "empty": b""}[damage])
    assert np.array_equal(_features(graph, tiny.config.size), first)
    assert compiled == ["compile_model"] * 2


def test_a_changed_graph_is_not_taken_for_another(graph, cache, tiny):
    first = _features(graph, tiny.config.size)
    weights = graph.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0x40
    weights.write_bytes(content)
    assert not np.array_equal(_features(graph, tiny.config.size), first)
    assert len(list(cache.iterdir())) == 2


def test_a_file_that_openvino_refuses_is_replaced(graph, cache, compiled, tiny):
    first = _features(graph, tiny.config.size)
    (file,) = cache.iterdir()
    from hashlib import sha256

    file.write_bytes(sha256(b"no graph").digest() + b"no graph")
    assert np.array_equal(_features(graph, tiny.config.size), first)
    assert compiled == ["compile_model", "import_model", "compile_model"]
    assert file.stat().st_size > 100


def test_the_cache_stays_small(graph, cache, tiny):
    for number in range(_MOST_FILES + 2):
        other = graph.parent / f"graph{number}.xml"
        other.write_text(graph.read_text() + f"<!-- {number} -->")
        shutil.copyfile(graph.with_suffix(".bin"), other.with_suffix(".bin"))
        _features(other, tiny.config.size)
    assert len(list(cache.iterdir())) == _MOST_FILES


def test_no_cache_can_be_written(graph, cache, compiled, tiny):
    cache.parent.parent.write_text("in the way")
    assert len(_features(graph, tiny.config.size)) == tiny.feature_dim
    assert compiled == ["compile_model"]


def test_the_cache_lies_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lmk" / "graphs"
