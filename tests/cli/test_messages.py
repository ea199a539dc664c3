"""Errors of the machine and of the call end in one line with the way out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmk.cli import main as main_module
from lmk.embed.errors import StorageError, storage_errors


def raised(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*words: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(main_module.cli, "main", fail)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_no_memory(
    lmk: Callable[..., object], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    raised(monkeypatch, error)
    lmk("info").refused(1, "not enough memory", "ulimit -v")  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files(
    lmk: Callable[..., object], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    raised(monkeypatch, OSError(number, "Too many open files"))
    lmk("info").refused(1, "too many files are open", "ulimit -n")  # type: ignore[attr-defined]


def test_no_inodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for files, free, text in ((100, 0, "no inodes left"), (100, 5, "no space"), (0, 0, "no space")):
        found = SimpleNamespace(f_files=files, f_ffree=free)
        monkeypatch.setattr(os, "statvfs", lambda path, found=found: found)
        full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a" / "b"))
        with pytest.raises(StorageError, match=text), storage_errors(tmp_path):
            raise full


@pytest.mark.parametrize(
    ("words", "near"),
    [(("qurey", "a.jpg"), "query"), (("index", "lst"), "list"), (("eval", "gapp"), "gap")],
)
def test_unknown_commands_get_the_nearest(
    lmk: Callable[..., object], words: tuple[str, ...], near: str
) -> None:
    done = lmk(*words)
    done.refused(2, f"{near}", "ean", "--help")  # type: ignore[attr-defined]


def test_a_command_like_no_other(lmk: Callable[..., object]) -> None:
    done = lmk("zzzz")
    done.refused(2, "No such command", "lmk --help")  # type: ignore[attr-defined]
    assert "ean" not in done.err  # type: ignore[attr-defined]


def test_notices_are_lines_of_lmk(lmk: Callable[..., object], here: Path) -> None:
    csv = here / "odd\x1b[2J.csv"
    csv.write_text("id,path,label\n1,queries/q_tower.jpg,nan\n")
    done = lmk("submit", csv, "-i", "sample.lmk", "-o", "s.csv")
    (notice,) = done.complaints  # type: ignore[attr-defined]
    assert notice.startswith("lmk: ") and "odd\\x1b[2J.csv: 1 cell says 'nan'" in notice


@pytest.mark.parametrize(
    "words", [("query", ""), ("query", "queries", "-i", ""), ("index", "sync", "sample.lmk", "")]
)
def test_an_empty_argument_is_not_the_working_directory(
    lmk: Callable[..., object], here: Path, words: tuple[str, ...]
) -> None:
    done = lmk(*words)
    done.refused(2, "an argument is empty", "shell variable")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words",
    [
        ("query", "queries", "-i", "sample"),
        ("info", "sample"),
        ("index", "list", "sample"),
        ("index", "verify", "sample"),
        ("index", "remove", "sample", "x"),
        ("index", "sync", "sample", "gallery"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_the_folder_of_pictures_is_not_its_index(
    lmk: Callable[..., object], here: Path, words: tuple[str, ...], there: bool
) -> None:
    if there:  # as `lmk build-index sample` leaves it: the folder and sample.lmk side by side
        (here / "sample").mkdir()
        (here / "sample" / "1.jpg").write_bytes(b"x")
    done = lmk(*words)
    done.refused(2, "sample: ", "did you mean sample.lmk?")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words",
    [
        ("submit", "https://x.org/a", "-o", "s.csv"),
        ("build-index", "https://x.org/a"),
        ("index", "add", "sample.lmk", "https://x.org/a"),
        ("index", "sync", "sample.lmk", "https://x.org/a"),
    ],
)
def test_a_url_is_named_as_it_was_given(
    lmk: Callable[..., object], here: Path, words: tuple[str, ...]
) -> None:
    done = lmk(*words)
    done.refused(2, "https://x.org/a: is a URL", "download")  # type: ignore[attr-defined]


def test_the_address_of_a_file_gives_its_path(lmk: Callable[..., object], here: Path) -> None:
    done = lmk("query", "file:///photos/my%20cat.jpg")
    words = ("file:///photos/my%20cat.jpg: is a URL", "name the path itself, /photos/my cat.jpg")
    done.refused(2, *words)  # type: ignore[attr-defined]
