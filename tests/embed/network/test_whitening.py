"""Whitening against an independent PCA."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from lmk.embed.embeddings import unit_rows
from lmk.embed.network.whitening import Whitening, fit_whitening


def features(n: int = 400, d: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, d)) * np.linspace(3, 0.3, d) + rng.standard_normal(d)
    return (mixed @ np.linalg.qr(rng.standard_normal((d, d)))[0]).astype(np.float32) * 50


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_against_scikit_learn(power: float) -> None:
    x = features()
    pca = PCA(n_components=7, svd_solver="full").fit(unit_rows(x).astype(np.float64))
    values = pca.explained_variance_ * (len(x) - 1) / len(x)
    expected = pca.transform(unit_rows(features(seed=1))) * values ** (-power / 2)
    got = fit_whitening(x, dim=7, power=power).apply(features(seed=1))
    expected = unit_rows(expected)
    signs = np.sign((got * expected).sum(axis=0))
    np.testing.assert_allclose(got, expected * signs, atol=2e-4)


def test_power_1_gives_an_identity_covariance() -> None:
    x = unit_rows(features())
    whitening = fit_whitening(x, power=1.0)
    mapped = (x - whitening.mean) @ whitening.matrix
    np.testing.assert_allclose(np.cov(mapped.T, bias=True), np.eye(12), atol=1e-3)
    np.testing.assert_allclose(mapped.mean(axis=0), 0, atol=1e-4)


def test_components_fall_and_signs_are_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features()
    first = fit_whitening(x, power=0.0)
    spread = ((unit_rows(x) - first.mean) @ first.matrix).std(axis=0)
    assert (np.diff(spread) <= 0).all()
    eigh = np.linalg.eigh

    def whim(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = eigh(matrix)
        return values, vectors * np.where(np.arange(len(values)) % 2, 1, -1)

    monkeypatch.setattr(np.linalg, "eigh", whim)
    assert np.array_equal(fit_whitening(x, power=0.0).matrix, first.matrix)


@pytest.mark.parametrize(("n", "dim"), [(1, 1), (2, 1), (5, 4), (100, 12)])
def test_no_more_components_than_the_rank(n: int, dim: int) -> None:
    x = features(n)
    whitening = fit_whitening(x, power=1.0)
    assert whitening.dim == dim
    vectors = whitening.apply(x)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_equal_features_are_survived() -> None:
    vectors = fit_whitening(np.ones((5, 3), np.float32), power=1.0).apply(np.ones((2, 3)))
    assert np.isfinite(vectors).all()


def test_the_length_of_a_feature_does_not_matter() -> None:
    x = features()
    whitening = fit_whitening(x)
    np.testing.assert_allclose(whitening.apply(x[:5] * 9), whitening.apply(x[:5]), atol=1e-5)
    np.testing.assert_allclose(fit_whitening(x * 9).matrix, whitening.matrix, atol=2e-2)


@pytest.mark.parametrize(
    ("mean", "matrix"),
    [
        (np.zeros(3), np.zeros((4, 2))),
        (np.zeros((3, 1)), np.zeros((3, 2))),
        (np.zeros(3), np.full((3, 2), np.nan)),
        (np.full(3, np.inf), np.zeros((3, 2))),
    ],
)
def test_built_wrong(mean: np.ndarray, matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"do not fit|finite"):
        Whitening(mean, matrix)
