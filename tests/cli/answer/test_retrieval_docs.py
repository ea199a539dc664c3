"""docs/retrieval.md: its file is accepted, its table is true, its Python runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from lmk.rerank.lists.retrieval import Retrieval, RetrievalStep

PAGE = (Path(__file__).parents[3] / "docs" / "retrieval.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_file_is_one_and_the_table_names_every_step_with_its_defaults() -> None:
    (text,) = blocks("json")
    assert len(Retrieval.model_validate(json.loads(text)).steps) == 2
    table = dict(re.findall(r"^\| `(\w+)`(?: or)? \| [^|]+ \| ([^|]+) \|", PAGE, re.MULTILINE))
    classes = get_args(get_args(RetrievalStep)[0])
    assert len(table) == len(classes)
    for kind in classes:
        values = kind().model_dump()
        said = dict(part.split() for part in table[values.pop("step")].strip().split(", "))
        assert {name: float(value) for name, value in said.items()} == values


def test_the_python_runs(
    lmk: Callable[..., object], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "sample.lmk").rename(here / "gallery.lmk")
    (here / "queries" / "q_tower.jpg").rename(here / "photo.jpg")
    (code,) = blocks("python")
    exec(compile(code, "retrieval.md", "exec"), {"__name__": "page"})
    assert "tower/" in capsys.readouterr().out.split()[0]
