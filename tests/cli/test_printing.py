"""Nothing from a file acts on the terminal, and every command prints through one place."""

from __future__ import annotations

import ast
import io
import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from lmk.cli.main import main
from lmk.cli.printing import echo, echo_fields, echo_json, echo_lines
from lmk.cli.progress import DownloadProgress
from lmk.embed.errors import LmkError
from lmk.embed.gldv2.dataset import Item
from lmk.embed.printable import json_escaped, printable

ROOT = Path(__file__).parents[2]
LIBRARY = ("cli", "embed", "index", "rerank", "eval")
ATTACKS = {
    "\x1b[31mred": r"\x1b[31mred",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x9b2J": r"\x9b2J",
    "a\rb": r"a\rb",
    "a\nlmk: all is well": r"a\nlmk: all is well",
    "a\tb": r"a\tb",
    "\x7f\x08\x00": r"\x7f\x08\x00",
    "\x85\u2028\u2029": r"\x85\u2028\u2029",
    "\u202egpj.exe": r"\u202egpj.exe",
    "\u2066x\u2069": r"\u2066x\u2069",
    "\u200bx\ufeff": r"\u200bx\ufeff",
    "\udcff": r"\udcff",
    "\U000e0041": r"\U000e0041",
}
UNTOUCHED = ("Köln_Dom", "می‌خواهم", "東京タワー", "[red]x[/]", r"C:\new", "👩‍👩‍👧", "שלום\u200f")


@pytest.mark.parametrize(("given", "shown"), ATTACKS.items())
def test_what_acts_on_a_terminal_is_escaped(given: str, shown: str) -> None:
    assert printable(given) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize("given", UNTOUCHED)
def test_names_of_any_script_stay(given: str) -> None:
    assert printable(given) == given
    assert json_escaped(given) == given


def test_no_control_or_separator_is_forgotten() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    left = {unicodedata.category(each) for each in printable(every)}
    assert not left & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(each) for each in printable(every)} & {
        *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    }


def test_json_is_escaped_and_reads_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    value = {given: [given] for given in (*ATTACKS, *UNTOUCHED)}
    echo_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert out.count("\n") == 1
    assert printable(out.rstrip("\n")) == out.rstrip("\n")


def test_lines_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a\nb\x1b", err=True)
    echo_lines(["a\nb", "", "c"])
    echo_fields("a\tb", "c")
    assert capsys.readouterr() == ("a\\nb\n\nc\na\\tb\tc\n", "a\\nb\\x1b\n")


def test_errors_are_one_harmless_line() -> None:
    error = LmkError("is\n wrong\x1b[2J", where="a  b\n\x1b]0;x\x07.jpg", remedy="try\nagain")
    assert str(error) == r"a  b\n\x1b]0;x\x07.jpg: is wrong\x1b[2J; try again"


@pytest.mark.parametrize("words", [("query", "\x1b[2Jno\n.jpg"), ("\x1b[2J",), ("info", "--\x9b")])
def test_wrong_calls_print_no_escapes(lmk: Callable[..., object], words: tuple[str, ...]) -> None:
    done = lmk(*words)
    assert "\x1b" not in done.err and "\x9b" not in done.err  # type: ignore[attr-defined]
    assert len(done.complaints) == 1  # type: ignore[attr-defined]


def test_a_traceback_prints_no_escapes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with pytest.raises(LmkError) as raised:
        main(["--debug", "info", "\x1b[2J.lmk"])
    sys.excepthook(raised.type, raised.value, raised.tb)
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and r"\x1b[2J.lmk: " in err and "\x1b" not in err


def test_an_index_of_hostile_names(
    here: Path, tiny: Path, paint: Callable[..., Path], lmk: Callable[..., object]
) -> None:
    """Labels, ids and paths with escape sequences: nothing of them is printed as it is."""
    for seed, name in enumerate(("\x1b[2Jx", "a\u202eb", "[red]", "plain\nlmk: hacked")):
        for view in range(2):
            paint(here / "hostile" / name / f"\x1b]0;{seed}\x07{view}.jpg", seed, view)
    (here / "hostile" / "plain\nlmk: hacked" / "broken\x9b.jpg").write_bytes(b"no picture")
    query = here / "hostile" / "\x1b[2Jx" / "\x1b]0;0\x070.jpg"
    runs = (
        ("build-index", "hostile", "-o", "h.lmk", "--model", tiny),
        ("query", query, "-i", "h.lmk"),
        ("query", query, "-i", "h.lmk", "--json"),
        ("info", "h.lmk"),
        ("index", "list", "h.lmk"),
        ("index", "list", "h.lmk", "--pictures"),
        ("index", "list", "h.lmk", "--pictures", "--json"),
        ("index", "list", "h.lmk", "--label", "\x1b[31m"),
        ("index", "remove", "h.lmk", "\x1b[31m"),
        ("submit", "hostile", "-i", "h.lmk", "-o", "s.csv"),
        ("data", "check", "hostile", "--model", tiny),
        ("eval", "gap", "s.csv", "solution.csv"),
    )
    for words in runs:
        done = lmk(*words)
        for line in (done.out + done.err).split("\n"):  # type: ignore[attr-defined]
            assert printable(line.replace("\t", "")) == line.replace("\t", ""), words
            assert not line.startswith("lmk: hacked"), words


def test_bars_and_downloads_show_names_as_they_are() -> None:
    console = Console(file=io.StringIO(), soft_wrap=True)
    progress = DownloadProgress(console)
    error = LmkError("[red]\x1b[2J :smile:", where="x")
    progress.item_ended(Item("train/[/]\x1b.tar", "missing", error=error))
    assert console.file.getvalue() == "train/[/]\\x1b.tar: x: [red]\\x1b[2J :smile:\n"  # type: ignore[attr-defined]


def _printing_calls(tree: ast.AST) -> list[str]:
    """Calls that write to the terminal, with their line."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        cleaned = bool(node.args) and ast.unparse(node.args[0]).startswith("printable(")
        printing = called == "print" or called.endswith((".print", ".secho", "echo_via_pager"))
        printing |= called in ("click.echo", "os.write") or called.startswith(
            ("sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer", "sys.stderr.buffer")
        )
        constant = called == "os.write" and isinstance(node.args[1], ast.BinOp | ast.Constant)
        if printing and not cleaned and not constant:
            found.append(f"{node.lineno}: {called}")
    return found


def test_nothing_prints_around_the_one_place() -> None:
    found = {}
    for folder in LIBRARY:
        for file in sorted((ROOT / folder).rglob("*.py")):
            calls = _printing_calls(ast.parse(file.read_text("utf-8")))
            if calls and file != ROOT / "cli" / "printing.py":
                found[file.relative_to(ROOT).as_posix()] = calls
    assert found == {}
    assert _printing_calls(ast.parse("click.echo(x)\nprint(x)\nself._console.print(x)"))
