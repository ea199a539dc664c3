"""`lmk demo`: the whole job on the sample gallery, from an empty folder."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.cli.answer import demo as answer_demo
from lmk.cli.main import cli

Run = Callable[..., object]
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that has examples/, as a clone has."""
    (tmp_path / "examples").symlink_to(EXAMPLES, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demo_recognises_the_sample_landmarks(lmk: Run, clone: Path) -> None:
    done = lmk("demo")
    assert done.code == 0, done.err
    typed = [line for line in done.out.splitlines() if line.startswith("$ ")]
    assert [line.split()[2] for line in typed] == ["build-index", "query", "submit", "eval"]
    gap = re.search(r"^all +(\d\.\d{4})", done.out, re.MULTILINE)
    assert gap
    assert float(gap[1]) >= 0.8
    assert (clone / "demo" / "sample.lmk" / "catalog.db").is_file()
    assert (clone / "demo" / "submission.csv").read_text().startswith("id,landmarks\n")
    page = (clone / "demo" / "report.html").read_text(encoding="utf-8")
    assert "12 answers" in page
    assert page.count("data:image/jpeg;base64,") == 12 * 4  # each with three neighbours
    assert not re.search(r"https?://|file://|src=\"(?!data:)|url\(", page)
    # Some are named and some are refused.
    assert 1 <= page.count('<h2 class="none">none of these</h2>') <= 11
    assert "demo/report.html" in done.out
    assert "lmk build-index my-places/ --distractors other-pictures/" in done.out
    # Each line that starts with $ can be typed again, and a second run computes nothing anew.
    for line in typed:
        words = shlex.split(line)
        assert words[:2] == ["$", "lmk"]
        assert lmk(*words[2:]).code == 0
    assert "(0 newly computed)" in lmk(*shlex.split(typed[0])[2:]).out


def test_some_queries_show_each_landmark_once_and_as_many_without(clone: Path) -> None:
    shown = answer_demo._some_queries(Path("examples"))
    assert len(shown) == len(set(shown)) == 12
    assert all(path.is_file() for path in shown)
    solution = dict(
        line.split(",")[:2] for line in Path("examples/solution.csv").read_text().splitlines()
    )
    with_landmark = [solution[path.stem] for path in shown[::2]]
    assert "" not in with_landmark
    assert len(set(with_landmark)) == 6
    assert [solution[path.stem] for path in shown[1::2]] == [""] * 6


def test_the_demo_ends_with_the_first_command_that_fails(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of the sample that cannot be read makes `lmk query` fail."""
    shutil.copytree(EXAMPLES / "queries", here / "pictures" / "queries")
    shutil.copy(EXAMPLES / "solution.csv", here / "pictures")
    shutil.copytree(here / "gallery", here / "pictures" / "gallery")
    shutil.copytree(here / "bank", here / "pictures" / "distractors")
    answer_demo._some_queries(here / "pictures")[0].write_bytes(b"")
    run = cli.main

    def with_the_index_that_is_here(arguments: list[str], **options: object) -> object:
        if arguments[0] != "build-index":
            return run(arguments, **options)
        shutil.copytree(here / "sample.lmk", here / "demo" / "sample.lmk")
        return 0

    with monkeypatch.context() as patched:
        patched.setattr(cli, "main", with_the_index_that_is_here)
        with pytest.raises(SystemExit) as left:
            run(["demo", "--examples", "pictures"], prog_name="lmk")
    assert left.value.code == 1
    assert not (here / "demo" / "submission.csv").exists()


def test_outside_of_a_clone_there_is_a_smaller_sample(
    lmk: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after pip install: the sample that is part of the package."""
    monkeypatch.chdir(tmp_path)
    asked: list[list[str]] = []
    monkeypatch.setattr(answer_demo, "_run", lambda *words: asked.append([*map(str, words)]))
    assert lmk("demo").code == 0
    sample = Path(answer_demo.__file__).parent / "sample"
    assert asked[0][1] == str(sample / "gallery")
    shown = [Path(word) for word in asked[1] if word.endswith(".jpg")]
    assert len(shown) == 12 and all(path.is_file() for path in shown)
    assert sum(path.stat().st_size for path in sample.rglob("*.jpg")) < 2_000_000
