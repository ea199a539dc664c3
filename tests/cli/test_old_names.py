"""Old names of options and commands: they work, and a note on stderr names the new one."""

from __future__ import annotations

import click
import pytest

from lmk.cli.main import cli
from lmk.cli.old_names import GroupWithOldNames, old_options

OLD_OPTIONS = [
    ("build-index", "--precision", "--dtype"),
    ("data gldv2", "--out", "--output"),
    ("train", "--out", "--output"),
]


def command_of(words: str) -> tuple[click.Command, click.Context]:
    command: click.Command = cli
    context = click.Context(cli, info_name="lmk")
    for word in words.split():
        assert isinstance(command, click.Group)
        child = command.get_command(context, word)
        assert child is not None
        command = child
        context = click.Context(command, parent=context, info_name=word)
    return command, context


@pytest.mark.parametrize(("words", "old", "new"), OLD_OPTIONS)
def test_an_old_option_is_read_as_the_new_one_with_one_note(
    words: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, context = command_of(words)
    settings = command.context_settings
    with command.context_class(command, **settings) as fresh:
        now, _, _ = command.make_parser(fresh).parse_args([new, "f32"])
        assert capsys.readouterr().err == ""
        before, _, _ = command.make_parser(fresh).parse_args([f"{old}=f32"])
    assert before == now
    assert capsys.readouterr().err == f"lmk: {old} is now called {new}\n"
    assert old not in command.get_help(context).split()


def test_an_old_command_runs_the_new_one_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    group, context = command_of("index")
    assert isinstance(group, GroupWithOldNames)
    assert group.get_command(context, "picks") is group.commands["hits"]
    assert capsys.readouterr().err == "lmk: `lmk index picks` is now called `lmk index hits`\n"
    assert "picks" not in group.list_commands(context)


def test_names_of_several_words_and_names_that_are_none() -> None:
    renamed = old_options(far_off="near_by")["token_normalize_func"]
    assert renamed("far-off") == "near-by"
    assert renamed("other") == "other"


def test_build_index_shows_at_most_fifteen_options_and_takes_the_hidden_ones() -> None:
    command, context = command_of("build-index")
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert sum(not each.hidden for each in options) <= 15
    hidden = ["--kind", "exact", "--recall", "0.9", "--allow-removals"]
    parsed = command.make_context("build-index", ["gallery", *hidden], parent=context.parent).params
    assert (parsed["kind"], parsed["recall"], parsed["allow_removals"]) == ("exact", 0.9, True)
