"""A lack of memory is told from damage, by the words that libraries really use."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from lmk.embed.data.images import NO_MEMORY
from lmk.embed.data.sources import picture_source
from lmk.embed.errors import ModelError, NotEnoughMemory
from lmk.embed.memory_errors import memory_error, raise_system_cause
from lmk.embed.network import runtime
from lmk.embed.network.runtime import OpenVinoRuntime, import_openvino
from lmk.embed.weights import read_state

OPENVINO = """Exception from src/inference/src/cpp/core.cpp:132:
Exception from src/inference/src/dev/plugin.cpp:59:
{}
"""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FAISS = caused(
    RuntimeError("faiss-gpu: failed to load libcublas.so.12 from /x: corrupt or incomplete wheel?"),
    OSError("libcublasLt.so.12: failed to map segment from shared object"),
)
NO_ROOM = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory", "photo.jpg"),
    ImportError("libgfortran.so.5: failed to map segment from shared object"),
    ImportError("libtorch_cpu.so: cannot map zero-fill pages: Cannot allocate memory"),
    RuntimeError(OPENVINO.format("std::bad_alloc")),
    RuntimeError("[CPU] GroupConvolution node with name 'Multiply_30407' can't alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    cv2.error("(-4:Insufficient memory) Failed to allocate 30000000000 bytes"),
    FAISS,
]
NO_THREADS = [
    RuntimeError("can't start new thread"),
    RuntimeError(OPENVINO.format("Resource temporarily unavailable")),
]
OTHERS = [
    ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
    OSError("/mnt/libx.so: failed to map segment from shared object: Operation not permitted"),
    OSError(errno.ENOENT, "No such file or directory", "out of memory.jpg"),
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    KeyError("out of memory"),
    ModelError("no such embedder", where="bad_alloc"),
    RuntimeError(OPENVINO.format("Unable to read the model")),
]


@pytest.mark.parametrize("error", NO_ROOM, ids=str)
def test_no_memory(error: Exception) -> None:
    found = memory_error(error)
    assert found is not None
    assert str(found).startswith("not enough memory;") and "ulimit -v" in str(found)
    assert found.exit_code == 1


@pytest.mark.parametrize("error", NO_THREADS, ids=str)
def test_no_threads(error: Exception) -> None:
    assert "too many threads" in str(memory_error(error))


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors(error: Exception) -> None:
    assert memory_error(error) is None
    raise_system_cause(error)


def test_the_cause_counts_and_a_hidden_context_does_not() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise ImportError("numpy cannot be imported")  # noqa: B904
    except ImportError as error:
        assert memory_error(error) is not None
        error.__suppress_context__ = True
        assert memory_error(error) is None
        error.__cause__ = error  # a chain that never ends
        assert memory_error(error) is None


@pytest.mark.parametrize(
    ("text", "kind"), [("std::bad_alloc", NotEnoughMemory), ("Unable to read", ModelError)]
)
def test_a_graph_without_memory_is_not_damaged(
    monkeypatch: pytest.MonkeyPatch, text: str, kind: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(OPENVINO.format(text))

    core = SimpleNamespace(compile_model=fail)
    monkeypatch.setattr(runtime, "import_openvino", lambda: SimpleNamespace(Core=lambda: core))
    with pytest.raises(kind):
        OpenVinoRuntime(Path("graph.xml"))


def test_a_library_without_memory_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"{name}.so: failed to map segment from shared object")

    monkeypatch.setattr(runtime.importlib, "import_module", fail)
    monkeypatch.delitem(runtime.sys.modules, "openvino", raising=False)
    with pytest.raises(NotEnoughMemory):
        import_openvino()


def test_weights_without_memory_are_not_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", fail)
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(NotEnoughMemory):
        read_state(tmp_path / "w.pth")


def test_a_picture_without_memory_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    from PIL import Image

    def fail(*_: object, **__: object) -> None:
        raise cv2.error("(-4:Insufficient memory) Failed to allocate 30000000000 bytes")

    source = picture_source(np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(cv2, "imencode", fail)
    monkeypatch.setattr(Image.Image, "save", fail)
    assert source.read() == NO_MEMORY
