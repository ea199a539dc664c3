"""Votes against a slow count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.rerank.steps.voting import (
    class_prior,
    label_sums,
    power_weights,
    vote,
    vote_best,
    whole_power,
)


def slow(
    rows: list[list[int]], weights: list[list[float]], labels: list[list[int]]
) -> list[tuple[int, float, list[float]]]:
    results = []
    for query, given_ in zip(rows, weights, strict=True):
        sums: dict[int, float] = {}
        for row, weight in zip(query, given_, strict=True):
            for label in labels[row] if row >= 0 else []:
                sums[label] = sums.get(label, 0.0) + weight
        if sums:
            winner = min(sums, key=lambda label: (-sums[label], label))
            shares = [
                weight if row >= 0 and winner in labels[row] else 0.0
                for row, weight in zip(query, given_, strict=True)
            ]
            results.append((winner, sums[winner], shares))
        else:
            results.append((-1, 0.0, [0.0] * len(query)))
    return results


@st.composite
def votes(draw: st.DrawFn) -> tuple[list[list[int]], list[list[float]], list[list[int]]]:
    gallery = draw(st.integers(0, 6))
    code = st.lists(st.integers(0, 4), unique=True, max_size=3).map(sorted)
    labels = draw(st.lists(code, min_size=gallery, max_size=gallery))
    k = draw(st.integers(0, 6))
    row, weight = st.integers(-1, gallery - 1), st.sampled_from([0.0, 0.25, 0.5, 1.0])
    q = draw(st.integers(0, 4))
    rows = [draw(st.lists(row, min_size=k, max_size=k)) for _ in range(q)]
    weights = [draw(st.lists(weight, min_size=k, max_size=k)) for _ in range(q)]
    return rows, weights, labels


@given(votes())
def test_against_a_slow_count(
    case: tuple[list[list[int]], list[list[float]], list[list[int]]],
) -> None:
    """Weights are powers of two, so that sums and ties are exact."""
    rows, weights, labels = case
    k = len(rows[0]) if rows else 0
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in labels])]).astype(np.int64)
    codes = np.array([code for row in labels for code in row], np.int32)
    got = vote(
        np.array(rows, np.int64).reshape(len(rows), k),
        np.array(weights, np.float64).reshape(len(rows), k),
        offsets,
        codes,
    )
    expected = slow(rows, weights, labels)
    assert got.winner.tolist() == [winner for winner, _, _ in expected]
    assert got.total.tolist() == [total for _, total, _ in expected]
    assert got.shares.shape == (len(rows), k)
    assert got.shares.tolist() == [shares for _, _, shares in expected]


def test_a_tie_goes_to_the_smaller_code() -> None:
    got = vote(
        np.array([[0, 1]]), np.array([[1.0, 1.0]]), np.array([0, 1, 2]), np.array([7, 3], np.int32)
    )
    assert got.winner.tolist() == [3] and got.shares.tolist() == [[0, 1]]


def slow_sums(
    rows: list[list[int]], weights: list[list[float]], labels: list[list[int]], scale: list[float]
) -> list[dict[int, float]]:
    sums = []
    for query, given_ in zip(rows, weights, strict=True):
        got: dict[int, float] = {}
        for row, weight in zip(query, given_, strict=True):
            for label in labels[row] if row >= 0 else []:
                got[label] = got.get(label, 0.0) + weight * scale[label]
        sums.append(got)
    return sums


@given(votes(), st.permutations([1.0, 0.5, 2.0, 0.25, 4.0]))
def test_priors_against_a_slow_count(
    case: tuple[list[list[int]], list[list[float]], list[list[int]]], scale: list[float]
) -> None:
    rows, weights, labels = case
    k = len(rows[0]) if rows else 0
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in labels])]).astype(np.int64)
    codes = np.array([code for row in labels for code in row], np.int32)
    array = np.array(rows, np.int64).reshape(len(rows), k)
    given_ = np.array(weights, np.float64).reshape(len(rows), k)
    got = vote(array, given_, offsets, codes, scale=np.array(scale))
    expected = slow_sums(rows, weights, labels, scale)
    winners = [min(s, key=lambda c, s=s: (-s[c], c)) if s else -1 for s in expected]
    assert got.winner.tolist() == winners
    totals = [s.get(w, 0.0) for s, w in zip(expected, winners, strict=True)]
    assert got.total.tolist() == totals
    assert got.shares.sum(axis=1).tolist() == totals, "the shares are what the total is made of"
    sums = label_sums(array, given_, offsets, codes)
    plain = slow_sums(rows, weights, labels, [1.0] * 5)
    listed = [(i, code, s[code]) for i, s in enumerate(plain) for code in sorted(s)]
    assert [*zip(sums.query, sums.code, sums.total, strict=True)] == listed


def test_a_prior_keeps_a_crowd_from_winning() -> None:
    """Three pictures of label 0 at .5 against one of label 1 at .9."""
    rows, weights = np.array([[3, 0, 1, 2]]), np.array([[0.9, 0.5, 0.5, 0.5]])
    offsets, codes = np.arange(5), np.array([0, 0, 0, 1], np.int32)
    assert vote(rows, weights, offsets, codes).winner.tolist() == [0]
    mean = vote(rows, weights, offsets, codes, scale=class_prior(np.array([3, 1]), -1))
    assert mean.winner.tolist() == [1]


def test_the_prior_is_a_power_of_the_count() -> None:
    got = class_prior(np.array([0, 1, 4, 100]), 0.5)
    assert got.tolist() == [1, 1, 2, 10]
    assert np.log(class_prior(np.array([7]), 1)).tolist() == [pytest.approx(math.log(7))]
    assert class_prior(np.array([3, 9]), 0).tolist() == [1, 1]


def test_weights() -> None:
    scores = np.array([[0.5, 0.2, -np.inf], [-0.5, -np.inf, -np.inf]], np.float32)
    assert power_weights(scores).tolist() == [[0.5, pytest.approx(0.2), 0], [0, 0, 0]]
    np.testing.assert_allclose(power_weights(scores, 3)[0], [0.125, 0.008, 0], rtol=1e-6)
    nobody = np.full((1, 2), -np.inf, np.float32)
    assert power_weights(nobody).tolist() == [[0, 0]]


def test_a_query_alone_and_among_many() -> None:
    rng = np.random.default_rng(0)
    rows, weights = rng.integers(0, 300, (100, 33)), rng.random((100, 33))
    offsets, codes = np.arange(301), rng.integers(0, 3, 300).astype(np.int32)
    together = vote(rows, weights, offsets, codes)
    alone = [vote(rows[i : i + 1], weights[i : i + 1], offsets, codes) for i in range(100)]
    assert together.winner.tolist() == [int(one.winner[0]) for one in alone]
    assert together.total.tolist() == [float(one.total[0]) for one in alone]


def slow_best(
    rows: np.ndarray,
    scores: np.ndarray,
    k: int,
    labels: list[list[int]],
    power: int,
    scale: list[float],
) -> list[tuple[int, float, list[float]]]:
    """One query after the other, in words."""
    results = []
    for query, given_ in zip(rows.tolist(), scores.tolist(), strict=True):
        there = [j for j, row in enumerate(query) if row >= 0 and given_[j] > -math.inf]
        voters = sorted(there, key=lambda j: (-given_[j], query[j]))[:k]
        weights = {j: max(given_[j], 0.0) ** power for j in sorted(voters)}
        known = [j for j in voters if labels[query[j]]]
        silent = not any(weights[j] for j in known)
        if silent:
            weights = {j: float(j == known[0]) for j in known}
        sums: dict[int, float] = {}
        for j, weight in weights.items():
            for label in labels[query[j]]:
                sums[label] = sums.get(label, 0.0) + weight * scale[label]
        winner = min(sums, key=lambda label: (-sums[label], label)) if sums else -1
        shares = [0.0] * len(query)
        for j, weight in weights.items():
            if not silent and winner in labels[query[j]]:
                shares[j] = weight * scale[winner]
        results.append((winner, 0.0 if silent else sums.get(winner, 0.0), shares))
    return results


@given(
    seed=st.integers(0, 10_000),
    q=st.sampled_from([0, 1, 3, 300]),
    n=st.integers(0, 9),
    k=st.integers(1, 10),
    power=st.integers(1, 4),
    most_labels=st.integers(1, 3),
    scale=st.none() | st.permutations([1.0, 0.5, 0.0, 4.0]),
)
def test_the_best_vote_against_a_slow_count(
    seed: int, q: int, n: int, k: int, power: int, most_labels: int, scale: list[float] | None
) -> None:
    """Scores are quarters, so that powers, sums and ties are exact; some do not vote."""
    rng = np.random.default_rng(seed)
    gallery = 12
    counts = rng.integers(0, most_labels + 1, gallery)
    labels = [sorted(rng.permutation(4)[:count].tolist()) for count in counts]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    codes = np.array([code for row in labels for code in row], np.int32)
    rows = np.array([rng.permutation(gallery)[:n] for _ in range(q)], np.int64).reshape(q, n)
    rows[rng.random((q, n)) < 0.1] = -1
    scores = (rng.integers(-8, 5, (q, n)) / 4).astype(np.float32)
    scores[(rows < 0) | (rng.random((q, n)) < 0.1)] = -np.inf
    expected = slow_best(rows, scores, k, labels, power, scale or [1.0] * 4)
    by_label = None if scale is None else np.array(scale)
    got = vote_best(rows, scores, k, offsets, codes, power=power, scale=by_label)
    assert got.winner.tolist() == [winner for winner, _, _ in expected]
    assert got.total.tolist() == [total for _, total, _ in expected]
    assert got.shares.shape == (q, n) and got.shares.dtype == np.float32
    assert got.shares.tolist() == [shares for _, _, shares in expected]


def test_the_best_vote_with_a_prior() -> None:
    rows = np.array([[0, 1, 2, 3]])
    scores = np.array([[0.2, 0.9, 0.8, 0.7]], np.float32)
    offsets, codes = np.arange(5), np.array([0, 1, 2, 2], np.int32)
    plain = vote_best(rows, scores, 3, offsets, codes, power=1.5)
    assert plain.winner.tolist() == [2]
    np.testing.assert_allclose(plain.shares, [[0, 0, 0.8**1.5, 0.7**1.5]], rtol=1e-6)
    prior = vote_best(rows, scores, 4, offsets, codes, scale=np.array([9.0, 1, 1]))
    assert prior.winner.tolist() == [0]


def test_whole_powers_are_those_of_the_logarithm() -> None:
    base = np.linspace(0, 1, 50)
    for power in (1, 2, 3, 9, 10, 64):
        np.testing.assert_allclose(whole_power(base, power), base**power, rtol=1e-13)
    assert base[-2] < 1, "what was given is not changed"
