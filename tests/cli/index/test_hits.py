"""`lmk index hits`: the table of what the distractors picked."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmk.index.gallery.gallery import Gallery

Run = Callable[..., object]


def test_the_table_is_that_of_a_plain_count(lmk: Run, here: Path) -> None:
    done = lmk("index", "hits", "sample.lmk", "-o", "p.csv", "--top", "4")
    assert (done.code, done.err) == (0, "")
    with Gallery.open("sample.lmk") as gallery:
        known, bank = (gallery.embeddings(role) for role in ("gallery", "distractor"))
    counts: Counter[str] = Counter()
    cosines: dict[str, list[float]] = {}
    for one in bank.vectors.astype(np.float64):
        near = known.vectors.astype(np.float64) @ one
        for place in np.argsort(-near, kind="stable")[:4]:
            counts[known.ids[place]] += 1
            cosines.setdefault(known.ids[place], []).append(near[place])
    with (here / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "mean_cosine", "n_picked"]
    assert {row["id"]: int(row["n_picked"]) for row in rows} == {
        id_: counts[id_] for id_ in known.ids
    }
    for row in rows:
        assert float(row["mean_cosine"]) == pytest.approx(
            np.mean(cosines.get(row["id"], [0])), abs=1e-5
        )
    keys = [(-int(row["n_picked"]), -float(row["mean_cosine"]), row["id"]) for row in rows]
    assert keys == sorted(keys)
    assert done.out == f"p.csv: 12 pictures, {len(counts)} of them near a distractor\n"


def test_as_many_are_picked_as_by_the_penalty(lmk: Run, here: Path) -> None:
    done = lmk("index", "hits", "sample.lmk", "-o", "p.csv", "--json")
    facts = {"output": "p.csv", "pictures": 12, "picked": 12, "top": 20}
    assert json.loads(done.out) == facts


def test_without_distractors_there_is_nothing_to_write(lmk: Run, here: Path, tiny: Path) -> None:
    assert lmk("build-index", "gallery", "-o", "bare.lmk", "--model", tiny).code == 0
    lmk("index", "hits", "bare.lmk", "-o", "p.csv").refused(2, "no distractors", "bare.lmk")
    assert not (here / "p.csv").exists()
    lmk("index", "hits", "sample.lmk", "-o", "nowhere/p.csv").refused(2, "no such folder")
