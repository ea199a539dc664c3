"""`lmk index verify` and `lmk index repair`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., object]
QUERY = ("query", "queries/q_tower.jpg", "-i", "sample.lmk", "-k", "2")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_whole_index_verifies(lmk: Run, here: Path) -> None:
    done = lmk("index", "verify", "sample.lmk")
    assert (done.code, done.out, done.err) == (0, "sample.lmk: all is well\n", "")
    facts = json.loads(lmk("index", "verify", "sample.lmk", "--json").out)
    assert facts == {"index": "sample.lmk", "findings": []}
    done = lmk("index", "repair", "sample.lmk")
    assert (done.code, done.err) == (0, "")
    assert done.out == ("sample.lmk: 0 parts made again, 0 pictures embedded again, 0 lost\n")


@pytest.mark.parametrize("pattern", ["graph.bin", "weights.safetensors", "config.json"])
def test_a_flipped_bit_is_found_named_and_mended(lmk: Run, here: Path, pattern: str) -> None:
    whole = lmk(*QUERY)
    files = sorted((here / "sample.lmk" / "embedder").rglob(pattern))
    if not files:
        pytest.skip(f"the embedder has no {pattern}")
    flip(files[0])
    done = lmk("index", "verify", "sample.lmk")
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert lines[-1] == "sample.lmk: 1 finding"
    assert files[0].name in lines[0]
    (finding,) = json.loads(lmk("index", "verify", "sample.lmk", "--json").out)["findings"]
    assert files[0].name in finding["where"]
    assert finding["remedy"] and finding["what"]
    assert whole.code == 0


def test_repair_json(lmk: Run, here: Path) -> None:
    facts = json.loads(lmk("index", "repair", "sample.lmk", "--json").out)
    assert facts == {"index": "sample.lmk", "remade": [], "reembedded": 0, "lost": []}
