"""A solution in which every query shows a landmark says nothing about refusing."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmk.eval.files.label_match import label_warnings
from lmk.eval.files.submission import Submission
from lmk.eval.files.truth import Truth

TEXT = "every query of the solution shows a landmark: GAP does not measure"


@pytest.mark.parametrize(
    ("rows", "warns"),
    [
        (("q1,a,Public", "q2,b,Private"), True),
        (("q1,a,Public", "q2,,Private"), False),
        (("q1,a,Public", "q2,,Ignored"), True),  # that one is not scored
    ],
)
def test_the_warning(tmp_path: Path, rows: tuple[str, ...], warns: bool) -> None:
    (tmp_path / "s.csv").write_text("id,landmarks\nq1,a 0.9\nq2,b 0.8\n")
    (tmp_path / "t.csv").write_text("\n".join(["id,landmarks,Usage", *rows, ""]))
    found = label_warnings(Submission.read(tmp_path / "s.csv"), Truth.read(tmp_path / "t.csv"))
    assert [text.startswith(TEXT) for text in found] == [True] * warns
