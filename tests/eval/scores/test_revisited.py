"""Revisited Oxford/Paris: golden values, junk, a slow reference, foreign pickles."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmk.embed.errors import SubmissionError, UsageError
from lmk.eval.scores.revisited import (
    RevisitedTruth,
    evaluate_features,
    evaluate_ranks,
    precision_at,
    read_ground_truth,
    trapezoid_average_precision,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "average_precision.json").read_text())


def rows(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def make_truth(
    easy: list[list[int]], hard: list[list[int]], junk: list[list[int]], n: int = 8
) -> RevisitedTruth:
    q = len(easy)
    return RevisitedTruth(
        tuple(f"d{row}" for row in range(n)),
        tuple(f"q{row}" for row in range(q)),
        np.zeros((q, 4)),
        tuple(rows(*of) for of in easy),
        tuple(rows(*of) for of in hard),
        tuple(rows(*of) for of in junk),
    )


@pytest.mark.parametrize("case", GOLDEN["trapezoid"])
def test_golden_trapezoids(case: dict[str, Any]) -> None:
    value = trapezoid_average_precision(rows(*case["places"]), case["relevant"])
    assert value == pytest.approx(case["ap"], abs=1e-12)


def test_golden_junk_and_precision_at() -> None:
    # The list [junk, right, wrong, right]: junk in front costs nothing.
    scores = evaluate_ranks([rows(7, 0, 5, 1)], make_truth([[0]], [[1]], [[7]]), (1, 2))
    assert scores["medium"].mean_average_precision == pytest.approx(0.791667, abs=1e-6)
    assert scores["easy"].mean_average_precision == 1.0  # `hard` is junk here
    assert scores["hard"].mean_average_precision == pytest.approx(0.25)
    assert scores["medium"].mean_precision_at == {1: 1.0, 2: 0.5}
    assert [precision_at(rows(0, 2), kappa) for kappa in (1, 5, 10)] == [1, 2 / 3, 2 / 3]


def test_queries_with_nothing_right_are_left_out_of_the_mean() -> None:
    truth = make_truth([[], [0]], [[1], [2]], [[], []])
    scores = evaluate_ranks([rows(1, 0), rows(3, 0, 2)], truth)
    assert np.isnan(scores["easy"].average_precision).tolist() == [True, False]
    assert scores["easy"].mean_average_precision == pytest.approx(0.25)
    with pytest.raises(ValueError, match="right picture in protocol easy"):
        evaluate_ranks([rows(1)], make_truth([[]], [[1]], [[]]))


def test_a_short_list_without_a_right_picture_scores_0() -> None:
    scores = evaluate_ranks([rows(5, 6)], make_truth([[0]], [[1]], [[2]]))
    assert scores["medium"].mean_average_precision == 0.0
    assert scores["medium"].mean_precision_at == {1: 0.0, 5: 0.0, 10: 0.0}


def slow_scores(found: list[int], ok: set[int], junk: set[int], kappa: int) -> tuple[float, float]:
    clean = [row for row in found if row not in junk]
    ap, hits = 0.0, 0
    for place, row in enumerate(clean):
        if row in ok:
            before = 1.0 if place == 0 else hits / place
            hits += 1
            ap += (before + hits / (place + 1)) / 2 / len(ok)
    last = max((place + 1 for place, row in enumerate(clean) if row in ok), default=0)
    ranks = min(last, kappa)
    return ap, sum(row in ok for row in clean[:ranks]) / ranks if ranks else 0.0


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from("ehjn"), min_size=3, max_size=9),
    st.randoms(use_true_random=False),
    st.integers(1, 10),
)
def test_equal_to_a_slow_reference(kinds: list[str], random: Any, kappa: int) -> None:
    kinds = [*kinds, "e", "h"]
    easy, hard, junk = ({row for row, kind in enumerate(kinds) if kind == of} for of in "ehj")
    found = list(range(len(kinds)))
    random.shuffle(found)
    found = found[: random.randint(0, len(found))]
    truth = make_truth([sorted(easy)], [sorted(hard)], [sorted(junk)], len(kinds))
    scores = evaluate_ranks([rows(*found)], truth, (kappa,))
    for protocol, ok, out in (
        ("easy", easy, junk | hard),
        ("medium", easy | hard, junk),
        ("hard", hard, junk | easy),
    ):
        expected = slow_scores(found, ok, out, kappa)
        score = scores[protocol]  # type: ignore[index]
        got = (score.mean_average_precision, score.mean_precision_at[kappa])
        assert got == pytest.approx(expected, abs=1e-12)


def test_features_are_ranked_by_dot_product_ties_by_row() -> None:
    truth = make_truth([[2]], [[1]], [[0]], n=4)
    database = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.5, 0.5]], dtype=np.float32)
    scores = evaluate_features(database, np.array([[1.0, 0.0]], dtype=np.float32), truth)
    expected = evaluate_ranks([rows(1, 2, 3, 0)], truth)
    for protocol in ("easy", "medium", "hard"):
        got = scores[protocol].mean_average_precision  # type: ignore[index]
        assert got == expected[protocol].mean_average_precision  # type: ignore[index]
    with pytest.raises(ValueError, match="features must be"):
        evaluate_features(database[:3], database[:1], truth)
    with pytest.raises(ValueError, match="differ in width"):
        evaluate_features(database, np.ones((1, 3)), truth)
    with pytest.raises(ValueError, match="NaN"):
        evaluate_features(database, np.full((1, 2), np.nan), truth)


def test_rank_lists_that_cannot_be() -> None:
    truth = make_truth([[0]], [[1]], [[2]])
    for lists, message in (
        ([], "0 rank lists for 1 queries"),
        ([rows(8)], "outside the 8"),
        ([rows(-1)], "outside the 8"),
        ([rows(1, 1)], "twice"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_ranks(lists, truth)
    with pytest.raises(ValueError, match="kappa"):
        evaluate_ranks([rows(1)], truth, (0,))
    with pytest.raises(ValueError, match="must rise"):
        trapezoid_average_precision(rows(2, 1), 2)
    with pytest.raises(ValueError, match="2 right pictures in a list, of 1"):
        trapezoid_average_precision(rows(1, 2), 1)
    with pytest.raises(ValueError, match="protocol must be one of"):
        truth.split(0, "mild")  # type: ignore[arg-type]


def test_truths_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="twice"):
        make_truth([[0]], [[0]], [[]])
    with pytest.raises(ValueError, match="outside"):
        make_truth([[8]], [[0]], [[]])
    with pytest.raises(ValueError, match="other numbers"):
        make_truth([[0]], [], [[]])


GND = {
    "imlist": ["all_souls_000001", "all_souls_000002", "oxford_1"],
    "qimlist": ["all_souls_000013"],
    "gnd": [{"bbx": [136.5, 34.1, 648.5, 955.7], "easy": [0], "hard": [2], "junk": [1]}],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_the_benchmarks_file(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(GND, protocol))
    truth = read_ground_truth(tmp_path / "gnd.pkl")
    assert truth.database == ("all_souls_000001", "all_souls_000002", "oxford_1")
    assert truth.boxes.tolist() == [[136.5, 34.1, 648.5, 955.7]]
    assert [truth.easy[0].tolist(), truth.hard[0].tolist(), truth.junk[0].tolist()] == [
        [0],
        [2],
        [1],
    ]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_reads_numpy_arrays_too(tmp_path: Path, protocol: int) -> None:
    entry = {
        "bbx": np.array([1, 2, 3, 4]),
        "easy": np.array([0, 1], dtype=np.uint16),
        "hard": np.array([], dtype=np.float64),
        "junk": [np.int64(2)],
    }
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps({**GND, "gnd": [entry]}, protocol))
    truth = read_ground_truth(tmp_path / "gnd.pkl")
    assert (truth.easy[0].tolist(), truth.junk[0].tolist()) == ([0, 1], [2])
    assert truth.hard[0].size == 0


def test_reads_a_python_2_pickle(tmp_path: Path) -> None:
    # Python 2 wrote its text as byte strings: protocol 2, opcode U (SHORT_BINSTRING).
    data = (
        b"\x80\x02}(U\x06imlist]U\x03a\xe9ba" + b"U\x07qimlist]U\x01qa"
        b"U\x03gnd]}(U\x03bbx](K\x01K\x02K\x03K\x04eU\x04easy]K\x00aU\x04hard]U\x04junk]uau."
    )
    (tmp_path / "gnd.pkl").write_bytes(data)
    truth = read_ground_truth(tmp_path / "gnd.pkl")
    assert truth.database == ("aéb",)
    assert truth.easy[0].tolist() == [0]


class _Command:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_runs_a_command_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(_Command(tmp_path / "harm"), protocol))
    with pytest.raises(SubmissionError, match=r"would load posix\.mkdir"):
        read_ground_truth(tmp_path / "gnd.pkl")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a pickle"),
        (b"id,landmarks\n", "not a pickle"),
        (pickle.dumps(GND)[:-20], "not a pickle"),
        (b"\x80\x02U\x03pidQ.", "an object outside the file"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "the encoding rot13"),
        (pickle.dumps([1, 2]), "not a ground truth"),
        (pickle.dumps({"imlist": [], "qimlist": []}), "not a ground truth"),
        (pickle.dumps({**GND, "gnd": [{**GND["gnd"][0], "easy": [0.5]}]}), "whole numbers"),  # type: ignore[dict-item]
        (pickle.dumps({**GND, "gnd": [{**GND["gnd"][0], "easy": [9]}]}), "outside the 3"),  # type: ignore[dict-item]
        (pickle.dumps({**GND, "gnd": [{**GND["gnd"][0], "bbx": [1, 2]}]}), "boxes must be"),  # type: ignore[dict-item]
    ],
)
def test_other_pickles_are_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "gnd.pkl").write_bytes(data)
    with pytest.raises(SubmissionError, match=message) as caught:
        read_ground_truth(tmp_path / "gnd.pkl")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "gnd.pkl") in str(caught.value)


def test_no_such_pickle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_ground_truth(tmp_path / "gnd.pkl")
