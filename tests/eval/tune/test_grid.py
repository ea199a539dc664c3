"""Tuning: folds, grids, and a choice that is judged on what it was not made on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.errors import UsageError
from lmk.eval.tune.grid import (
    choose,
    default_grid,
    fold_scores,
    name_of,
    pipelines_of,
    read_grid,
    stratified_folds,
)
from lmk.rerank.steps.pipeline import Pipeline, VoteStep


@given(
    st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=2, max_size=60),
    st.integers(2, 7),
    st.integers(0, 5),
)
def test_folds_share_every_kind_and_are_of_one_size(
    kinds: list[str], folds: int, seed: int
) -> None:
    if folds > len(kinds):
        with pytest.raises(ValueError, match="cannot be split"):
            stratified_folds(kinds, folds, seed)
        return
    fold = stratified_folds(kinds, folds, seed)
    assert (stratified_folds(kinds, folds, seed) == fold).all()
    for kind in {None, *kinds}:
        of_kind = [f for f, k in zip(fold.tolist(), kinds, strict=True) if kind in (None, k)]
        counts = [Counter(of_kind)[number] for number in range(folds)]
        assert max(counts) - min(counts) <= 1


def test_another_seed_deals_otherwise() -> None:
    kinds = ["a"] * 10 + [""] * 20
    assert (stratified_folds(kinds, 5, 0) != stratified_folds(kinds, 5, 1)).any()
    with pytest.raises(ValueError, match="cannot be split"):
        stratified_folds(kinds, 1, 0)


@given(
    st.lists(st.sampled_from("abcdefghijkl"), min_size=2, max_size=60),
    st.integers(2, 5),
    st.integers(0, 5),
)
def test_copies_stay_in_one_fold(contents: list[str], folds: int, seed: int) -> None:
    kinds = [content if content < "f" else "" for content in contents]
    once = list(dict.fromkeys(contents))
    if folds > len(once):
        with pytest.raises(ValueError, match="cannot be split"):
            stratified_folds(kinds, folds, seed, contents)
        return
    fold = stratified_folds(kinds, folds, seed, contents)
    assert len(set(zip(contents, fold.tolist(), strict=True))) == len(once)
    alone = stratified_folds([kinds[contents.index(content)] for content in once], folds, seed)
    assert dict(zip(contents, fold, strict=True)) == dict(zip(once, alone, strict=True))


def test_each_candidate_is_scored_on_each_fold() -> None:
    worth = np.array([[1.0, 2, 3, 4], [0, 0, 8, 0]])
    scores = fold_scores(
        2, np.array([0, 1, 0, 1]), lambda each, rows: float(worth[each, rows].sum())
    )
    assert scores.tolist() == [[4, 6], [8, 0]]


def test_the_nested_choice_never_saw_its_fold() -> None:
    # Each candidate but the first shines on one fold alone: chosen on all, the second looks best,
    # and it is what no honest choice for fold 0 would take.
    scores = np.array([[0.5, 0.5, 0.5], [0.9, 0.4, 0.4], [0.3, 0.3, 0.9]])
    choice = choose(scores)
    assert choice.best == 1
    assert choice.nested.tolist() == [2, 1, 1]
    assert scores[choice.nested, range(3)].mean() < scores[choice.best].mean()


@given(st.integers(2, 5), st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1))
def test_the_choice_is_that_of_a_plain_loop(folds: int, table: list[list[int]]) -> None:
    scores = np.array(table, np.float64)[:, :folds] / 7
    choice = choose(scores)
    sums = [sum(row[:folds]) for row in table]
    assert choice.best == sums.index(max(sums))
    for held in range(folds):
        others = [sum(row[:folds]) - row[held] for row in table]
        assert choice.nested[held] == others.index(max(others))


def test_what_is_kept_stays_unless_the_gain_is_more_than_its_standard_error() -> None:
    current = np.array([0.5, 0.5, 0.5, 0.5])
    gain = np.array([0.4, -0.1, 0.2, -0.1])  # mean .1, standard error .122
    assert choose(np.array([current, current + gain])).best == 1
    assert choose(np.array([current, current + gain]), current=0).best == 0
    assert choose(np.array([current, current + gain + 0.03]), current=0).best == 1
    assert choose(np.array([current + gain, current]), current=1).best == 1
    assert choose(np.array([current, current]), current=1).best == 1
    # Of the others of fold 0 the gain is 0 on average, of those of fold 1 it is .17 with error .15
    assert choose(np.array([current, current + gain]), current=0).nested.tolist() == [0, 1, 0, 1]
    halves = np.array([[0.5, 0.5], [0.4, 0.7]])  # one fold has no standard error
    assert choose(halves, current=0).nested.tolist() == [1, 0]


@pytest.mark.parametrize("scores", [np.zeros((0, 3)), np.zeros((2, 1)), np.array([[0, np.nan]])])
def test_what_cannot_be_chosen_from_is_refused(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="score"):
        choose(scores)


def test_a_grid_is_every_combination() -> None:
    grid = [
        [None, {"step": "rescale"}, [{"step": "rescale"}, {"step": "penalty", "top": 5}]],
        [{"step": "vote", "k": 1}, {"step": "vote"}],
    ]
    assert [name_of(pipeline) for pipeline in pipelines_of(grid)] == [
        "vote k=1",
        "vote",
        "rescale, vote k=1",
        "rescale, vote",
        "rescale, penalty top=5, vote k=1",
        "rescale, penalty top=5, vote",
    ]
    assert len(pipelines_of([[{"step": "vote"}, {"step": "vote", "k": 5}]])) == 1  # the same


def test_names_leave_the_threshold_out() -> None:
    pipeline = Pipeline(steps=(VoteStep(k=3),)).with_threshold(0.4)
    assert name_of(pipeline) == "vote k=3"


def test_the_grid_of_lmk_is_small_and_without_geometry() -> None:
    plain, more = default_grid(), default_grid(geometry=True)
    assert 10 <= len(plain) <= 30
    assert more[: len(plain)] == plain
    assert not any("geometry" in name_of(pipeline) for pipeline in plain)
    assert all("geometry" in name_of(pipeline) for pipeline in more[len(plain) :])
    assert len(more) > len(plain)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no grid"),
        ('{"steps": []}', "list of lists"),
        ("[]", "alternative"),
        ("[[]]", "alternative"),
        ('[[{"step": "vote", "frob": 1}]]', "frob"),
        ('[[{"step": "sing"}]]', "sing"),
        ('[[{"step": "vote"}], [{"step": "rescale"}]]', "json: steps vote, rescale must be"),
        (json.dumps([[None] * 50] * 2), "2,500 pipelines"),
    ],
)
def test_a_grid_that_is_none_is_refused_with_the_reason(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "grid.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as refused:
        read_grid(path)
    assert str(refused.value).startswith(str(path))


def test_a_grid_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    path.write_text('[[{"step": "vote", "k": 2}]]')
    assert read_grid(path) == (Pipeline(steps=(VoteStep(k=2),)),)
    with pytest.raises(UsageError, match="no such file"):
        read_grid(tmp_path / "none.json")
