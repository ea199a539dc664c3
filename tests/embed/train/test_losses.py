"""Each loss against the papers' formulas, written out in numpy; gradients against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.train.losses import MarginArcFace, class_loss, class_margins, class_weights
from lmk.embed.train.task_config import Classes, MarginByPower, MarginByRank

N, DIM, CLASSES = 12, 6, 5
COUNTS = np.array([1, 4, 40, 7, 100])
SCALE = 16.0


def settings(**values: Any) -> Classes:
    return Classes(task="classes", scale=SCALE, **values)


def reference(
    kind: str,
    embeddings: np.ndarray,
    centres: np.ndarray,
    labels: np.ndarray,
    margins: np.ndarray,
    sub_centers: int,
) -> np.ndarray:
    """Losses [n] in float64, picture by picture and class by class."""
    losses = []
    for embedding, label in zip(embeddings, labels, strict=True):
        logits = []
        for c in range(centres.shape[1] // sub_centers):
            cosine = max(
                float(embedding @ centre / np.linalg.norm(embedding) / np.linalg.norm(centre))
                for centre in centres[:, c * sub_centers : (c + 1) * sub_centers].T
            )
            if c == label:
                angle, margin = np.arccos(cosine), margins[c]
                if kind == "cosface":
                    cosine -= margin
                elif angle <= np.pi - margin:
                    cosine = np.cos(angle + margin)
                else:
                    cosine -= margin * np.sin(margin)
            logits.append(SCALE * cosine)
        logits = np.array(logits)
        top = logits.max()
        losses.append(top + np.log(np.exp(logits - top).sum()) - logits[label])
    return np.array(losses)


CASES = {
    "arcface": settings(loss="arcface", margin=0.4),
    "arcface with a large margin": settings(loss="arcface", margin=2.0),
    "cosface": settings(loss="cosface", margin=0.35),
    "subcenter": settings(loss="subcenter", margin=0.4, sub_centers=3),
    "dynamic": settings(loss="arcface", dynamic_margin=MarginByRank()),
    "dynamic subcenter": settings(
        loss="subcenter", sub_centers=2, dynamic_margin=MarginByPower(form="power", a=2, b=0.2, c=0)
    ),
}


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    embeddings = torch.from_numpy(rng.normal(0, 3, (N, DIM))).float()
    return embeddings, torch.from_numpy(rng.integers(0, CLASSES, N))


def margins_of(case: Classes) -> np.ndarray:
    if case.dynamic_margin is None:
        return np.full(CLASSES, case.margin)
    return class_margins(case.dynamic_margin, COUNTS)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Classes, torch.nn.Module, np.ndarray, int]:
    torch.manual_seed(0)
    chosen = CASES[request.param]
    loss = class_loss(chosen, COUNTS, DIM)
    (centres,) = loss.parameters()
    return chosen, loss, centres, chosen.sub_centers if chosen.loss == "subcenter" else 1


def test_values(case: Any) -> None:
    chosen, loss, centres, sub_centers = case
    embeddings, labels = inputs()
    expected = reference(
        chosen.loss,
        embeddings.double().numpy(),
        centres.detach().double().numpy(),
        labels.numpy(),
        margins_of(chosen),
        sub_centers,
    )
    np.testing.assert_allclose(loss(embeddings, labels).detach().numpy(), expected, rtol=2e-4)


def test_gradients(case: Any) -> None:
    chosen, loss, centres, sub_centers = case
    embeddings, labels = inputs()
    embeddings.requires_grad_()
    loss(embeddings, labels).sum().backward()
    numbers = {
        "embeddings": embeddings.detach().double().numpy(),
        "centres": centres.detach().double().numpy(),
    }

    def total() -> float:
        return float(
            reference(
                chosen.loss, **numbers, labels=labels.numpy(), margins=margins_of(chosen),
                sub_centers=sub_centers,
            ).sum()
        )  # fmt: skip

    for name, gradient in (("embeddings", embeddings.grad), ("centres", centres.grad)):
        expected = np.zeros_like(numbers[name])
        for place in np.ndindex(expected.shape):
            sides = []
            for step in (1e-6, -1e-6):
                numbers[name][place] += step
                sides.append(total())
                numbers[name][place] -= step
            expected[place] = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=2e-3, atol=2e-3)


def test_softmax_is_a_plain_linear_classifier() -> None:
    loss = class_loss(settings(loss="softmax"), COUNTS, DIM)
    embeddings, labels = inputs()
    weight, bias = (part.detach().double().numpy() for part in loss.parameters())
    logits = embeddings.double().numpy() @ weight.T + bias
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(N), labels.numpy()]
    np.testing.assert_allclose(loss(embeddings, labels).detach().numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sign", [1, -1])
def test_on_a_class_centre_and_opposite_to_it_nothing_is_infinite(name: str, sign: int) -> None:
    """The slope of acos is infinite at 1 and -1."""
    loss = class_loss(CASES[name], COUNTS, DIM)
    (centres,) = loss.parameters()
    embeddings = (sign * centres.detach().T[:CLASSES]).clone().requires_grad_()
    loss(embeddings, torch.arange(CLASSES)).sum().backward()
    assert torch.isfinite(embeddings.grad).all() and torch.isfinite(centres.grad).all()


@pytest.mark.parametrize("name", CASES)
def test_half_precision_embeddings_are_computed_in_full(name: str) -> None:
    loss = class_loss(CASES[name], COUNTS, DIM)
    embeddings, labels = inputs()
    result = loss(embeddings.bfloat16(), labels)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, loss(embeddings.bfloat16().float(), labels))


class TestMargins:
    def test_of_the_third_place_of_2020(self) -> None:
        """GLDv2's class sizes: 2 the smallest, 6272 the largest."""
        counts = np.array([2, 5, 10, 50, 100, 1000, 6272])
        expected = [0.5, 0.394, 0.328, 0.213, 0.176, 0.090, 0.05]
        np.testing.assert_allclose(class_margins(MarginByRank(), counts), expected, atol=6e-4)

    def test_one_size_for_all_classes(self) -> None:
        assert class_margins(MarginByRank(), np.array([7, 7, 7])).tolist() == [0.05] * 3

    def test_by_power(self) -> None:
        formula = MarginByPower(form="power", a=0.5, b=0.25, c=0.1)
        got = class_margins(formula, np.array([1, 16, 81]))
        np.testing.assert_allclose(got, [0.6, 0.35, 0.5 / 3 + 0.1])

    def test_by_power_stays_an_angle(self) -> None:
        steep = MarginByPower(form="power", a=10, b=1, c=-1)
        assert class_margins(steep, np.array([1, 100])).tolist() == [3.0, 0.0]

    @given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
    def test_a_smaller_class_never_has_a_smaller_margin(self, counts: list[int]) -> None:
        margins = class_margins(MarginByRank(), np.array(counts))
        assert ((margins >= 0.05 - 1e-12) & (margins <= 0.5 + 1e-12)).all()
        order = np.argsort(counts, kind="stable")
        assert (np.diff(margins[order]) <= 1e-12).all()

    def test_each_class_has_its_own(self) -> None:
        torch.manual_seed(0)
        loss = MarginArcFace(DIM, np.array([0.1, 0.5]), SCALE)
        embedding = torch.randn(1, DIM).repeat(2, 1)
        with torch.no_grad():
            loss.W[:, 1] = loss.W[:, 0]
        first, second = loss(embedding, torch.tensor([0, 1])).tolist()
        assert second > first + 1


def test_class_weights() -> None:
    weights = class_weights(np.array([1, 3, 99]))
    plain = 1 / np.log([2, 4, 100])
    np.testing.assert_allclose(weights, plain * 3 / plain.sum())
    assert weights.sum() == pytest.approx(3)
