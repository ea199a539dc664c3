"""The order of an epoch: golden values, exact totals, resumable, shared out among processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.errors import ManifestError
from lmk.embed.train.config import Groups
from lmk.embed.train.sampling import (
    epoch_order,
    grouped_micro_batches,
    micro_batches_of,
    rank_slice,
)
from lmk.embed.train.tasks import class_codes, class_repeats

GOLDEN = [[2, 3, 4, 1, 1], [2, 3, 1, 1, 4]]
GOLDEN_MICRO_BATCHES = [[9, 3, 18, 4, 0, 7, 10, 10, 1, 1], [0, 4, 7, 15, 21, 22, 6, 6, 10, 10]]
CODES = np.array([0] * 1 + [1] * 4 + [2] * 16 + [-1])


class TestRepeats:
    def test_natural_is_once_each(self) -> None:
        assert class_repeats(CODES, "natural").tolist() == [1.0] * 22

    def test_sqrt(self) -> None:
        """Classes of 1, 4 and 16 are drawn as 1 : 2 : 4, 21 pictures in all."""
        repeats = class_repeats(CODES, "sqrt")
        totals = [repeats[c == CODES].sum() for c in (0, 1, 2)]
        np.testing.assert_allclose(totals, [3, 6, 12])
        assert repeats[1] == pytest.approx(1.5) and repeats[-1] == 1

    def test_balanced(self) -> None:
        repeats = class_repeats(CODES, "balanced")
        np.testing.assert_allclose([repeats[c == CODES].sum() for c in (0, 1, 2)], [7, 7, 7])
        assert repeats[0] == pytest.approx(7) and repeats[5] == pytest.approx(7 / 16)

    def test_without_any_class(self) -> None:
        assert class_repeats(np.array([-1, -1]), "balanced").tolist() == [1.0, 1.0]


class TestOrder:
    def test_natural_is_a_permutation_and_another_one_each_epoch(self) -> None:
        orders = [epoch_order(np.ones(50), 0, epoch) for epoch in range(3)]
        for order in orders:
            assert sorted(order) == list(range(50))
        assert len({tuple(order) for order in orders}) == 3
        assert tuple(epoch_order(np.ones(50), 1, 0)) != tuple(orders[0])

    def test_golden(self) -> None:
        """The order belongs to the checkpoints: a run that goes on must see the same one."""
        repeats = np.array([0.5, 2.0, 0.25, 1.25, 1.0])
        assert epoch_order(repeats, 7, 0).tolist() == GOLDEN[0]
        assert epoch_order(repeats, 7, 1).tolist() == GOLDEN[1]

    @given(
        st.lists(st.floats(0, 9), min_size=1, max_size=40), st.integers(0, 1000), st.integers(0, 50)
    )
    def test_each_comes_floor_or_ceil_times_and_the_total_is_exact(
        self, repeats: list[float], seed: int, epoch: int
    ) -> None:
        wanted = np.array(repeats)
        if round(wanted.sum()) < 1:
            return
        order = epoch_order(wanted, seed, epoch)
        total = round(float(np.cumsum(wanted)[-1]))
        scaled = wanted * total / wanted.sum()
        times = np.bincount(order, minlength=len(wanted))
        assert abs(len(order) - total) <= (wanted.sum() % 1 > 0.499)
        assert (times >= np.floor(scaled - 1e-6) - 1e-9).all()
        assert (times <= np.ceil(scaled + 1e-6) + 1e-9).all()

    def test_on_average_it_is_as_often_as_wanted(self) -> None:
        repeats = np.array([0.1, 0.4, 1.5, 2.0, 3.0])
        times = sum(np.bincount(epoch_order(repeats, 0, e), minlength=5) for e in range(600))
        np.testing.assert_allclose(times / 600, repeats, atol=0.07)


class TestPasses:
    def test_the_last_one_is_filled_from_the_beginning(self) -> None:
        micro_batches = micro_batches_of(np.arange(5), 3)
        assert micro_batches.tolist() == [[0, 1, 2], [3, 4, 0]]
        assert micro_batches_of(np.arange(2), 5).tolist() == [[0, 1, 0, 1, 0]]
        assert micro_batches_of(np.arange(4), 2).shape == (2, 2)

    @pytest.mark.parametrize("world", [1, 2, 4])
    def test_processes_share_each_pass(self, world: int) -> None:
        micro_batches = micro_batches_of(np.arange(30), 8)
        parts = [rank_slice(micro_batches, rank, world) for rank in range(world)]
        assert all(part.shape == (4, 8 // world) for part in parts)
        assert np.concatenate(parts, axis=1).tolist() == micro_batches.tolist()


def test_class_codes() -> None:
    labels = [("b",), (), ("a", "b"), ("b",)]
    names, codes = class_codes(labels, background=False)
    assert names == ("a", "b") and codes.tolist() == [1, -1, 0, 1]
    names, codes = class_codes(labels, background=True)
    assert names == ("a", "b", "(none)") and codes.tolist() == [1, 2, 0, 1]
    assert class_codes(labels[2:], background=True)[0] == ("a", "b")


class TestGroups:
    GROUPS = Groups(classes=2, pictures=3, unlabelled=2, views=2, micro_batches=400)
    CODES = np.array([1, -1, 0, 2, 1, 2, -1, 1, 2, 2, -1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2])

    def test_what_a_pass_is_made_of(self) -> None:
        """Two classes of three pictures, different ones where there are three; then two by two."""
        micro_batches = grouped_micro_batches(self.CODES, self.GROUPS, "sqrt", 0, 0)
        assert micro_batches.shape == (400, self.GROUPS.batch) == (400, 10)
        for row in micro_batches:
            first, second, others = row[:3], row[3:6], row[6:]
            classes = [set(self.CODES[part]) for part in (first, second)]
            assert all(len(each) == 1 for each in classes) and classes[0] != classes[1]
            for part in (first, second):
                assert len(set(part)) == (1 if self.CODES[part[0]] == 0 else 3)
            assert others[0] == others[1] != others[2] == others[3]
            assert (self.CODES[others] == -1).all()

    @pytest.mark.parametrize(
        ("sampling", "power"), [("natural", 1), ("sqrt", 0.5), ("balanced", 0)]
    )
    def test_classes_are_drawn_by_their_sizes(self, sampling: str, power: float) -> None:
        groups = Groups(classes=1, pictures=1, micro_batches=6000)
        micro_batches = grouped_micro_batches(self.CODES, groups, sampling, 3, 1)
        sizes = np.array([1.0, 4.0, 15.0]) ** power
        shares = np.bincount(self.CODES[micro_batches[:, 0]]) / 6000
        np.testing.assert_allclose(shares, sizes / sizes.sum(), atol=0.02)

    def test_seed_and_epoch_determine_it(self) -> None:
        first, again, other, third = (
            grouped_micro_batches(self.CODES, self.GROUPS, "sqrt", seed, epoch).tolist()
            for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))
        )
        assert first == again and first != other and first != third

    def test_golden(self) -> None:
        """A run that goes on must see the same micro-batches."""
        groups = self.GROUPS.model_copy(update={"micro_batches": 2})
        assert (
            grouped_micro_batches(self.CODES, groups, "sqrt", 7, 0).tolist() == GOLDEN_MICRO_BATCHES
        )

    def test_too_few(self) -> None:
        for change, message in (
            ({"classes": 4}, "there are 3 landmarks, but a batch needs 4"),
            ({"unlabelled": 4}, "there are 3 pictures without a landmark, but a batch needs 4"),
        ):
            groups = self.GROUPS.model_copy(update=change)
            with pytest.raises(ManifestError, match=message):
                grouped_micro_batches(self.CODES, groups, "sqrt", 0, 0)
