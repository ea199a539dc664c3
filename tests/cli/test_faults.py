"""Stopped, killed and starved commands: nothing is lost, and the same command goes on."""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.eval.files.submission import RetrievalWriter, SubmissionWriter

Run = Callable[..., object]
Start = Callable[..., "subprocess.Popen[str]"]
MANY = 900
SHARD = 256  # pictures whose features are on disk together; see FeatureStore
KILLS = 20
LIMIT_SECONDS = 60


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path]) -> Path:
    """A flat folder with so many pictures that a command can be stopped in mid-work."""
    folder = tmp_path_factory.mktemp("many")
    for n in range(MANY):
        paint(folder / f"m{n:03}.jpg", n % 3, 100 + n, 48)
    return folder


def wait_until(ready: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until `ready` is true; fails when the process ends before."""
    for _ in range(LIMIT_SECONDS * 500):
        if ready():
            return
        try:
            process.wait(timeout=0.002)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"it ended before: {process.communicate()}")
    pytest.fail("it took too long")


def kill_at(process: subprocess.Popen[str], seconds: float) -> None:
    """Ends the process without a chance to tidy up, that many seconds from now."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answer(lmk: Run, index: object, picture: str = "queries/q_tower.jpg") -> tuple[object, ...]:
    """An index's answer, in what must not change."""
    done = lmk("query", picture, "-i", index, "--json", "-k", "12")
    assert (done.code, done.err) in ((0, ""), (0, done.err)), done.err
    facts = json.loads(done.out)
    scores = tuple(round(near["score"], 3) for near in facts["neighbours"])
    return facts["label"], facts["best"], tuple(n["id"] for n in facts["neighbours"][:1]), scores


def test_ctrl_c_stops_a_build_in_one_line_and_the_next_goes_on(
    lmk: Run, started: Start, many: Path, tiny: Path, here: Path
) -> None:
    build = ("build-index", many, "-o", "many.lmk", "--model", tiny, "--json")
    process = started(*build)
    features = here / "many.lmk" / "cache" / "features"
    wait_until(lambda: any(features.rglob("*.safetensors")), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_SECONDS)
    assert (process.returncode, out, err.strip()) == (130, "", "lmk: stopped")
    lmk("query", "queries/q_tower.jpg", "-i", "many.lmk").refused(
        2, "many.lmk: its build never finished", "build-index", "it goes on where it stopped"
    )
    report = json.loads(lmk(*build).out)
    assert report["pictures"] == MANY
    assert report["computed"] <= MANY - SHARD
    assert json.loads(lmk(*build).out)["computed"] == 0


@pytest.fixture
def rebuilt(here: Path, paint: Callable[..., Path], tiny: Path) -> tuple[object, ...]:
    """A call that builds something else over sample.lmk."""
    for view in range(5):
        paint(here / "other" / "palace" / f"{view}.jpg", 50, view)
        paint(here / "other" / "turret" / f"{view}.jpg", 2, 200 + view)
    return ("build-index", "other", "-o", "sample.lmk", "--model", tiny)


@pytest.mark.slow
def test_kill_during_a_rebuild_leaves_the_old_answer_or_the_new(
    lmk: Run, started: Start, here: Path, rebuilt: tuple[object, ...], tmp_path: Path
) -> None:
    kept = tmp_path / "kept.lmk"
    shutil.copytree(here / "sample.lmk", kept)
    old = answer(lmk, "sample.lmk")
    began = time.monotonic()
    process = started(*rebuilt)
    assert process.wait(LIMIT_SECONDS) == 0, process.communicate()
    whole = time.monotonic() - began
    new = answer(lmk, "sample.lmk")
    assert (old[0], new[0]) == ("tower", "turret")
    chance, found = random.Random(8), []
    for n in range(KILLS):
        shutil.rmtree(here / "sample.lmk")
        shutil.copytree(kept, here / "sample.lmk")
        # Most of the first half is imports.
        kill_at(started(*rebuilt), whole * (0.4 + 0.6 * (n + chance.random()) / KILLS))
        found.append(answer(lmk, "sample.lmk"))
        assert found[-1] in (old, new)
        assert lmk(*rebuilt).code == 0
        assert answer(lmk, "sample.lmk") == new
    assert old in found


@pytest.mark.slow
def test_kill_during_a_first_build_leaves_nothing_that_answers_wrongly(
    lmk: Run, started: Start, here: Path, rebuilt: tuple[object, ...]
) -> None:
    began = time.monotonic()
    assert started(*rebuilt).wait(LIMIT_SECONDS) == 0
    whole = time.monotonic() - began
    new = answer(lmk, "sample.lmk")
    chance = random.Random(9)
    for _ in range(KILLS // 2):
        shutil.rmtree(here / "sample.lmk")
        kill_at(started(*rebuilt), whole * chance.uniform(0.4, 1))
        done = lmk("query", "queries/q_tower.jpg", "-i", "sample.lmk", "--json")
        if done.code == 0:
            assert answer(lmk, "sample.lmk") == new
        else:
            done.refused(2, "sample.lmk", "lmk build-index")
        assert lmk(*rebuilt).code == 0
        assert answer(lmk, "sample.lmk") == new


def rows_of(path: Path) -> list[tuple[str, str, float]]:
    """The ids, labels and confidences of a submission, these as far as they must be equal."""
    with path.open(newline="") as file:
        cells = [(row["id"], *row["landmarks"].split(" ")) for row in csv.DictReader(file)]
    return [(id_, label, round(float(confidence), 4)) for id_, label, confidence in cells]


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


def test_a_killed_submit_goes_on_and_writes_the_same_file(
    lmk: Run, started: Start, here: Path, many: Path
) -> None:
    assert lmk("submit", many, "-i", "sample.lmk", "-o", "whole.csv").code == 0
    expected = rows_of(here / "whole.csv")
    assert len(expected) == MANY
    process = started("submit", many, "-i", "sample.lmk", "-o", "s.csv")
    wait_until(lambda: any(part.stat().st_size > 2000 for part in parts(here)), process)
    process.kill()
    process.wait()
    assert not (here / "s.csv").exists()
    done = lmk("submit", many, "-i", "sample.lmk", "-o", "s.csv")
    assert done.code == 0
    assert "of them in an earlier run)" in done.out
    assert rows_of(here / "s.csv") == expected
    assert parts(here) == []


@pytest.mark.slow
def test_submit_killed_at_any_moment_writes_the_same_file(
    lmk: Run, started: Start, here: Path, many: Path
) -> None:
    began = time.monotonic()
    submit = ("submit", many, "-i", "sample.lmk", "-o", "s.csv")
    assert started(*submit).wait(LIMIT_SECONDS) == 0
    whole = time.monotonic() - began
    expected = rows_of(here / "s.csv")
    chance = random.Random(10)
    for _ in range(KILLS // 2):
        (here / "s.csv").unlink()
        for _ in range(2):
            kill_at(started(*submit), whole * chance.uniform(0.3, 0.9))
        assert lmk(*submit).code == 0
        assert rows_of(here / "s.csv") == expected
        assert parts(here) == []


@pytest.mark.parametrize(
    ("task", "writer"), [("recognition", SubmissionWriter), ("retrieval", RetrievalWriter)]
)
def test_a_stopped_submit_is_taken_up_only_by_the_same_work(
    lmk: Run, here: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, task: str, writer: type
) -> None:
    """Answers to other queries, or by another index, must not get into the file."""
    assert lmk("build-index", "gallery/tower", "-o", "other.lmk", "--model", tiny).code == 0
    submit = ("submit", "queries", "-i", "sample.lmk", "-o", "s.csv", "--task", task)
    others = [
        ("submit", "bank", *submit[2:]),
        (*submit[:3], "other.lmk", *submit[4:]),
        (*submit[:-1], "retrieval" if task == "recognition" else "recognition"),
    ]
    expected = []
    for other in others:
        assert lmk(*other).code == 0
        expected.append((here / "s.csv").read_text())
        (here / "s.csv").unlink()
    write = writer.write

    def stop_after_three(self: object, query_id: str, *cells: object) -> None:
        if len(self.written) == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        write(self, query_id, *cells)

    def stop() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(writer, "write", stop_after_three)
            lmk(*submit).refused(130, "stopped")

    for other, text in zip(others, expected, strict=True):
        stop()
        done = lmk(*other)
        assert done.code == 0
        assert "earlier run" not in done.out
        assert (here / "s.csv").read_text() == text
    stop()
    assert "9 queries (3 of them in an earlier run)" in lmk(*submit).out


def no_file_over(size: int) -> dict[str, object]:
    """Options of a process that cannot write larger files; it could not save its coverage."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    unmeasured = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    return {"preexec_fn": limit, "env": unmeasured}


@pytest.mark.parametrize("kilobytes", [1, 20, 60, 120])
def test_a_build_that_cannot_write_leaves_the_old_index(
    lmk: Run, lmk_process: Run, here: Path, rebuilt: tuple[object, ...], kilobytes: int
) -> None:
    """A limit on the size of files stops writing at another place each time."""
    old = answer(lmk, "sample.lmk")
    # With a whitening it is another embedder, which is written as well.
    failed = lmk_process(*rebuilt, "--whiten", **no_file_over(1000 * kilobytes))
    failed.refused(1, "sample.lmk")
    assert "file too large" in failed.err or "disk I/O error" in failed.err
    assert "run the same command again" in failed.err
    assert answer(lmk, "sample.lmk") == old
    assert lmk(*rebuilt).code == 0
    assert answer(lmk, "sample.lmk")[0] == "turret"


def test_a_submission_or_page_that_cannot_be_written_leaves_the_old_one(
    lmk: Run, lmk_process: Run, here: Path, many: Path
) -> None:
    (here / "s.csv").write_text("old")
    (here / "a.html").write_text("old")
    submit = ("submit", many, "-i", "sample.lmk", "-o", "s.csv")
    failed = lmk_process(*submit, **no_file_over(5000))
    failed.refused(1, "s.csv", "cannot write: file too large", "run the same command again")
    query = ("query", "queries/q_tower.jpg", "--html", "a.html")
    page = lmk_process(*query, **no_file_over(5000))
    assert page.code == 1
    assert page.out.startswith("queries/q_tower.jpg: tower")  # the answer was given all the same
    assert len(page.complaints) == 1
    assert "a.html: cannot write: file too large" in page.err
    assert (here / "s.csv").read_text() == (here / "a.html").read_text() == "old"
    assert list(here.glob(".a.html*")) == []
    again = lmk(*submit)
    assert again.code == 0
    assert "of them in an earlier run)" in again.out  # what fitted was kept
    assert len(rows_of(here / "s.csv")) == MANY
    assert lmk(*query).code == 0
    assert (here / "a.html").read_text().startswith("<!doctype html>")


FULL_DISK = """
set -e
mount -t tmpfs -o size=900k none disk
cp -r sample.lmk disk/sample.lmk
set +e
lmk() { "$PYTHON" -P -m lmk.cli "$@"; }
ask() { lmk query queries/q_tower.jpg -i disk/sample.lmk --json; }
ask; echo "asked $?"
head -c 10m /dev/zero > disk/filler 2> /dev/null
lmk build-index other -o disk/sample.lmk --model "$TINY" 2>&1; echo "built $?"
ask; echo "asked $?"
lmk submit queries -i disk/sample.lmk -o disk/s.csv 2>&1; echo "submitted $?"
rm disk/filler; mount -o remount,size=20m none disk
lmk build-index other -o disk/sample.lmk --model "$TINY"; echo "built $?"
ask; echo "asked $?"
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root to mount")
def test_a_full_disk(here: Path, tiny: Path, rebuilt: tuple[object, ...]) -> None:
    """A real one: a small tmpfs that only this test sees."""
    (here / "disk").mkdir()
    environment = {**os.environ, "PYTHON": sys.executable, "TINY": str(tiny)}
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", FULL_DISK],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        env=environment,
    )
    if done.returncode != 0 and not done.stdout:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr}")
    hints = done.stderr.splitlines()
    assert all(line.endswith("make it more reliable: --distractors FOLDER") for line in hints), (
        hints
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 13, done.stdout
    first, old, new = (json.loads(lines[n]) for n in (0, 4, 11))
    assert first == old
    assert (old["label"], new["label"]) == ("tower", "turret")
    assert lines[1] == lines[5] == lines[12] == "asked 0"
    assert lines[2].startswith("lmk: disk/sample.lmk")
    assert "free" in lines[2]
    assert lines[3] == "built 1"
    assert lines[6].startswith("lmk: disk/")
    assert lines[7] == "submitted 1"
    assert lines[8].startswith("disk/sample.lmk: 10 pictures")
    assert lines[9].startswith("disk/sample.lmk: holds 10 pictures of 2 landmarks")
    assert lines[10] == "built 0"
