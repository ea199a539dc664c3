"""`lmk export`: each format agrees with the network, or says that it does not."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmk.embed.errors import LmkError
from lmk.embed.extract import export as exports
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.runtime import OpenVinoRuntime

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def model(make_embedder: Callable[[int], Path]) -> Path:
    return make_embedder(0)


def features(graph: Path, pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack(list(OpenVinoRuntime(graph).stream(pictures)))


def test_openvino(model: Path, sample: Path, tmp_path: Path, lmk: Run) -> None:
    graph = tmp_path / "out.xml"
    done = lmk(
        "export", model, "--format", "openvino", "-o", graph, "--data", sample / "gallery",
        "--distractors", sample / "bank", "--json",
    )  # fmt: skip
    facts = json.loads(done.out)
    assert done.err == "" and facts["least_cosine"] >= 0.999 and facts["compared"] == 12
    assert facts["figures"]["export"] == pytest.approx(facts["figures"]["fp32"], abs=0.02)
    pictures = exports.made_up_pictures(64)
    own = np.stack(list(Embedder.load(model).features(pictures)))
    np.testing.assert_allclose(features(graph, pictures), own, rtol=0.02, atol=0.02)


def test_without_pictures_of_ones_own(model: Path, tmp_path: Path, lmk: Run) -> None:
    done = lmk("export", model, "--format", "openvino", "-o", tmp_path / "out.xml")
    assert done.code == 0
    (line,) = done.out.splitlines()
    least = re.fullmatch(r".*out.xml: cosine to the network (\S+) at least, \S+ on average", line)
    assert least and float(least[1]) >= 0.999


@pytest.mark.parametrize("kind", ["onnx", "int8"])
def test_other_formats(kind: str, model: Path, sample: Path, tmp_path: Path, lmk: Run) -> None:
    pytest.importorskip({"onnx": "onnx", "int8": "nncf"}[kind], reason="the extra 'export'")
    file = tmp_path / f"out{exports.SUFFIXES[kind]}"
    done = lmk("export", model, "--format", kind, "-o", file, "--data", sample / "gallery")
    assert done.code == 0, done.err
    first, *figures = done.out.splitlines()
    assert first.startswith(f"{file}: cosine to the network ")
    assert [line.split()[:2] for line in figures] == [["fp32", "GAP"], ["export", "GAP"]]
    pictures = exports.made_up_pictures(64)
    cosines = exports.agreement(Embedder.load(model), file, pictures)
    assert cosines.min() >= (0.999 if kind == "onnx" else 0.6)
    assert (cosines.min() < 0.9999) == (kind == "int8")
    if kind == "int8":
        assert 'element_type="i8"' in file.read_text()


def test_a_graph_of_another_network_is_found_out(
    make_embedder: Callable[[int], Path], model: Path, tmp_path: Path
) -> None:
    other = Embedder.load(make_embedder(1))
    exports.export(other, "openvino", tmp_path / "other.xml")
    cosines = exports.agreement(
        Embedder.load(model), tmp_path / "other.xml", exports.made_up_pictures(64)
    )
    with pytest.raises(LmkError, match=r"other.xml: does not agree with the network: the least"):
        exports.require_agreement(cosines, tmp_path / "other.xml")
    with pytest.raises(LmkError, match="least cosine is nan"):
        exports.require_agreement(np.array([1, np.nan], np.float32), tmp_path / "other.xml")


def test_an_export_that_does_not_agree_ends_the_command(
    model: Path, tmp_path: Path, lmk: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = np.array([0.99, 1], np.float32)
    monkeypatch.setattr(exports, "agreement", lambda *_: wrong)
    done = lmk("export", model, "--format", "openvino", "-o", tmp_path / "out.xml")
    done.refused(1, "the least cosine is 0.99000, under 0.999")


class TestBadCalls:
    def test_endings(self, model: Path, tmp_path: Path, lmk: Run) -> None:
        call = ("export", model, "-o", tmp_path / "out.bin", "--format")
        lmk(*call, "onnx").refused(2, "must end in .onnx")
        lmk(*call, "int8").refused(2, "must end in .xml")

    def test_distractors_alone(self, model: Path, sample: Path, tmp_path: Path, lmk: Run) -> None:
        call = ("export", model, "--format", "openvino", "-o", tmp_path / "out.xml")
        lmk(*call, "--distractors", sample / "bank").refused(2, "add --data")

    @pytest.mark.parametrize("kind", ["onnx", "int8"])
    def test_a_package_is_missing(
        self, kind: str, model: Path, tmp_path: Path, lmk: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exports, "find_spec", lambda name: None)
        file = tmp_path / f"out{exports.SUFFIXES[kind]}"
        lmk("export", model, "--format", kind, "-o", file).refused(
            2, f"{kind}: the export needs the package", "lmk-landmarks[export]"
        )

    def test_int8_without_pictures(
        self, model: Path, tmp_path: Path, lmk: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exports, "find_spec", lambda name: object())
        lmk("export", model, "--format", "int8", "-o", tmp_path / "out.xml").refused(
            2, "int8: needs pictures", "--data"
        )

    def test_no_picture_can_be_read(self, model: Path, tmp_path: Path, lmk: Run) -> None:
        (tmp_path / "bad" / "place").mkdir(parents=True)
        (tmp_path / "bad" / "place" / "a.jpg").write_bytes(b"no picture")
        call = ("export", model, "--format", "openvino", "-o", tmp_path / "out.xml")
        lmk(*call, "--data", tmp_path / "bad").refused(2, "no picture can be read")

    def test_an_unknown_model(self, tmp_path: Path, lmk: Run) -> None:
        call = ("export", "no-such", "--format", "openvino", "-o", tmp_path / "out.xml")
        lmk(*call).refused(2, "no-such: is no preset")


def test_nncf_is_imported_without_its_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Nncf:
        @staticmethod
        def set_log_level(level: int) -> None:
            seen.append(level)

    def imported(name: str) -> type[Nncf]:
        seen.append((name, sys.modules["openvino_telemetry"]))
        return Nncf

    monkeypatch.setattr(exports, "import_module", imported)
    monkeypatch.setitem(sys.modules, "openvino_telemetry", sys)
    assert exports._import_nncf() is Nncf
    assert seen[0] == ("nncf", None) and sys.modules["openvino_telemetry"] is sys
    monkeypatch.delitem(sys.modules, "openvino_telemetry")
    exports._import_nncf()
    assert "openvino_telemetry" not in sys.modules
