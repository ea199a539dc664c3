"""Losses of tags: golden values, the formulas in numpy, gradients, the state of Tencent's loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.train.tag_losses import (
    TencentLoss,
    binary_cross_entropy,
    code_decay,
    focal,
    weighted_softmax,
)
from lmk.embed.train.task_config import Tencent

N, TAGS = 7, 5


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and values of yes, no and not known."""
    rng = np.random.default_rng(4)
    values = rng.choice([1.0, 0.0, 0.0, -1.0], (N, TAGS)).astype(np.float32)
    return torch.from_numpy(rng.normal(0, 3, (N, TAGS))).float(), torch.from_numpy(values)


def terms(logits: np.ndarray, values: np.ndarray, gamma: float, yes: float, no: float) -> Any:
    """a (1 - p_t)^gamma (-log p_t) one by one; 0 where not known."""
    result = np.zeros(logits.shape)
    for place in np.ndindex(*logits.shape):
        p = 1 / (1 + np.exp(-logits[place]))
        if values[place] >= 0:
            own, weight = (p, yes) if values[place] > 0 else (1 - p, no)
            result[place] = -weight * (1 - own) ** gamma * np.log(own)
    return result


def slopes(loss: Any, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the sum by autograd, and by differences in float64."""
    leaf = logits.clone().requires_grad_()
    loss(leaf).sum().backward()
    plain, expected = logits.double().numpy().copy(), np.zeros(logits.shape)
    for place in np.ndindex(*plain.shape):
        sides = []
        for step in (1e-3, -1e-3):
            moved = plain.copy()
            moved[place] += step
            sides.append(float(loss(torch.from_numpy(moved)).double().sum()))
        expected[place] = (sides[0] - sides[1]) / 2e-3
    return leaf.grad.numpy(), expected


def test_cross_entropy_of_probabilities() -> None:
    """Between yes and no: the expected loss, whose slope is (p - y) / tags."""
    logits, _ = inputs()
    values = torch.from_numpy(np.random.default_rng(5).random((N, TAGS))).float()
    yes, no = (binary_cross_entropy(logits, torch.full_like(values, v)) for v in (1, 0))
    one = torch.full_like(values, 0.3)
    np.testing.assert_allclose(binary_cross_entropy(logits, one), 0.3 * yes + 0.7 * no, rtol=1e-5)
    leaf = logits.clone().requires_grad_()
    binary_cross_entropy(leaf, values).sum().backward()
    np.testing.assert_allclose(leaf.grad, (torch.sigmoid(logits) - values) / TAGS, atol=1e-6)


class TestGolden:
    def test_focal(self) -> None:
        """p = .9 and yes: .01 * .105361 without alpha, a quarter of it with .25."""
        logits, values = torch.tensor([[logit(0.9)]]), torch.ones(1, 1)
        assert focal(logits, values, 2, 1).item() == pytest.approx(0.00105361, rel=1e-4)
        assert focal(logits, values, 2, 0.25).item() == pytest.approx(0.00105361 / 4, rel=1e-4)

    def test_weighted_softmax(self) -> None:
        logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
        plain = weighted_softmax(logits, torch.tensor([[1.0, 1.0, 0.0]]))
        assert plain.item() == pytest.approx(1.8971, abs=5e-5)
        weighted = weighted_softmax(logits, torch.tensor([[0.77, 0.45, 0.0]]))
        assert weighted.item() == pytest.approx(1.0755, abs=5e-5)

    def test_states_of_the_paper(self) -> None:
        """States 1, 1, 1, 0, 0, 1: t is 1, 2, 3, 1, 2, 1 and r 1, .9, .81, 1, .9, 1."""
        loss = TencentLoss(Tencent(kind="tencent", absent=1, negatives=None), 1)
        seen = []
        for state in (1, 1, 1, 0, 0, 1):
            values = torch.tensor([[float(state)], [0.0]])
            weights = loss.coefficients(values, torch.Generator())
            seen.append((loss.run.item(), weights[1, 0].item(), weights[0, 0].item()))
        runs, of_no, first = zip(*seen, strict=True)
        assert runs == (1, 2, 3, 1, 2, 1)
        decays = [1, 0.9, 0.81, 1, 0.9, 1]
        assert of_no == pytest.approx(decays)
        eta = [12, 12, 12, 1, 1, 12]
        assert first == pytest.approx([e * d for e, d in zip(eta, decays, strict=True)])

    def test_weights_of_the_released_code(self) -> None:
        runs = torch.tensor([1, 2, 3, 5, 9, 10, 50])
        present = code_decay(runs, torch.ones(7, dtype=torch.bool))
        np.testing.assert_allclose(
            present, [0.996, 0.697, 0.521, 0.300, 0.045, 0.01, 0.01], atol=6e-4
        )
        absent = code_decay(torch.tensor([1, 2, 3, 40]), torch.zeros(4, dtype=torch.bool))
        np.testing.assert_allclose(absent, [0.0458, 0.001, 0.001, 0.001], atol=5e-5)


class TestFormulas:
    def test_cross_entropy(self) -> None:
        logits, values = inputs()
        expected = terms(logits.double().numpy(), values.numpy(), 0, 1, 1).mean(axis=1)
        np.testing.assert_allclose(binary_cross_entropy(logits, values), expected, rtol=1e-5)

    @pytest.mark.parametrize(("gamma", "alpha"), [(2, 0.25), (0.5, 0.75), (5, 1)])
    def test_focal(self, gamma: float, alpha: float) -> None:
        logits, values = inputs()
        expected = terms(logits.double().numpy(), values.numpy(), gamma, alpha, 1 - alpha)
        got = focal(logits, values, gamma, alpha)
        np.testing.assert_allclose(got, expected.mean(axis=1), rtol=1e-4, atol=1e-7)

    def test_focal_with_no_gamma_and_alpha_a_half_is_half_of_it(self) -> None:
        logits, values = inputs()
        half = focal(logits, values, 0, 0.5)
        torch.testing.assert_close(half, binary_cross_entropy(logits, values) / 2)

    def test_softmax_of_one_tag_is_cross_entropy(self) -> None:
        logits, _ = inputs()
        labels = torch.arange(N) % TAGS
        one_hot = torch.nn.functional.one_hot(labels, TAGS).float()
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(weighted_softmax(logits, one_hot), expected)

    @pytest.mark.parametrize("form", ["paper", "code"])
    def test_tencent(self, form: Any) -> None:
        loss = TencentLoss(Tencent(kind="tencent", form=form), TAGS)
        logits, values = inputs()
        weights = torch.rand(N, TAGS, generator=torch.Generator().manual_seed(0))
        expected = terms(logits.double().numpy(), values.abs().numpy(), 0, 1, 1) * weights.numpy()
        whole = expected.mean(axis=1) if form == "paper" else expected.sum(axis=1)
        got = loss(logits, values.abs(), weights)
        np.testing.assert_allclose(got, whole, rtol=1e-5)

    @pytest.mark.parametrize("name", ["bce", "focal", "softmax", "tencent"])
    def test_gradients(self, name: str) -> None:
        logits, values = inputs()
        weights = torch.linspace(0, 2, N * TAGS).view(N, TAGS)
        tencent = TencentLoss(Tencent(kind="tencent"), TAGS)
        loss = {
            "bce": lambda x: binary_cross_entropy(x, values),
            "focal": lambda x: focal(x, values, 2, 0.25),
            "softmax": lambda x: weighted_softmax(x, weights),
            "tencent": lambda x: tencent(x, values, weights),
        }[name]
        got, expected = slopes(loss, logits)
        np.testing.assert_allclose(got, expected, atol=2e-3)

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    def test_focal_stays_finite_where_all_is_sure(self, gamma: float) -> None:
        logits = torch.tensor([[80.0, -80.0, 80.0, -80.0]], requires_grad=True)
        values = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
        focal(logits, values, gamma, 0.25).sum().backward()
        assert torch.isfinite(logits.grad).all()
        assert logits.grad[0, :2].abs().max() < 1e-3 < logits.grad[0, 2:].abs().min()

    def test_half_precision_is_computed_in_full(self) -> None:
        logits, values = inputs()
        low = logits.bfloat16()
        for loss in (binary_cross_entropy, weighted_softmax):
            assert loss(low, values).dtype == torch.float32
            torch.testing.assert_close(loss(low, values), loss(low.float(), values))


class TestNegatives:
    """Which terms count in a step."""

    def weights(self, values: torch.Tensor, seed: int = 0, **settings: Any) -> np.ndarray:
        loss = TencentLoss(Tencent(kind="tencent", **settings), values.shape[1])
        return loss.coefficients(values, torch.Generator().manual_seed(seed)).numpy()

    @given(
        st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([0.0, 0.5, 1.0, 5.0]),
    )  # fmt: skip
    def test_of_a_present_tag_so_many_times_its_positives(
        self, seed: int, n: int, times: float
    ) -> None:
        rng = np.random.default_rng(seed)
        values = rng.choice([1.0, 0.0, -1.0], (n, 4), p=[0.15, 0.75, 0.1]).astype(np.float32)
        got = self.weights(torch.from_numpy(values), seed, absent=1, negatives=times)
        for tag in range(4):
            column, own = got[:, tag], values[:, tag]
            assert (column[own > 0] == 12).all() and (column[own < 0] == 0).all()
            negatives = column[own == 0]
            assert set(negatives) <= {0, 1}
            wanted = int(np.round((own > 0).sum() * times))
            left = min(wanted, len(negatives)) if (own > 0).any() else len(negatives)
            assert negatives.sum() == left

    def test_all_are_drawn_alike(self) -> None:
        values = torch.zeros(20, 1)
        values[3] = 1
        drawn = sum(self.weights(values, seed)[:, 0] for seed in range(800)) / 800
        assert drawn[3] == 12
        np.testing.assert_allclose(np.delete(drawn, 3), 5 / 19, atol=0.06)

    @pytest.mark.parametrize("form", ["paper", "code"])
    def test_an_absent_tag_is_learnt_in_one_step_of_ten(self, form: str) -> None:
        got = self.weights(torch.zeros(3, 4000), form=form) > 0
        assert (got == got[0]).all()  # wholly or not at all
        assert got[0].mean() == pytest.approx(0.1, abs=0.02)

    def test_the_code_counts_the_steps_that_moved_an_absent_tag(self) -> None:
        """Beside its two counters as it has them, told which absent tags were drawn."""
        tags = 30
        loss = TencentLoss(Tencent(kind="tencent", form="code", absent=0.4), tags)
        generator = torch.Generator().manual_seed(3)
        positives, negatives = np.zeros(tags), np.zeros(tags)
        rng = np.random.default_rng(0)
        for _ in range(40):
            values = (rng.random((1, tags)) < 0.6).astype(np.float32)
            got = loss.coefficients(torch.from_numpy(values), generator).numpy()[0]
            present = values[0] > 0
            drawn = ~present & (got > 0)
            positives = np.where(present, positives + 1, 0)
            negatives = np.where(present, 0, negatives + drawn)
            seen = np.maximum(-np.log10((0.01 + positives) / 10), 0.01)
            unseen = -np.log10((8 + negatives) / 10)
            unseen = np.where(unseen > 0.01, unseen, 0.001)
            np.testing.assert_allclose(got, np.where(present, 12 * seen, unseen * drawn), rtol=1e-4)

    def test_not_known_says_nothing_about_the_state(self) -> None:
        loss = TencentLoss(Tencent(kind="tencent"), 2)
        loss.coefficients(torch.tensor([[-1.0, 1.0], [-1.0, -1.0]]), torch.Generator())
        assert loss.state.tolist() == [0, 1]
