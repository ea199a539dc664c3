"""Runtimes of a network: OpenVINO on a CPU, torch on a GPU or where OpenVINO is not available.

Both compute the same graph on the same uint8 pictures in fp32, and differ only in the last digits
(cosine >= .999). This module imports torch only where torch is the runtime.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import Picture
from lmk.embed.errors import ModelError, StorageError
from lmk.embed.memory_errors import raise_system_cause
from lmk.embed.network.compiled_graphs import compile_graph
from lmk.embed.process import start_threads

if TYPE_CHECKING:
    from lmk.embed.network.heads import EmbeddingNetwork

_TORCH_BATCH = 32
# On CPUs, one picture per request is faster than larger batches (docs/results.md).
_REQUESTS_PER_STREAM = 2


class Runtime(Protocol):
    """Computes a network on a stream of pictures."""

    name: str

    def stream(self, pictures: Iterable[Picture]) -> Iterator[NDArray[np.float32]]:
        """Yields features float32 [d] of each picture (uint8 [size, size, 3]), in order.

        The next pictures are taken from the iterable while earlier ones are computed.
        """
        ...


class OpenVinoRuntime:
    """Runtime of OpenVINO on the CPU in fp32; its default may be bf16, which changes vectors.

    Args:
        graph: the file of the exported graph (.xml, with its .bin beside it).
        streams: number of pictures computed at the same time. Default: the number of cores.
    """

    name = "openvino"

    def __init__(self, graph: Path, *, streams: int | None = None) -> None:
        openvino = import_openvino()
        streams = streams or available_cores()
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": streams}
        try:
            self._compiled = compile_graph(openvino, graph, options)
        except RuntimeError as error:
            raise_system_cause(error)
            what = "OpenVINO cannot read this graph"
            remedy = "build the index again, or install the openvino it was built with"
            raise ModelError(what, where=graph, remedy=remedy) from error
        self._requests = streams * _REQUESTS_PER_STREAM

    def stream(self, pictures: Iterable[Picture]) -> Iterator[NDArray[np.float32]]:
        """See Runtime.stream."""
        start_threads()
        idle = [self._compiled.create_infer_request() for _ in range(self._requests)]
        running: deque[Any] = deque()
        for picture in pictures:
            if not idle:
                yield self._finish(running, idle)
            request = idle.pop()
            request.start_async({0: picture[None]})
            running.append(request)
        while running:
            yield self._finish(running, idle)

    @staticmethod
    def _finish(running: deque[Any], idle: list[Any]) -> NDArray[np.float32]:
        request = running.popleft()
        request.wait()
        features: NDArray[np.float32] = request.get_output_tensor(0).data[0].copy()
        idle.append(request)
        return features


class TorchRuntime:
    """Runtime of torch on a CUDA device, or on the CPU if OpenVINO is not installed."""

    name = "torch"

    def __init__(self, network: EmbeddingNetwork, device: str | None = None) -> None:
        import torch

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self.device).eval()

    def stream(self, pictures: Iterable[Picture]) -> Iterator[NDArray[np.float32]]:
        """See Runtime.stream."""
        start_threads()
        batch: list[Picture] = []
        for picture in pictures:
            batch.append(picture)
            if len(batch) == _TORCH_BATCH:
                yield from self._run(batch)
                batch = []
        if batch:
            yield from self._run(batch)

    def _run(self, batch: list[Picture]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            pictures = torch.from_numpy(np.stack(batch)).to(self.device)
            features: NDArray[np.float32] = self._network(pictures).float().cpu().numpy()
        return features


def openvino_usable() -> bool:
    """True if OpenVINO is installed; it is not available on every platform.

    The package is not imported, as a failed or interrupted import proves nothing.
    """
    return find_spec("openvino") is not None


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def export_graph(network: EmbeddingNetwork, size: int, path: Path) -> None:
    """Writes the network as an OpenVINO graph (path .xml, weights beside it in .bin, fp16).

    The graph takes pictures uint8 [n, size, size, 3] of any n; preprocessing is part of it.

    Raises:
        StorageError: the graph cannot be written.
    """
    import copy
    import warnings

    import torch

    openvino = import_openvino()
    network = copy.deepcopy(network).cpu()  # the original may be in use on a GPU
    example = torch.zeros((1, size, size, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, but OpenVINO uses it
        graph = openvino.convert_model(network, example_input=example, input=[-1, size, size, 3])
    try:
        openvino.save_model(graph, path)
    except RuntimeError as error:  # OpenVINO gives no reason
        raise_system_cause(error)
        what = "cannot write the network's graph"
        remedy = "free some space there, or name another folder with TMPDIR"
        raise StorageError(what, where=path.parent, remedy=remedy) from error


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Makes openvino_telemetry impossible to import, so that openvino and nncf send nothing.

    Both send a report when they are imported, and have no setting against it. Without the module
    they use a stub of their own.
    """
    telemetry = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]
        if telemetry is not None:
            sys.modules["openvino_telemetry"] = telemetry


def import_openvino() -> Any:
    """Imports and returns openvino, without its telemetry."""
    if sys.modules.get("openvino") is not None:
        return sys.modules["openvino"]
    try:
        with no_telemetry():
            return importlib.import_module("openvino")
    except ImportError as error:
        raise_system_cause(error)
        what = f"OpenVINO is installed, but cannot be imported ({error})"
        remedy = "install it again, or uninstall it: lmk then uses torch"
        raise ModelError(what, where="openvino", remedy=remedy) from error
