"""Which tags pictures have and how often they are shown: golden values, a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.errors import ManifestError
from lmk.embed.train.sampling import epoch_order
from lmk.embed.train.tag_targets import repeat_factors, tag_draws, tag_targets

LABELS = [("b", "a"), (), ("c", "a"), ("a",), ("d", "d")]
some_labels = st.lists(
    st.lists(st.sampled_from("abcdef"), max_size=4).map(tuple), min_size=1, max_size=30
).filter(lambda rows: len({name for row in rows for name in row}) >= 2)


class TestTargets:
    def test_plain(self) -> None:
        targets = tag_targets(LABELS)
        assert targets.names == ("a", "b", "c", "d") and len(targets) == 5
        assert targets.counts.tolist() == [3, 1, 1, 1]
        assert targets.dense(np.array([4, 0, 1])).tolist() == [
            [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0],
        ]  # fmt: skip

    def test_rare_tags_are_left_out(self) -> None:
        targets = tag_targets([*LABELS, ("b",)], least=2)
        assert targets.names == ("a", "b")
        assert targets.dense(np.arange(6)).sum(axis=1).tolist() == [2, 0, 1, 1, 0, 1]

    def test_weights_as_yes_and_no(self) -> None:
        """From .7 on yes, below 0 not known; a tag that is never a yes is none."""
        labels = [("a:0.7", "b:0.69", "c:-1"), ("b:1", "c:.9", "a:-1", "x:0.1"), ("d:e:2",)]
        targets = tag_targets(labels, weighted=True, positive_from=0.7)
        assert targets.names == ("a", "b", "c", "d:e")
        assert targets.dense(np.arange(3)).tolist() == [
            [1, 0, -1, 0], [-1, 1, 1, 0], [0, 0, 0, 1],
        ]  # fmt: skip
        assert targets.counts.tolist() == [1, 1, 1, 1]
        assert targets.rows.tolist() == [0, 1, 1, 2]

    def test_weights_as_they_are(self) -> None:
        labels = [("a:0.77", "b:0.45", "a:0.5"), ("b:-1", "a:0")]
        targets = tag_targets(labels, weighted=True)
        np.testing.assert_allclose(targets.dense(np.arange(2)), [[0.77, 0.45], [0, 0]])

    @pytest.mark.parametrize("label", ["beach", "beach:", "beach:x", ":0.5", "beach:nan"])
    def test_a_label_without_its_weight(self, label: str) -> None:
        with pytest.raises(ManifestError, match=rf"the label '{label}' has no weight; write"):
            tag_targets([("a:1", "b:1"), (label,)], weighted=True)

    def test_probabilities_of_another_network(self) -> None:
        """A tag without one is sure; above .5 a picture counts as one of the tag."""
        labels = [("a", "b:0.25", "c:0.9"), ("a:0.5", "b:0.51", "c:0.4"), ("d:0.5", "x:y:1")]
        targets = tag_targets(labels, weighted=True, likely=True)
        assert targets.names == ("a", "b", "c", "x:y")  # of d nothing is likely
        np.testing.assert_allclose(
            targets.dense(np.arange(3)), [[1, 0.25, 0.9, 0], [0.5, 0.51, 0.4, 0], [0, 0, 0, 1]]
        )
        assert targets.counts.tolist() == [1, 1, 1, 1]
        assert targets.rows.tolist() == [0, 0, 1, 2]
        factors = repeat_factors(targets, 2 / 3, "uniform")
        np.testing.assert_allclose(factors, [2, 2, 2])
        np.testing.assert_allclose(targets.mass, [1.5, 0.76, 1.3, 1])
        assert targets.labelled == 3
        unknown = tag_targets([("a", "b:-0.5"), ("b", "c:0.1")], weighted=True, likely=True)
        assert unknown.dense(np.arange(2)).tolist() == [[1, -1], [0, 1]]
        with pytest.raises(ManifestError, match=r"'b:1\.5' has a probability above 1"):
            tag_targets([("a", "b:1.5")], weighted=True, likely=True)
        with pytest.raises(ManifestError, match="has no weight"):
            tag_targets([("a", "b:")], weighted=True, likely=True)

    def test_no_two_tags(self) -> None:
        with pytest.raises(ManifestError, match="1 tags have 1 pictures or more"):
            tag_targets([("a",), ()])
        with pytest.raises(ManifestError, match="0 tags have 4 pictures or more"):
            tag_targets(LABELS, least=4)


class TestRepeats:
    def picture_of(self, *tags: str) -> int:
        return {("a",): 0, ("b",): 400, ("a", "b"): 1, (): 999, ("c",): 424}[tags]

    @pytest.fixture
    def golden(self) -> list[tuple[str, ...]]:
        """1000 pictures: f(a) = .4, f(b) = .025, f(c) = .001."""
        labels: list[tuple[str, ...]] = [("a",)] * 400 + [("b",)] * 24 + [("c",)] + [()] * 575
        labels[1] = ("a", "b")
        return labels

    @pytest.mark.parametrize(
        ("phi", "expected"),
        [
            ("uniform", {("a",): 1, ("b",): 4, ("c",): 100, ("a", "b"): 4, (): 1}),
            ("sqrt", {("a",): 1, ("b",): 2, ("c",): 10, ("a", "b"): 2, (): 1}),
        ],
    )
    def test_golden(
        self, golden: list[tuple[str, ...]], phi: str, expected: dict[tuple[str, ...], float]
    ) -> None:
        repeats = repeat_factors(tag_targets(golden), 0.1, phi)
        for tags, factor in expected.items():
            assert repeats[self.picture_of(*tags)] == pytest.approx(factor), tags

    @given(some_labels, st.floats(0.01, 1), st.sampled_from(["uniform", "sqrt"]))
    def test_reference(self, labels: list[tuple[str, ...]], threshold: float, phi: str) -> None:
        repeats = repeat_factors(tag_targets(labels), threshold, phi)
        for own, got in zip(labels, repeats, strict=True):
            best = 1.0
            for tag in own:
                ratio = threshold / (sum(tag in other for other in labels) / len(labels))
                best = max(best, ratio if phi == "uniform" else ratio**0.5)
            assert got == pytest.approx(best)

    def test_an_epoch_is_as_long_as_expected_and_rounds_by_chance(self) -> None:
        """1.5 times: once in half of the epochs, twice in the others."""
        labels = [("a",)] * 50 + [("b",)] * 50 + [("c",)]
        repeats = repeat_factors(tag_targets(labels), 1.5 / 101 * 1.0, "uniform")
        assert repeats[100] == pytest.approx(1.5) and repeats[0] == 1
        times = [np.bincount(epoch_order(repeats, 0, e), minlength=101) for e in range(400)]
        assert {int(t[100]) for t in times} == {1, 2}
        assert np.mean([t[100] for t in times]) == pytest.approx(1.5, abs=0.08)
        assert {len(epoch_order(repeats, 0, e)) for e in range(5)} == {round(repeats.sum())}


class TestDraws:
    @given(some_labels)
    def test_a_tag_at_a_time_then_a_picture_of_it(self, labels: list[tuple[str, ...]]) -> None:
        """The chance of each picture, counted out; those without tags are shown once."""
        targets = tag_targets(labels)
        drawn = tag_draws(targets, "balanced")
        tagged = [own for own in labels if own]
        for own, got in zip(labels, drawn, strict=True):
            chance = sum(
                1 / len(targets.names) / sum(tag in other for other in labels) for tag in set(own)
            )
            assert got == pytest.approx(chance * len(tagged) if own else 1)
        assert drawn.sum() == pytest.approx(len(labels))

    def test_each_tag_comes_as_often(self) -> None:
        """Of one tag a picture, so that nothing is shown for two reasons."""
        labels = [("a",)] * 90 + [("b",)] * 9 + [("c",)]
        drawn = tag_draws(tag_targets(labels), "balanced")
        np.testing.assert_allclose([drawn[:90].sum(), drawn[90:99].sum(), drawn[99]], [100 / 3] * 3)
        root = tag_draws(tag_targets(labels), "sqrt")
        assert root[:90].sum() / root[90:99].sum() == pytest.approx(10**0.5)

    def test_natural(self) -> None:
        assert tag_draws(tag_targets(LABELS), "natural").tolist() == [1.0] * 5
