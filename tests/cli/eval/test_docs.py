"""docs/evaluation.md: its Python runs, block after block, in a folder with the files it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"


def test_the_python_of_the_page_runs(
    lmk: Callable[..., object], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "sample.lmk").rename(here / "gallery.lmk")
    for name, task in (("submission", "recognition"), ("retrieval", "retrieval")):
        call = ("submit", "queries", "-i", "gallery.lmk", "-o", f"{name}.csv", "--task", task)
        assert lmk(*call).code == 0
    rows = [f"q_{name},{name}/0.jpg {name}/1.jpg" for name in ("bridge", "castle", "tower")]
    wanted = [f"{row},Public" for row in rows] + [f"q_none{n},None,Ignored" for n in range(6)]
    (here / "retrieval_solution.csv").write_text("\n".join(["id,images,Usage", *wanted]) + "\n")
    (here / "retrieval_new.csv").write_text("\n".join(["id,images", *rows]) + "\n")
    (here / "tags.csv").write_text("id,tags\na,sofa cat\nb,cat\nc,sofa\n")
    (here / "predictions.csv").write_text("id,tags\na,sofa:0.9 cat:0.8\nb,sofa:0.4\nc,sofa:0.7\n")
    blocks = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 5
    names: dict[str, object] = {"__name__": "page"}
    printed = []
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
        printed.append(capsys.readouterr().out.splitlines())
    assert "value=1.0" in printed[0][0]
    assert printed[1] == ["1.0"]
    assert "PairedTest(difference=0" in printed[2][0]
    assert float(printed[3][0]) == 1.0
    assert printed[4][0] == "Threshold(value=0.7, precision=1.0, recall=1.0, feasible=True)"
    assert printed[4][1] == "(1.0, 0.75, 0.8571428571428571)"
