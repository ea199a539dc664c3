"""How fast the scores are: GAP of 1,000,000 answers and mAP@100 of 100,000 queries.

Prints ratios measured in this one run, the fastest of several rounds for each side:

- `gap_value` against numpy's index sort and cumulative sum, stable (which keeps the contest's tie
  rule, as gap_value does) and with numpy's default sort (which does not);
- against a pandas loop with iterrows over a frame sorted before the clock starts, on a subset,
  scaled up by rows (the loop is linear);
- peak memory on top of the input.

The queries: 1.1 % show a landmark, as in the contest, 80 % of those answered rightly, and every
query answered; then the same with 50 %, where nearly no shortcut is left.

Run: python benchmarks/gap.py
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from lmk.eval.scores.average_precision import average_precisions
from lmk.eval.scores.bootstrap import gap_interval, gap_test
from lmk.eval.scores.fast_gap import gap_value
from lmk.eval.scores.gap import gap
from lmk.eval.scores.judged import Judged

ANSWERS = 1_000_000
PANDAS_ROWS = 20_000
QUERIES, RANKS = 100_000, 100


def seconds(call: Callable[[], object], rounds: int = 9) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def answers(share: float, dtype: type[np.floating]):
    rng = np.random.default_rng(0)
    landmark = rng.random(ANSWERS) < share
    correct = landmark & (rng.random(ANSWERS) < 0.8)
    confidence = (rng.normal(0.4, 0.1, ANSWERS) + 0.2 * landmark).astype(dtype)
    return confidence, correct, int(landmark.sum())


def argsort_cumsum(confidence, correct, positives, kind):
    hits = correct[np.argsort(-confidence, kind=kind)]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / positives)


def pandas_loop(confidence, correct, positives) -> float:
    """Seconds for one row."""
    import pandas as pd

    frame = pd.DataFrame({"confidence": confidence[:PANDAS_ROWS], "correct": correct[:PANDAS_ROWS]})
    frame = frame.sort_values("confidence", ascending=False, kind="stable")

    def loop() -> float:
        total, right = 0.0, 0
        for rank, (_, row) in enumerate(frame.iterrows(), start=1):
            if row["correct"]:
                right += 1
                total += right / rank
        return total / positives

    return seconds(loop, rounds=2) / PANDAS_ROWS


def measure_gap(share: float, dtype: type[np.floating]) -> None:
    data = answers(share, dtype)
    value = gap_value(*data)
    if value != gap(*data).value:
        raise SystemExit("the fast value differs from the plain one")
    ours = seconds(lambda: gap_value(*data))
    stable = seconds(lambda: argsort_cumsum(*data, "stable"), 5)
    unstable = seconds(lambda: argsort_cumsum(*data, None))
    loop = pandas_loop(*data) * ANSWERS
    memory = peak(lambda: gap_value(*data))
    size = data[0].nbytes + data[1].nbytes
    print(
        f"{share:.1%} landmarks, {np.dtype(dtype)}: gap_value {ours * 1e3:.1f} ms, GAP {value:.6f}"
    )
    for peer, took in (
        ("argsort + cumsum, stable (keeps the tie rule)", stable),
        ("argsort + cumsum, numpy's default (does not)", unstable),
        (f"pandas iterrows (scaled from {PANDAS_ROWS:,} rows)", loop),
    ):
        print(f"  {peer:46}{took * 1e3:10,.1f} ms{took / ours:8,.1f}x")
    print(f"  peak memory {memory / 2**20:.1f} MiB, {memory / size:.1f}x the input")


def measure_average_precision() -> None:
    rng = np.random.default_rng(1)
    hits = rng.random((QUERIES, RANKS), dtype=np.float32) < 0.05
    relevant = hits.sum(axis=1) + rng.integers(1, 50, QUERIES)
    took = seconds(lambda: average_precisions(hits, relevant), 5)
    memory = peak(lambda: average_precisions(hits, relevant))
    print(
        f"mAP@{RANKS} of {QUERIES:,} x {RANKS}: {took:.2f} s, "
        f"peak memory {memory / 2**20:.1f} MiB = {memory / hits.nbytes:.2f}x the input"
    )


def measure_bootstrap() -> None:
    confidence, correct, _ = answers(0.011, np.float64)
    confidence, correct = confidence[:QUERIES], correct[:QUERIES]
    landmark = correct | (np.random.default_rng(2).random(QUERIES) < 0.003)
    judged = Judged(
        tuple(f"{row:07}" for row in range(QUERIES)),
        landmark,
        np.ones(QUERIES, dtype=bool),
        correct,
        confidence,
    )
    one = seconds(lambda: gap_interval(judged, resamples=500), 2)
    two = seconds(lambda: gap_test(judged, judged, resamples=500), 2)
    print(f"bootstrap of {QUERIES:,} queries, 500 draws: interval {one:.2f} s, paired {two:.2f} s")


if __name__ == "__main__":
    for share in (0.011, 0.5):
        for dtype in (np.float32, np.float64):
            measure_gap(share, dtype)
    measure_average_precision()
    measure_bootstrap()
