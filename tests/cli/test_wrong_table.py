"""A table whose pictures are not where its paths say: the error names it, and --root."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., object]


def table(path: Path, *pictures: str) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [f"{Path(each).parent.name}_{Path(each).stem},{each},tower" for each in pictures]
    path.write_text("\n".join(["id,path,landmark_id", *lines, ""]))


VIEWS = ("gallery/tower/0.jpg", "gallery/tower/1.jpg", "gallery/bridge/0.jpg")


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("lists/wrong.csv", VIEWS),  # they start in the working directory
        ("lists/wrong list.csv", tuple(path.removeprefix("gallery/") for path in VIEWS)),
        ("wrong.csv", tuple(path.removeprefix("gallery/") for path in VIEWS)),  # just below
    ],
)
def test_the_remedy_of_wrong_paths_works_when_typed(
    here: Path, tiny: Path, lmk: Run, name: str, paths: tuple[str, ...]
) -> None:
    table(here / name, *paths)
    call = ("build-index", name, "-o", "new.lmk", "--model", str(tiny))
    done = lmk(*call)
    done.refused(  # type: ignore[attr-defined]
        2, f"{name}: none of its 3 pictures can be read", paths[0], "no such file", "--root"
    )
    typed = re.search(r"pictures are found with: (--root .+)$", done.err.strip())  # type: ignore[attr-defined]
    assert typed is not None
    again = lmk(*call, *shlex.split(typed[1]))
    assert again.code == 0  # type: ignore[attr-defined]
    assert "new.lmk: 3 pictures" in again.out  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "call",
    [
        ("build-index", "lists/q.csv", "-o", "new.lmk"),
        ("index", "sync", "sample.lmk", "lists/q.csv"),
        ("submit", "lists/q.csv", "-i", "sample.lmk", "-o", "s.csv"),
        ("tune", "sample.lmk", "--data", "lists/q.csv"),
        ("calibrate", "sample.lmk", "--data", "lists/q.csv"),
    ],
    ids=" ".join,
)
def test_every_command_that_reads_a_table(
    here: Path, tiny: Path, lmk: Run, call: tuple[str, ...]
) -> None:
    table(here / "lists" / "q.csv", "queries/q_tower.jpg", "queries/q_castle.jpg")
    model = ("--model", str(tiny)) if call[0] == "build-index" else ()
    done = lmk(*call, *model)
    assert done.code in (1, 2)  # type: ignore[attr-defined]
    last = done.complaints[-1]  # type: ignore[attr-defined]
    assert last.startswith("lmk: lists/q.csv: ")
    assert last.endswith(
        f"its paths start at {here / 'lists'}, and pictures are found with: --root ."
    )


def test_pictures_that_are_nowhere(here: Path, tiny: Path, lmk: Run) -> None:
    table(here / "q.csv", "gone/0.jpg")
    lmk("build-index", "q.csv", "--model", tiny).refused(  # type: ignore[attr-defined]
        2,
        "q.csv: none",
        f"its paths start at {here}: name the folder in which they start",
        "--root",
    )


def test_ids_without_paths(here: Path, tiny: Path, lmk: Run) -> None:
    (here / "lists").mkdir()
    (here / "lists" / "q.csv").write_text("id,landmarks\nq_tower,tower\nq_castle,castle\n")
    call = ("build-index", "lists/q.csv", "-o", "new.lmk", "--model", str(tiny))
    lmk(*call).refused(  # type: ignore[attr-defined]
        2, "lists/q.csv: has no column 'path'", "pictures are found with: --root queries"
    )
    assert lmk(*call, "--root", "queries").code == 0  # type: ignore[attr-defined]


def test_absolute_paths(here: Path, tiny: Path, lmk: Run) -> None:
    table(here / "lists" / "q.csv", *(str(here / path) for path in VIEWS))
    call = ("build-index", "lists/q.csv", "-o", "new.lmk", "--model", str(tiny))
    root = here / "gallery"
    lmk(*call).refused(2, "lists/q.csv: ", f"--root {root}")  # type: ignore[attr-defined]
    assert lmk(*call, "--root", root).code == 0  # type: ignore[attr-defined]


def test_files_that_are_no_pictures(here: Path, tiny: Path, lmk: Run) -> None:
    (here / "bad").mkdir()
    (here / "bad" / "0.jpg").write_bytes(b"no picture")
    table(here / "lists" / "q.csv", "bad/0.jpg")
    call = ("lists/q.csv", "--root", ".")
    done = lmk("build-index", *call, "-o", "new.lmk", "--model", tiny)
    said = "lmk data check lists/q.csv --root . names what is wrong with each"
    done.refused(2, "lists/q.csv: ", said)  # type: ignore[attr-defined]
    assert "bad/0.jpg" in lmk("data", "check", *call, "--model", tiny).out  # type: ignore[attr-defined]
