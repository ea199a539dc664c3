"""Tags that come together, sure predictions: golden values, a slow reference, faults."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.tags.cooccurrence import add_tags, cooccurrence, cooccurring_tags, pseudo_labels
from lmk.embed.tags.hierarchy import RelationGraph

NONE = RelationGraph({})


def pair(together: int, pictures: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """`pictures` labelled i, of which `together` are seen as j, and 5 that are only seen as j."""
    own = np.array([[True]] * pictures + [[False]] * 5)
    seen = np.array([[row < together] for row in range(pictures)] + [[True]] * 5)
    return own, seen


class TestCooccurrence:
    @pytest.mark.parametrize(
        ("together", "relations", "added"),
        [
            (6, NONE, ("sea",)),
            (5, NONE, ()),  # strictly above
            (6, RelationGraph({"beach": ["sea"]}), ()),
            (6, RelationGraph({"sea": ["coast"], "coast": ["beach"]}), ()),
            (6, RelationGraph({"beach": ["coast"], "sea": ["coast"]}), ("sea",)),
        ],
    )
    def test_golden(self, together: int, relations: RelationGraph, added: tuple[str, ...]) -> None:
        rates = cooccurrence(*pair(together))
        assert rates[0, 0] == pytest.approx(together / 10)
        found = cooccurring_tags(rates, ["beach"], ["sea"], relations)
        assert found == ({"beach": added} if added else {})

    def test_it_has_a_direction(self) -> None:
        """All beaches show the sea, few pictures of the sea show a beach."""
        labels = np.array([[True, True]] * 3 + [[False, True]] * 7)
        found = cooccurring_tags(cooccurrence(labels, labels), *[["beach", "sea"]] * 2, NONE)
        assert found == {"beach": ("sea",)}

    @given(st.integers(0, 1000))
    def test_reference(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        own, seen = rng.random((12, 3)) < 0.3, rng.random((12, 4)) < 0.6
        own[:, 2] &= seed % 2 == 0
        rates = cooccurrence(own, seen)
        for i in range(3):
            for j in range(4):
                both = sum(own[n, i] and seen[n, j] for n in range(12))
                assert rates[i, j] == pytest.approx(both / max(sum(own[:, i]), 1))

    def test_a_tag_with_one_picture(self) -> None:
        rates = cooccurrence(np.array([[True], [False]]), np.array([[True], [False]]))
        assert rates.tolist() == [[1.0]]

    def test_what_is_added_to_a_picture(self) -> None:
        relations = RelationGraph({"beach": ["coast"], "sea": ["water"]})
        together = {"beach": ("sea",), "sea": ("boat",), "coast": ("rock",)}
        assert add_tags(["beach"], together, relations) == ("beach", "coast", "sea")
        assert add_tags(["sun"], together, relations) == ("sun",)
        assert add_tags([], together, relations) == ()

    def test_mistakes(self) -> None:
        with pytest.raises(ValueError, match=r"bool \[n, a\] and \[n, b\] are needed"):
            cooccurrence(np.zeros((2, 1), dtype=bool), np.zeros((3, 1), dtype=bool))
        with pytest.raises(ValueError, match="1 and 1 names for"):
            cooccurring_tags(np.zeros((1, 2)), ["a"], ["b"], NONE)


class TestPseudoLabels:
    def test_own_ones_and_sure_ones_among_the_five_best(self) -> None:
        p = np.array([[0.9, 0.8, 0.7, 0.65, 0.6, 0.55, 0.1], [0.5, 0.51, 0, 0, 0, 0, 0]])
        own = np.zeros((2, 7), dtype=bool)
        own[0, 6] = True
        got = pseudo_labels(p, own)
        assert got[0].tolist() == [True] * 5 + [False, True]
        assert got[1].tolist() == [False, True, False, False, False, False, False]
        assert own.sum() == 1  # as it was

    def test_ties_go_to_the_smaller_column(self) -> None:
        got = pseudo_labels(np.full((1, 4), 0.9), np.zeros((1, 4), dtype=bool), top=2)
        assert got.tolist() == [[True, True, False, False]]

    @given(st.integers(0, 1000), st.integers(1, 6), st.floats(0, 1))
    def test_reference(self, seed: int, top: int, above: float) -> None:
        rng = np.random.default_rng(seed)
        p, own = rng.random((4, 5)), rng.random((4, 5)) < 0.2
        got = pseudo_labels(p, own, top=top, above=above)
        for row, given_, values in zip(got, own, p, strict=True):
            best = sorted(range(5), key=lambda j: (-values[j], j))[:top]
            expected = [given_[j] or (j in best and values[j] > above) for j in range(5)]
            assert row.tolist() == expected

    @pytest.mark.parametrize("fault", ["shape", "nan", "top"])
    def test_mistakes(self, fault: str) -> None:
        p, own = np.full((2, 3), 0.5), np.zeros((2, 3), dtype=bool)
        if fault == "shape":
            own = own[:1]
        elif fault == "nan":
            p[0, 0] = np.nan
        with pytest.raises(ValueError, match=r"needed|NaN|top is below 1"):
            pseudo_labels(p, own, top=0 if fault == "top" else 5)
