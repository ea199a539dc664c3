"""README: every command is in it, every line of it can be typed, its Python runs."""

from __future__ import annotations

import ast
import copy
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lmk.cli.main import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(
    group: click.Group = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by what is typed: ("eval gap", ...)."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def groups(group: click.Group = cli) -> Iterator[click.Group]:
    context = click.Context(group)
    yield group
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from groups(command)


COMMANDS = dict(commands())


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in fenced if language in languages]


def typed_lines(page: Path) -> list[str]:
    """The lines of shell blocks that call lmk."""
    lines = []
    for block in blocks(page, "shell", "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if words.startswith("lmk "):
                lines.append(words.partition(" #")[0])
    return lines


def check_call(line: str) -> None:
    """Parses a call as click would, without running it; paths need not exist."""
    words = shlex.split(line)[1:]
    if words == ["--version"] or "--help" in words:
        return
    group: click.Command = cli
    context = click.Context(cli, info_name="lmk")
    while isinstance(group, click.Group):
        name = words.pop(0)
        command = group.get_command(context, name)
        assert command is not None, f"no command {name!r} in: {line}"
        settings = command.context_settings
        context = click.Context(command, parent=context, info_name=name, **settings)
        group = command
    group.make_parser(context).parse_args(list(words))
    group = copy.copy(group)  # the command itself is for the other tests too
    group.params = [copy.copy(parameter) for parameter in group.params]
    for parameter in group.params:
        if isinstance(parameter.type, click.Path):
            parameter.type = click.Path()  # the folders of the page are not here
    group.make_context(group.name, list(words), parent=context)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_text_with_an_example_that_can_be_typed(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert len(command.help.split("\n\n")) >= 2
    examples = re.findall(r"^ *Example: (lmk .+)$", command.help, re.MULTILINE)
    assert len(examples) == 1, f"lmk {name} --help has no line 'Example: lmk ...'"
    assert examples[0].startswith(f"lmk {name}")
    check_call(examples[0])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option) and parameter.name != "split":
            assert parameter.help, f"lmk {name} {parameter.opts[0]}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"lmk {name}" in (ROOT / "README.md").read_text("utf-8")


def test_every_group_says_what_it_is_for() -> None:
    assert all(group.help for group in groups())


def test_the_list_of_commands_names_each_once() -> None:
    context = click.Context(cli)
    shown = cli.get_help(context)
    for name in cli.list_commands(context):
        assert len(re.findall(rf"^  {name} ", shown, re.MULTILINE)) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_of_the_page_can_be_typed(page: Path) -> None:
    for line in typed_lines(page):
        check_call(line)


def test_the_readme_has_calls_to_check() -> None:
    assert len(typed_lines(ROOT / "README.md")) >= 6
    with pytest.raises(click.NoSuchOption):
        check_call("lmk query photo.jpg --no-such-option")
    with pytest.raises(click.MissingParameter):
        check_call("lmk submit queries/")
    with pytest.raises(AssertionError, match="no command 'frob'"):
        check_call("lmk frob x")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_of_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def walks() -> dict[str, list[tuple[str, str]]]:
    """The stops (file, name) of each walk of docs/how-it-works.md, by its title."""
    text = (ROOT / "docs" / "how-it-works.md").read_text("utf-8")
    sections = re.findall(r"^### (.+?)\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL)
    stop = re.compile(r"^\d+\. `(\S+\.py): (\w+)`", re.MULTILINE)
    return {title: stop.findall(body) for title, body in sections}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_script_that_a_page_names_exists(page: Path) -> None:
    """Pages name the test or the benchmark that shows a figure."""
    named = re.findall(r"(?:tests|benchmarks)/[\w/]+\.py", page.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_file_and_function_that_how_it_works_names_exists() -> None:
    text = (ROOT / "docs" / "how-it-works.md").read_text("utf-8")
    named = re.findall(r"`(\S+\.py): (\w+)`", text)
    assert len(named) >= 50
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        kinds = ast.FunctionDef | ast.ClassDef
        names = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
        assert name in names, f"{file} has no {name}"


def test_each_walk_is_short_and_never_steps_back_to_an_earlier_folder() -> None:
    order = ["embed", "index", "rerank", "eval", "cli"]
    assert len(walks()) == 5
    for title, stops in walks().items():
        assert 5 <= len(stops) <= 15, title
        folders = [order.index(file.partition("/")[0]) for file, _ in stops]
        assert folders == sorted(folders), title


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder with a small gallery/ and a photo.jpg, as a reader would have them."""
    for place in ("corvin_tower", "kasane_pagoda", "orbit_wheel"):
        (tmp_path / "gallery" / place).mkdir(parents=True)
        for file in sorted((ROOT / "examples" / "gallery" / place).iterdir())[:4]:
            shutil.copy(file, tmp_path / "gallery" / place)
    photo = sorted((ROOT / "examples" / "gallery" / "orbit_wheel").iterdir())[6]
    shutil.copy(photo, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    python = blocks(ROOT / "README.md", "python")
    assert python
    for block in python:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert "orbit_wheel" in capsys.readouterr().out
