"""`lmk index info album` offers album.lmk, wherever a command takes an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from lmk.cli.index_path import IndexPath
from lmk.cli.main import cli


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(cli))
OTHERS = {  # arguments and options that may name something else than an index
    ("data check", "manifest"),
    ("index search", "queries"),
    ("query", "tagger"),
    ("tag", "tagger"),
    ("tag-thresholds", "tagger"),
}
WRITTEN = {("build-index", "index")}


def index_parameters() -> Iterator[tuple[str, click.Parameter]]:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            named = parameter.name in ("index", "indexes") and (name, parameter.name) not in WRITTEN
            if named or (name, parameter.name) in OTHERS:
                yield name, parameter


PARAMETERS = list(index_parameters())
IDS = [f"{name} {parameter.name}" for name, parameter in PARAMETERS]


def words(name: str, parameter: click.Parameter, value: str) -> list[str]:
    """A call in which the arguments before the parameter are there, and no other."""
    if isinstance(parameter, click.Option):
        return [*name.split(), parameter.opts[-1], value]
    arguments = [each for each in COMMANDS[name].params if isinstance(each, click.Argument)]
    return [*name.split(), *["album.lmk"] * arguments.index(parameter), value]


def test_every_parameter_that_may_be_an_index_is_of_the_type() -> None:
    found = {
        (name, parameter.name)
        for name, command in COMMANDS.items()
        for parameter in command.params
        if isinstance(parameter.type, IndexPath)
    }
    assert found == {(name, parameter.name) for name, parameter in PARAMETERS}
    assert len(found) >= 28


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS, ids=IDS)
def test_the_index_is_offered(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lmk: Callable[..., object],
    name: str,
    parameter: click.Parameter,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "album.lmk").mkdir(parents=True)
    (tmp_path / "sub" / "album.lmk" / "catalog.db").write_bytes(b"")
    call = words(name, parameter, "sub/album")
    text = "sub/album: there is no such folder; did you mean sub/album.lmk?"
    lmk(*call).refused(2, text)  # type: ignore[attr-defined]


def converted(value: str, kind: IndexPath) -> Path:
    path = kind.convert(value, None, None)
    assert isinstance(path, Path)
    return path


def test_the_pictures_beside_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lmk: Callable[..., object]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "album").mkdir()
    (tmp_path / "album.lmk").mkdir()
    (tmp_path / "album.lmk" / "catalog.db").write_bytes(b"")
    text = "album: this folder is no gallery; did you mean album.lmk?"
    lmk("info", "album").refused(2, text)  # type: ignore[attr-defined]
    lmk("info", "album/").refused(2, text)  # type: ignore[attr-defined]
    # Pictures are meant where pictures may be.
    assert converted("album", IndexPath(others=True)) == Path("album")


def test_what_is_no_name_of_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tags.lmk").mkdir()
    (tmp_path / "tags.lmk" / "catalog.db").write_bytes(b"")
    kind = IndexPath(others=True, names=("tags",))
    for value in ("tags", ".", "..", "/", "x" * 300, "other"):
        assert converted(value, kind) == Path(value)
    for value in (".", "/", "x" * 300, "tags.lmk", "other"):
        assert converted(value, IndexPath()) == Path(value)
