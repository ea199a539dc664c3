"""The tags of an embedder's folder: what they compute, their file, faults."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from lmk.embed.errors import EmbedderMismatch, ModelError
from lmk.embed.tags.head import TAGS_FILE, TagHead, load_tag_head, save_tag_head


def head(**changes: Any) -> TagHead:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "names": ("cat", "dog", "海"),
        "weight": rng.normal(size=(3, 4)).astype(np.float32),
        "bias": np.array([0.5, -1, 0], np.float32),
        "activation": "sigmoid",
        "unit": False,
        "feature_fingerprint": "abc",
    }
    return TagHead(**{**values, **changes})


FEATURES = np.random.default_rng(1).normal(0, 5, (6, 4)).astype(np.float32)


class TestProbabilities:
    def test_sigmoid(self) -> None:
        own = head()
        for row, got in zip(FEATURES, own.probabilities(FEATURES), strict=True):
            expected = [1 / (1 + np.exp(-(own.weight[t] @ row + own.bias[t]))) for t in range(3)]
            np.testing.assert_allclose(got, expected, rtol=1e-5)

    def test_softmax(self) -> None:
        own = head(activation="softmax")
        got = own.probabilities(FEATURES)
        exps = np.exp((FEATURES @ own.weight.T + own.bias).astype(np.float64))
        np.testing.assert_allclose(got, exps / exps.sum(axis=1, keepdims=True), rtol=1e-4)

    def test_unit_features_will_do(self) -> None:
        own = head(unit=True)
        got = own.probabilities(FEATURES)
        assert got.dtype == np.float32
        np.testing.assert_allclose(own.probabilities(FEATURES * 7), got, rtol=1e-4)
        plain = head().probabilities(FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True))
        np.testing.assert_allclose(got, plain, rtol=1e-4)

    def test_far_from_0_nothing_overflows(self) -> None:
        assert np.isfinite(head().probabilities(FEATURES * 1e6)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": np.zeros(2, np.float32)}, "shapes"),
        ({"names": ("a", "b")}, "as many different names"),
        ({"names": ("a", "b", "a")}, "as many different names"),
        ({"bias": np.array([0, np.nan, 0], np.float32)}, "finite"),
        ({"activation": "relu"}, "unknown activation 'relu'"),
    ],
)
def test_heads_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(**changes)


class TestFile:
    def test_there_and_back(self, tmp_path: Path) -> None:
        own = head(activation="softmax", unit=True)
        save_tag_head(own, tmp_path / TAGS_FILE)
        other = load_tag_head(tmp_path, "abc")
        assert (other.names, other.activation, other.unit) == (own.names, "softmax", True)
        assert np.array_equal(other.weight, own.weight) and np.array_equal(other.bias, own.bias)
        assert other.dim == 4

    def test_names_in_another_unicode_form(self, tmp_path: Path) -> None:
        names = ("cafe\u0301", *head().names[1:])
        save_tag_head(dataclasses.replace(head(), names=names), tmp_path / TAGS_FILE)
        assert load_tag_head(tmp_path).names == ("caf\xe9", *names[1:])

    def test_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="knows no tags; train one: lmk train tags-lite1"):
            load_tag_head(tmp_path)

    def test_of_another_embedder(self, tmp_path: Path) -> None:
        save_tag_head(head(), tmp_path / TAGS_FILE)
        with pytest.raises(EmbedderMismatch, match="trained with another embedder"):
            load_tag_head(tmp_path, "abd")

    @pytest.mark.parametrize("fault", ["cut", "no header", "other tensors", "newer"])
    def test_damaged(self, fault: str, tmp_path: Path) -> None:
        path = tmp_path / TAGS_FILE
        save_tag_head(head(), path)
        content = path.read_bytes()
        if fault == "cut":
            path.write_bytes(content[:-5])
        elif fault == "no header":
            path.write_bytes(save(load(content)))
        elif fault == "newer":
            path.write_bytes(content.replace(b'\\"format\\": 1', b'\\"format\\": 2'))
        else:
            path.write_bytes(content.replace(b'"bias"', b'"bios"'))
        message = "written by a newer lmk" if fault == "newer" else "is no file of tags"
        with pytest.raises(ModelError, match=message):
            load_tag_head(tmp_path)
