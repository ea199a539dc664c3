"""Calls that cannot be answered: one line that says what, where and the way out, and exit code."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.embed.errors import LmkError, UsageError

Run = Callable[..., object]


@pytest.fixture(autouse=True)
def bad_files(here: Path) -> None:
    (here / "empty").mkdir()
    os.mkfifo(here / "pipe")
    (here / "notes").mkdir()
    (here / "notes" / "a.txt").write_text("a\n")
    (here / "notes" / "b.md").write_text("b\n")
    (here / "no_id.csv").write_text("name,landmark_id\nx,1\n")
    (here / "no_rows.csv").write_text("id,landmark_id\n")
    (here / "zero.csv").write_text("")
    (here / "twice.csv").write_text("id,path\nx,gallery/bridge/0.jpg\nx,gallery/tower/0.jpg\n")
    (here / "outside.csv").write_text("id,path\nx,../secret.jpg\n")
    (here / "nowhere.csv").write_text("id\nabcdef\n")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("build-index nowhere", ["nowhere: no such folder or file", "check the spelling"]),
        ("data caption-tags no_rows.csv -o o.csv --most nan", ["'--most'", "not a number"]),
        ("eval tags p.csv t.csv --threshold nan", ["'--threshold'", "not a number"]),
        (
            "tag-thresholds --tagger x --data no_rows.csv --precision 1",
            ["--precision 1: no number of pictures is enough", "--confidence 0.5"],
        ),
        ("build-index empty", ["empty: no pictures", "put pictures in it"]),
        ("build-index notes", ["notes: no pictures", "2 other files", "put pictures in it"]),
        ("build-index notes/a.txt", ["notes/a.txt: is neither", "point at a folder"]),
        ("build-index no_id.csv", ["no_id.csv: no column 'id'", "name, landmark_id"]),
        ("build-index no_rows.csv", ["no_rows.csv: holds no rows"]),
        ("build-index zero.csv", ["zero.csv, line 1: an empty file; it needs a header"]),
        ("build-index twice.csv", ["twice.csv: the id 'x'", "gallery/tower/0.jpg", "of its own"]),
        ("build-index outside.csv", ["outside.csv: the path '../secret.jpg'", "--root"]),
        ("build-index nowhere.csv", ["nowhere.csv", "a/b/c/abcdef.jpg", "--root"]),
        ("build-index gallery/bridge/0.jpg", ["is one picture", "lmk query"]),
        ("build-index gallery --distractors no", ["no: no such folder or file"]),
        ("build-index gallery --root no", ["'--root'", "lmk build-index --help"]),
        ("build-index gallery --model no", ["no: is no preset", "lite1", "check the spelling"]),
        ("build-index gallery --model resnet18", ["resnet18", "--weights", "--pretrained"]),
        ("build-index gallery --model resnet18 --weights no.pth", ["no.pth: no such weights"]),
        ("build-index gallery --size 7", ["'--size'", "32<=x<=2048"]),
        ("build-index gallery -o notes", ["notes: the folder holds something else", "NAME.lmk"]),
        ("build-index gallery -o gallery", ["gallery: the folder holds something else"]),
        ("build-index gallery -o notes/a.txt", ["notes/a.txt", "a gallery is a folder"]),
        ("build-index gallery --shard 0/4", ["'--shard'", "'0/4' is not I/N", "such as 1/4"]),
        ("build-index gallery --shard 5/4", ["'--shard'", "'5/4' is not I/N"]),
        ("build-index gallery --shard half", ["'--shard'", "'half' is not I/N"]),
        ("build-index gallery --scales 1,2", ["'--scales'", "'1,2' is not a list of factors"]),
        ("build-index gallery --scales half", ["'--scales'", "'half' is not a list of factors"]),
        ("build-index gallery --dtype f8", ["'--dtype'", "'f8' is not one of"]),
        ("build-index gallery --backend cloud", ["'--backend'", "'cloud' is not one of"]),
        ("build-index gallery --backend milvus", ["needs the address of the server: add --uri"]),
        ("build-index gallery --uri http://localhost:1", ["--backend milvus"]),
        (
            "build-index gallery --backend milvus --uri http://localhost:1 --kind hnsw",
            ["--kind applies to --backend local"],
        ),
        ("build-index gallery --wait never", ["'--wait'", "'never' is not a valid float"]),
        ("build-index", ["Missing argument 'GALLERY'", "lmk build-index --help"]),
        ("query", ["Missing argument 'IMAGE|FOLDER|CSV|-...'", "lmk query --help"]),
        ("query empty", ["empty: no pictures in this folder"]),
        ("query https://a.example/b.jpg", ["https://a.example/b.jpg: is a URL", "download"]),
        ("query queries/q_tower.jpg http://a/b.jpg", ["http://a/b.jpg: is a URL", "download"]),
        ("tag https://a.example/b.jpg", ["https://a.example/b.jpg: is a URL", "download"]),
        ("query queries -o no/x.csv", ["no: no such folder", "create it first"]),
        ("query x.jpg -k 0", ["'-k'", "0 is not in the range", "lmk query --help"]),
        ("query x.jpg -k -3", ["'-k'", "-3 is not in the range"]),
        ("query x.jpg -k many", ["'-k'", "'many' is not a valid integer"]),
        (
            "query queries/q_tower.jpg -i no.lmk",
            ["no.lmk: there is no such folder", "lmk build-index"],
        ),
        (
            "query queries/q_tower.jpg -i notes",
            ["notes: this folder is no gallery", "lmk build-index"],
        ),
        (
            "query queries/q_tower.jpg -i empty",
            ["empty: this folder is no gallery", "lmk build-index"],
        ),
        ("query queries/q_tower.jpg -i notes/a.txt", ["notes/a.txt", "lmk build-index"]),
        ("query x.jpg --html no/x.html", ["no: no such folder", "create it first"]),
        ("query x.jpg --html notes", ["'--html'", "'notes' is a directory"]),
        ("query x.jpg --html pipe", ["pipe: is not a plain file", "name a file"]),
        ("submit queries -o pipe", ["pipe: is not a plain file", "name a file"]),
        (  # the page's name forgotten: what follows --html is a picture
            "query --html queries/q_tower.jpg queries/q_castle.jpg",
            ["queries/q_tower.jpg: is a picture", "name another file"],
        ),
        ("query --html queries/q_tower.jpg queries/q_tower.jpg", ["q_tower.jpg: would be read"]),
        ("data check twice.csv --html ./twice.csv", ["twice.csv: would be read"]),
        ("query x.jpg --nope", ["No such option '--nope'", "lmk query --help"]),
        ("submit queries", ["Missing option '-o'", "lmk submit --help"]),
        ("submit queries -o no/x.csv", ["no: no such folder", "create it first"]),
        ("submit queries -o notes", ["'-o'", "'notes' is a directory"]),
        ("submit queries -o x.csv --task ranking", ["'ranking' is not one of", "'retrieval'"]),
        ("submit nowhere -o x.csv", ["nowhere: no such folder or file"]),
        ("submit notes -o x.csv", ["notes: no pictures in this folder"]),
        ("eval gap x.csv solution.csv", ["x.csv: no such file"]),
        ("eval gap notes solution.csv", ["notes: a folder, not a CSV file"]),
        ("eval gap", ["Missing argument 'SUBMISSION'", "lmk eval gap --help"]),
        ("eval gop", ["No such command 'gop'", "lmk eval --help"]),
        ("info", ["Missing argument 'INDEX'"]),
        ("info no", ["no: there is no such folder", "lmk build-index"]),
        ("index frob", ["No such command 'frob'", "lmk index --help"]),
        ("index info", ["Missing argument 'INDEX'", "lmk index info --help"]),
        ("index verify no", ["no: there is no such folder"]),
        ("index push sample.lmk", ["sample.lmk: no Milvus server is saved", "--uri"]),
        ("index push no --uri http://localhost:1", ["no: there is no such folder"]),
        ("index push sample.lmk --uri nonsense", ["nonsense"]),
        ("demo --examples no", ["no: the sample gallery is not here", "--examples"]),
        ("frobnicate", ["No such command 'frobnicate'", "lmk --help"]),
        ("--frobnicate", ["No such option '--frobnicate'", "lmk --help"]),
    ],
)
def test_a_wrong_call_gets_one_line_and_exit_code_2(
    lmk: Run, here: Path, call: str, words: list[str]
) -> None:
    before = _contents(here)
    lmk(*call.split()).refused(2, *words)
    assert _contents(here) == before  # nothing is left behind, nothing is lost


def _contents(folder: Path) -> dict[Path, bytes | None]:
    """All files; but not what an index notes of those it has compared with their checksums."""
    paths = [path for path in sorted(folder.rglob("*")) if path.name != "files.json"]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("hello\n", ["line 1", "the header must be"]),
        ("", ["empty"]),
        ("id,landmarks\nq_bridge,bridge 0.9\nq_bridge,bridge 0.8\n", ["line 3", "q_bridge"]),
        ("id,landmarks\nq_bridge,bridge\n", ["line 2"]),
        ("id,landmarks\nq_bridge,bridge high\n", ["line 2", "high"]),
        ("id,landmarks\nnobody_knows,bridge 0.9\n", ["nobody_knows"]),
    ],
)
def test_a_wrong_submission_gets_one_line_and_exit_code_1(
    lmk: Run, here: Path, content: str, words: list[str]
) -> None:
    (here / "answers.csv").write_text(content)
    lmk("eval", "gap", "answers.csv", "solution.csv").refused(1, "answers.csv", *words)


@pytest.mark.parametrize("content", ["not a solution\n", "", "\x00\x01\x02", "id,landmarks\n"])
def test_a_text_file_as_solution_is_refused(lmk: Run, here: Path, content: str) -> None:
    (here / "answers.csv").write_text("id,landmarks\nq_bridge,bridge 0.9\n")
    (here / "truth.txt").write_text(content)
    lmk("eval", "gap", "answers.csv", "truth.txt").refused(1, "truth.txt")


def test_a_picture_that_is_missing_is_said_before_any_index_is_opened(lmk: Run, here: Path) -> None:
    (here / "second.lmk").mkdir()
    for call in ("query x.jpg", "query x.jpg -i notes", "query x.jpg x.jpg -i no.lmk"):
        lmk(*call.split()).refused(1, "lmk: x.jpg: no such file; it has no answer")
    both = lmk("query", "queries/q_tower.jpg", "x.jpg")
    assert (both.code, both.out) == (2, "")
    first, second = both.complaints
    assert first == "lmk: x.jpg: no such file; it has no answer"
    assert "there are 2 indexes here: sample.lmk, second.lmk" in second


def test_a_link_to_itself_is_named_for_what_it_is(lmk: Run, here: Path) -> None:
    (here / "self.jpg").symlink_to("self.jpg")
    lmk("query", "self.jpg").refused(1, "self.jpg: cannot be read: too many levels")


def test_no_command_at_all_shows_the_help_and_fails(lmk: Run) -> None:
    done = lmk()
    assert done.code == 2
    assert done.out == ""
    assert "build-index" in done.err


def test_an_index_in_another_folder_is_not_replaced_by_a_failed_build(
    lmk: Run, here: Path, paint: Callable[..., Path]
) -> None:
    """None of the pictures can be read: the index that is there stays as it was."""
    (here / "bad").mkdir()
    (here / "bad" / "a.jpg").write_bytes(b"no picture")
    before = lmk("query", "queries/q_tower.jpg", "--json").out
    lmk("build-index", "bad", "-o", "sample.lmk").refused(
        2, "bad: none of its 1 pictures can be read", "a.jpg: not a picture", "check that"
    )
    assert lmk("query", "queries/q_tower.jpg", "--json").out == before


def test_a_table_whose_paths_start_elsewhere(lmk: Run, here: Path) -> None:
    (here / "t.csv").write_text("id,path,label\na,x/a.jpg,A\nb,x/b.jpg,B\n")
    words = ("none of its 2 pictures", "x/a.jpg: no such file", f"{here.resolve()}: name", "--root")
    lmk("index", "sync", "sample.lmk", "t.csv").refused(2, *words)
    (here / "t.csv").write_text("id,path,label\na,1.jpg,A\n")
    root = ("--root", here / "gallery" / "tower", "--allow-removals", "--dry-run")
    assert lmk("index", "sync", "sample.lmk", "t.csv", *root).code == 0  # the way out


def test_debug_shows_the_traceback_of_an_error(lmk: Run, lmk_process: Run, here: Path) -> None:
    from lmk.cli.main import main

    with pytest.raises(UsageError, match="no such folder or file"):
        main(["build-index", "nowhere", "--debug"])
    shown = lmk_process("--debug", "build-index", "nowhere", cwd=here)
    assert shown.code == 1
    assert "Traceback" in shown.err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("it\nbroke"), "lmk: RuntimeError: it broke; run it again with --debug"),
        (RuntimeError(), "lmk: RuntimeError: RuntimeError; run it again with --debug"),
        (OSError(errno.ENOSPC, "No space", "/x"), "lmk: /x: no space left; free some"),
        (OSError(errno.ENOSPC, "No space"), "lmk: the output: no space left; free some"),
        (OSError(errno.EIO, "I/O error", "/x"), "lmk: /x: cannot be used: i/o error; check the"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "lmk: x: cannot be used: perm"),
        (OSError(errno.ESTALE, "Stale file handle", b"/x"), "lmk: /x: cannot be used: stale"),
        (OSError(errno.EIO, "I/O error"), "lmk: OSError: "),
        (LmkError("it failed", where="x"), "lmk: x: it failed"),
    ],
)
def test_an_error_nobody_foresaw_is_one_line_too(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    from lmk.cli.main import main
    from lmk.index.gallery.gallery import Gallery

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Gallery, "open", fail)
    done = lmk("info", "sample.lmk")
    done.refused(1)
    assert done.err.startswith(words)
    with pytest.raises(type(error)):
        main(["info", "sample.lmk", "--debug"])


def test_ctrl_c_is_one_line_and_exit_code_130(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmk.index.gallery.gallery import Gallery

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Gallery, "open", interrupt)
    lmk("info", "sample.lmk").refused(130, "stopped")
