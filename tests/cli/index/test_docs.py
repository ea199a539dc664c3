"""docs/index.md: its Python runs, block after block, in a folder with what it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmk.index.search.batch import read_neighbours

PAGE = Path(__file__).parents[3] / "docs" / "index.md"


def test_the_python_of_the_page_runs(
    lmk: Callable[..., object], here: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "sample.lmk").rename(here / "gallery.lmk")
    assert lmk("build-index", "queries", "--model", tiny).code == 0
    blocks = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    write, read = blocks
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(write, PAGE.name, "exec"), names)
    call = ("index", "search", "gallery.lmk", "queries.safetensors", "-o", "neighbours", "-k", "4")
    assert lmk(*call).code == 0
    capsys.readouterr()
    exec(compile(read, PAGE.name, "exec"), names)
    query, near, scores = re.fullmatch(
        r"(\S+) \[(.*)\] \[(.*)\]\n", capsys.readouterr().out
    ).groups()  # type: ignore[union-attr]
    assert query == "q_bridge"
    assert near.split()[0].strip("'").startswith("bridge/")
    (block,) = read_neighbours(here / "neighbours")
    np.testing.assert_allclose([float(each) for each in scores.split()], block.scores[0, :3])
