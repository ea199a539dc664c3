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
