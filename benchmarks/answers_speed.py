"""How fast the distractor penalty is learnt, and how fast penalties and votes are applied.

Every ratio is of this one run, and both sides do the same work; results are compared.

1. The penalty: each distractor picks its 20 nearest gallery pictures, and each gallery picture
   counts its picks and adds up their cosines. By lmk's exact search, by FAISS IndexFlatIP, and by
   a numpy loop (argsort of all cosines, one distractor after the other; some of them, scaled up).
   All sides begin with the stored vectors: what each makes of them first is counted. The time for
   110,000 distractors and 1,580,470 pictures (the contest's) is extrapolated by the products.
2. Penalty and vote of 100,000 queries with 20 neighbours each, on one thread, by the steps of a
   pipeline, against pandas: a group-by of query and label, and a group-by of the query that calls a
   function for each (some of them, scaled up). All neighbours vote; and as by default, the 10 best
   of them, each label's sum divided by the root of its number of pictures.

    python benchmarks/answers_speed.py [--gallery 20000] [--bank 2000] [--threads 1] [--full]

--full: 300,000 pictures and 20,000 distractors.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import faiss
import numpy as np
import pandas as pd
from landmark_vectors import gallery

from lmk.embed.embeddings import Embeddings
from lmk.index.exact.searcher import ExactSearcher
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.view import View
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.hits import Hits
from lmk.rerank.steps.penalty import PenaltyStep, count_hits
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.state import QueryBatch, RankingState
from lmk.rerank.steps.voting import VoteStep

TOP = 20
CONTEST = 110_000 * 1_580_470
LOOP = 50  # distractors of the numpy loop
QUERIES, NEIGHBOURS, PICTURES, LANDMARKS = 100_000, 20, 1_580_470, 81_313
APPLIED = 1000  # queries of the group-by with a function
POWER = 9
T = TypeVar("T")
Floats = np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gallery", type=int, default=20_000)
    parser.add_argument("--bank", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="300,000 pictures, 20,000 distractors")
    options = parser.parse_args()
    rows, bank = (300_000, 20_000) if options.full else (options.gallery, options.bank)
    faiss.omp_set_num_threads(options.threads)
    fit(rows, bank, options.dim, options.threads)
    vote()


def fit(rows: int, bank: int, dim: int, threads: int) -> None:
    pictures, others = gallery(rows, dim), gallery(bank, dim, seed=1)
    print(f"penalty of {rows:,} pictures and {bank:,} distractors, {dim}-d, {threads} thread(s)")
    ours, by_lmk = timed(lambda: picks_of(pictures, others, threads))
    flat, by_faiss = timed(lambda: faiss_picks(pictures, others))
    loop, _ = timed(lambda: loop_picks(pictures, others[:LOOP]))
    loop *= bank / LOOP
    check(by_lmk, *by_faiss)
    whole = f"{CONTEST / (rows * bank):,.0f} times the products"
    for name, took in (("lmk", ours), ("FAISS IndexFlatIP", flat), ("numpy, argsort a row", loop)):
        contest = took * CONTEST / (rows * bank)
        print(
            f"  {name:22}{took:10.2f} s{took / ours:8.1f}x   "
            f"the contest's sizes ({whole}), extrapolated: {contest / 3600:.1f} h"
        )
    for part in (bank // 4, bank):
        memory = peak(lambda part=part: picks_of(pictures, others[:part], threads))
        print(
            f"  peak memory with {part:,} distractors: {memory / 2**20:.1f} MiB on top of vectors"
        )


def picks_of(pictures: Floats, others: Floats, threads: int) -> Hits:
    view, bank = view_of(pictures), view_of(others)
    searcher = ExactSearcher(view, threads=threads)
    return count_hits(searcher, bank, rows=len(pictures), gallery=len(pictures), top=TOP)


def view_of(vectors: Floats) -> View:
    return View.of_embeddings(Embeddings(vectors, tuple(map(str, range(len(vectors)))), "b"))


def faiss_picks(pictures: Floats, others: Floats) -> tuple[np.ndarray, np.ndarray]:
    flat = faiss.IndexFlatIP(pictures.shape[1])
    flat.add(pictures)
    cosines, rows = flat.search(others, TOP)
    counts = np.bincount(rows.ravel(), minlength=len(pictures))
    return counts, np.bincount(rows.ravel(), cosines.ravel(), minlength=len(pictures))


def loop_picks(pictures: Floats, others: Floats) -> tuple[np.ndarray, np.ndarray]:
    counts, sums = np.zeros(len(pictures), np.int64), np.zeros(len(pictures))
    for vector in others:
        cosines = pictures @ vector
        best = np.argsort(-cosines, kind="stable")[:TOP]
        counts[best] += 1
        sums[best] += cosines[best]
    return counts, sums


def check(picks: Hits, counts: np.ndarray, sums: np.ndarray) -> None:
    """The same picks, apart from near ties that float32 sums decide otherwise."""
    moved = np.abs(picks.counts - counts).sum() / 2
    same = picks.counts == counts
    apart = np.abs(picks.mean - sums / np.maximum(counts, 1))[same].max()
    print(f"  picks that differ: {moved:.0f} of {counts.sum():,}; mean cosines within {apart:.1e}")
    if moved > 1e-4 * counts.sum() or apart > 1e-4:
        raise SystemExit("the picks differ")


def vote() -> None:
    """The neighbours: half of them of the query's own landmark, the others from anywhere."""
    rng = np.random.default_rng(0)
    label = np.sort(rng.integers(0, LANDMARKS, PICTURES)).astype(np.int32)
    own = rng.integers(0, PICTURES - NEIGHBOURS, QUERIES)[:, None] + np.arange(NEIGHBOURS)
    anywhere = rng.integers(0, PICTURES, (QUERIES, NEIGHBOURS))
    rows = np.where(rng.random(own.shape) < 0.5, own, anywhere)
    rows = np.where(np.arange(NEIGHBOURS) == 0, own[:, :1], rows)
    cosines = -np.sort(-rng.random(rows.shape, np.float32), axis=1)
    # A row twice among the neighbours of a query cannot be: those few queries are asked anew.
    twice = [len(set(row)) < NEIGHBOURS for row in rows.tolist()]
    rows[twice] = own[twice]
    penalty = np.where(rng.random(PICTURES) < 0.1, rng.random(PICTURES), 0).astype(np.float32)
    names = tuple(f"{code:06}" for code in range(LANDMARKS))
    facts = PipelineContext(names, np.arange(PICTURES + 1), label, penalty)
    one = np.zeros((QUERIES, 1), np.float32) + 1
    ids = tuple(map(str, range(QUERIES)))
    asked = QueryBatch(Embeddings(one, ids, "b"))
    begin = RankingState.of(asked, Neighbours(rows, cosines, ids), NEIGHBOURS)
    default = next(step for step in Pipeline().steps if isinstance(step, VoteStep))
    for step in (VoteStep(k=NEIGHBOURS, power=POWER), default):
        compare(begin, facts, step)


def compare(begin: RankingState, facts: PipelineContext, vote: VoteStep) -> None:
    """The penalty and one vote, by the steps and by pandas."""
    steps = (PenaltyStep(), vote)

    def by_steps() -> RankingState:
        answering = begin
        for step in steps:
            answering = step.apply(answering, facts)
        return answering

    by_steps()  # the first call loads what is compiled
    ours, answered = timed(by_steps, 7)
    rows, cosines = begin.neighbours.rows, begin.neighbours.scores
    grouped, frame = timed(lambda: group_by(rows, cosines, facts, vote), 2)
    best = frame["weight"].to_numpy()
    same = (frame["label"].to_numpy() == answered.winner).all()
    close = np.allclose((best / vote.k) ** (1 / vote.power), answered.confidence, rtol=1e-5)
    if not (same and close):
        raise SystemExit("pandas answers otherwise")
    some = slice(0, APPLIED)
    applied, few = timed(lambda: apply_each(rows[some], cosines[some], facts, vote), 1)
    if few.tolist() != answered.winner[some].tolist():
        raise SystemExit("pandas answers otherwise")
    applied *= QUERIES / APPLIED
    print(
        f"penalty and vote of {QUERIES:,} queries x {NEIGHBOURS}, "
        f"k {vote.k}, power {vote.power:g}, prior {vote.prior:g}, one thread"
    )
    for name, took in (
        ("lmk, the steps", ours),
        ("pandas, group-by of query and label", grouped),
        ("pandas, a function for each query", applied),
    ):
        print(f"  {name:38}{took * 1e3:10,.1f} ms{took / ours:8.1f}x")


def votes_of(rows: Floats, cosines: Floats, facts: PipelineContext, vote: VoteStep) -> pd.DataFrame:
    """The votes of the k best, the lower row of equals."""
    left = cosines - facts.penalty[rows]
    if vote.k < rows.shape[1]:
        places = np.lexsort((rows, -left), axis=1)[:, : vote.k]
        rows, left = (np.take_along_axis(of, places, axis=1) for of in (rows, left))
    label = facts.label_codes[rows].ravel()  # each picture has one
    weight = np.maximum(left, 0).astype(np.float64).ravel() ** vote.power
    if vote.prior:
        weight *= (facts.label_pictures**vote.prior)[label]
    query = np.repeat(np.arange(len(rows)), rows.shape[1])
    return pd.DataFrame({"query": query, "label": label, "weight": weight})


def group_by(rows: Floats, cosines: Floats, facts: PipelineContext, vote: VoteStep) -> pd.DataFrame:
    """The best label of each query; the smaller one on a tie, as idxmax takes the first."""
    votes = votes_of(rows, cosines, facts, vote)
    sums = votes.groupby(["query", "label"], as_index=False)["weight"].sum()
    return sums.loc[sums.groupby("query")["weight"].idxmax()]


def apply_each(rows: Floats, cosines: Floats, facts: PipelineContext, vote: VoteStep) -> pd.Series:
    votes = votes_of(rows, cosines, facts, vote)
    return votes.groupby("query")[["label", "weight"]].apply(
        lambda one: one.groupby("label")["weight"].sum().idxmax()
    )


def timed(call: Callable[[], T], rounds: int = 1) -> tuple[float, T]:
    """The fewest seconds of some rounds, and the result."""
    least = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        least = min(least, time.perf_counter() - start)
    return least, result


def peak(call: Callable[[], object]) -> int:
    """The most bytes that Python and numpy hold at a time."""
    tracemalloc.start()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


if __name__ == "__main__":
    main()
