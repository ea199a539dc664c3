"""Exports an embedder's network for other programs: OpenVINO, ONNX, OpenVINO in int8.

The exported graph maps pictures uint8 [n, size, size, 3] (RGB, resized to a square) to raw features
float32 [n, feature_dim]. Neither the scaling to length 1 nor the whitening is part of it.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import Picture
from lmk.embed.embeddings import unit_rows
from lmk.embed.errors import LmkError, ModelError, storage_errors
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.runtime import (
    OpenVinoRuntime,
    TorchRuntime,
    export_graph,
    import_openvino,
    no_telemetry,
    openvino_usable,
)

SUFFIXES = {"openvino": ".xml", "onnx": ".onnx", "int8": ".xml"}
LEAST_COSINE = 0.999
_NEEDED = {"onnx": "onnx", "int8": "nncf"}
_MADE_UP = 16
_OPSET = 17


def export(embedder: Embedder, kind: str, path: Path, calibration: Sequence[Picture] = ()) -> None:
    """Writes the network to a file; OpenVINO writes its weights beside it, in a .bin file.

    Args:
        embedder: the embedder to export.
        kind: "openvino", "onnx" or "int8".
        path: the file to write, with the suffix of its kind in SUFFIXES.
        calibration: pictures for int8, typical of those to be embedded. Their activations
            determine the scales.

    Raises:
        ModelError: a package is missing, or `kind` is int8 and there are no pictures.
        StorageError: the file cannot be written.
    """
    needed = _NEEDED.get(kind)
    if needed is not None and find_spec(needed) is None:
        remedy = "pip install 'lmk-landmarks[export]'"
        raise ModelError(f"the export needs the package {needed}", where=kind, remedy=remedy)
    if not openvino_usable():
        raise ModelError("OpenVINO is not installed", where=kind, remedy="pip install openvino")
    if kind == "onnx":
        _write_onnx(embedder, path)
    elif kind == "openvino":
        export_graph(embedder.network(), embedder.config.size, path)
    elif not calibration:
        remedy = "give some with --data"
        raise ModelError("needs pictures to set its scales by", where=kind, remedy=remedy)
    else:
        _write_int8(embedder, path, calibration)


def exported(embedder: Embedder, path: Path) -> Embedder:
    """Returns the embedder with an exported graph as its runtime, for a comparison."""
    return embedder.with_runtime(OpenVinoRuntime(path))


def agreement(embedder: Embedder, path: Path, pictures: Sequence[Picture]) -> NDArray[np.float32]:
    """Returns the cosines float32 [n] between features of the export and of the torch network."""
    plain = list(TorchRuntime(embedder.network(), "cpu").stream(pictures))
    other = list(OpenVinoRuntime(path).stream(pictures))
    cosines: NDArray[np.float32] = (unit_rows(np.stack(plain)) * unit_rows(np.stack(other))).sum(1)
    return cosines


def require_agreement(cosines: NDArray[np.float32], path: Path) -> None:
    """Raises LmkError unless all cosines are at least LEAST_COSINE."""
    least = float(cosines.min())
    if not least >= LEAST_COSINE:
        raise LmkError(
            f"does not agree with the network: the least cosine is {least:.5f}, under "
            f"{LEAST_COSINE}",
            where=path,
            remedy="report it with the model's name; the file is of no use",
        )


def made_up_pictures(size: int) -> list[Picture]:
    """Returns synthetic pictures uint8 [size, size, 3] of coloured areas, always the same ones."""
    rng = np.random.default_rng(0)
    blotches = rng.integers(0, 256, (_MADE_UP, 8, 8, 3), dtype=np.uint8)
    return [
        np.asarray(cv2.resize(each, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)
        for each in blotches
    ]


def _write_onnx(embedder: Embedder, path: Path) -> None:
    import torch

    size = embedder.config.size
    example = torch.zeros((1, size, size, 3), dtype=torch.uint8)
    many = {"pictures": {0: "n"}, "features": {0: "n"}}
    with storage_errors(path), warnings.catch_warnings():
        # The exporter is called legacy; the new one wants one more package and n fixed at 1.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            embedder.network().cpu(),
            (example,),
            str(path),
            input_names=["pictures"],
            output_names=["features"],
            dynamic_axes=many,
            opset_version=_OPSET,
            dynamo=False,
        )


def _write_int8(embedder: Embedder, path: Path, calibration: Sequence[Picture]) -> None:
    nncf = _import_nncf()
    openvino = import_openvino()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # it draws bars
        warnings.simplefilter("ignore")
        model = openvino.Core().read_model(embedder.graph())
        data = nncf.Dataset([picture[None] for picture in calibration])
        # Weights and activations both symmetric cost accuracy after swish-like activations.
        int8 = nncf.quantize(
            model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=len(calibration)
        )
    with storage_errors(path):
        openvino.save_model(int8, path)


def _import_nncf() -> Any:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # wants a compiler
    import_openvino()
    with no_telemetry():
        nncf = import_module("nncf")
        nncf.set_log_level(logging.ERROR)
        return nncf
