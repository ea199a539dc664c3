"""Commands in messages: each one exists, with its options, and paths in it are quoted."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lmk.cli.main import _COMMANDS, cli
from lmk.embed import errors
from lmk.embed.errors import GalleryError, LmkError
from lmk.embed.shell_words import shell_word

ROOT = Path(__file__).parent.parent
FOLDERS = ("embed", "index", "rerank", "eval", "cli")
VALUE = "\0"  # in place of what an f-string fills in
ERRORS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, LmkError)
}
NAMES = "|".join(sorted(_COMMANDS, key=len, reverse=True))
CALL = re.compile(rf"\blmk ({NAMES})(?![\w-])([^`;,]*)")
OPTION = re.compile(r"(?<!\S)(--[a-z][a-z-]*|-[a-zA-Z])(?![\w-])")


def text_of(node: ast.expr) -> str:
    """The text of a string, of an f-string with VALUE for its values, or of both joined."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return VALUE
    return ""


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the text of every string, but docstrings and parts of other strings."""
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    inner |= {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in inner:
            yield node.lineno, text_of(node)


def remedies(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts given as `remedy=`, assigned to `remedy`, or first in a call of an error."""
    for node in ast.walk(tree):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            values = [word.value for word in node.keywords if word.arg == "remedy"]
            if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                values += node.args[:1]
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any("remedy" in ast.unparse(target).lower() for target in targets):
                values = [node.value]
        for value in values:
            yield from messages(value)


def calls(texts: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for line, text in texts:
        for found in CALL.finditer(" ".join(text.split())):
            yield line, found[1] + found[2]


def fault(call: str) -> str | None:
    """What is wrong with a call that a message names; None where it can be typed."""
    words = call.split()
    command: click.Command | None = cli
    context = click.Context(cli)
    named = []
    while isinstance(command, click.Group) and words:
        if not re.match(r"[a-z][a-z-]*(?![\w-])", words[0]):
            break
        name = re.match(r"[a-z-]+", words.pop(0))
        assert name is not None
        named.append(name[0])
        command = command.get_command(context, name[0])
    if command is None:
        return f"no command {' '.join(named)}"
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    known |= {"-h", "--help", "--debug"}
    unknown = [option for option in OPTION.findall(" ".join(words)) if option not in known]
    return f"{' '.join(named)} has no {unknown[0]}" if unknown else None


@functools.cache
def trees() -> list[tuple[str, ast.Module]]:
    """The path and the syntax tree of every file that speaks of a command."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    texts = {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in files}
    return [(path, ast.parse(text)) for path, text in texts.items() if "lmk " in text]


def found() -> Iterator[tuple[str, str, bool]]:
    """Where each call is, the call, and whether it is in a remedy."""
    for path, tree in trees():
        in_remedies = set(calls(remedies(tree)))
        for line, call in set(calls(messages(tree))) | in_remedies:
            yield f"{path}:{line}", call, (line, call) in in_remedies


def test_commands_in_messages_exist() -> None:
    calls_found = list(found())
    assert sum(in_remedy for _, _, in_remedy in calls_found) >= 30
    assert len(calls_found) >= 60
    faults = [f"{where}: {text}" for where, call, _ in calls_found if (text := fault(call))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("index push", None),
        (f"index list {VALUE} --pictures` shows", None),
        ("index frob X", "no command index frob"),
        ("query --frob", "query has no --frob"),
        ("index list --label X -q", "index list has no -q"),
    ],
)
def test_faults_are_found(call: str, text: str | None) -> None:
    assert fault(call) == text


def test_values_in_commands_are_quoted() -> None:
    """A path is filled into a command by `shell_word` alone."""
    paths = re.compile(r"(index|out|path|folder|root|uri|collection|source|pictures)$")
    seen, faults = 0, []
    for path, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.JoinedStr):
                continue
            before = ""
            for part in node.values:
                in_call = re.search(rf"\blmk ({NAMES})(?![\w-])[^`;,]*$", before)
                if isinstance(part, ast.FormattedValue) and in_call:
                    value = ast.unparse(part.value)
                    seen += value.startswith("shell_word(")
                    if paths.search(value):
                        faults.append(f"{path}:{part.lineno}: {value}")
                before += text_of(part)
    assert seen >= 12
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", ["plain.lmk", "my index.lmk", "it's.lmk", "a;b", "$HOME"])
def test_a_word_of_a_shell(path: str) -> None:
    assert shlex.split(f"lmk index info {shell_word(Path(path))}") == ["lmk", "index", "info", path]
    assert shell_word("plain.lmk") == "plain.lmk"


def test_a_remedy_for_an_index_with_a_blank_can_be_typed(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from lmk.index.milvus.collection import check_belongs

    gallery = SimpleNamespace(path=tmp_path / "my index.lmk", created="a", fingerprint="b")
    mark = SimpleNamespace(gallery="other", fingerprint="b")
    server = SimpleNamespace(uri="http://x:1", place=str)
    with pytest.raises(GalleryError) as raised:
        check_belongs(mark, gallery, server, "name")  # type: ignore[arg-type]
    typed = re.findall("`(.+?)`", str(raised.value))
    assert shlex.split(typed[0])[3] == str(gallery.path)
