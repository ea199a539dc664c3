"""Ctrl-C ends a command with 130, also where a library loses it, or when pressed twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lmk.embed import interrupts

START = """
import os, signal, sys
from lmk.cli import main as program
def press(): os.kill(os.getpid(), signal.SIGINT)
def command(*_, **__):
{body}
program.cli.main = command
sys.argv = ["lmk"]
from lmk.cli.entry import run
run()
"""
COMMANDS = {
    "passed on": "press()",
    "lost in a callback": """
try: press()
except KeyboardInterrupt: pass
return 0""",
    "taken for another error": """
try: press()
except KeyboardInterrupt as error: raise ImportError("initialization failed") from error""",
    "through exec of a string": 'exec("press()", {"press": press})',
    "twice": """
try: press()
finally: press()""",
    "while another error is handled": """
try: raise OSError("x")
except OSError: press()""",
}
AT_EXIT = """
import atexit
atexit.register(press)
return 0"""


def run(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as `python -m lmk.cli` does: as a module."""
    indented = "\n".join(f"    {line}" for line in body.strip().splitlines())
    (folder / "stopped_program.py").write_text(START.format(body=indented))
    return subprocess.run(
        [sys.executable, "-m", "stopped_program"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("how", COMMANDS)
def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path, how: str) -> None:
    done = run(tmp_path, COMMANDS[how])
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "lmk: stopped")


def test_ctrl_c_while_python_ends_is_silent(tmp_path: Path) -> None:
    done = run(tmp_path, AT_EXIT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_nothing_is_committed_after_an_interrupt_that_got_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmk.index.gallery.gallery import Gallery
    from lmk.index.gallery.writer import GalleryWriter

    with GalleryWriter(tmp_path / "g", create=True) as writer:
        writer.reset("a" * 64, 8)
        writer.set("x", 1)
        writer.commit()
        writer.set("x", 2)
        monkeypatch.setattr(interrupts, "_count", 1)
        with pytest.raises(KeyboardInterrupt):
            writer.commit()
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.setting("x") == 1
