"""Old names of options and commands, which still work, are hidden, and print a note."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from lmk.cli.printing import echo


def old_options(**new_names: str) -> dict[str, Any]:
    """Returns the context settings of a command whose options have old names.

    Args:
        **new_names: the new name of each option by its old name. Names have no leading dashes
            and "_" for "-": `@click.command(context_settings=old_options(out="output"))`.
    """
    names = {_dashed(old): _dashed(new) for old, new in new_names.items()}

    def renamed(name: str) -> str:
        """Returns the new name of an option, and prints a note if `name` is an old name."""
        if name not in names:
            return name
        echo(f"lmk: --{name} is now called --{names[name]}", err=True)
        return names[name]

    return {"token_normalize_func": renamed}


class GroupWithOldNames(click.Group):
    """A click group in which commands can have an old name too.

    Args:
        old_names: the new name of each renamed command by its old name.
        **settings: the arguments of click.Group.
    """

    def __init__(self, *, old_names: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self._old_names = old_names

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command with a name, and prints a note if the name is old."""
        new = self._old_names.get(cmd_name)
        if new is not None:
            group = ctx.command_path
            echo(f"lmk: `{group} {cmd_name}` is now called `{group} {new}`", err=True)
        return super().get_command(ctx, new or cmd_name)


def _dashed(name: str) -> str:
    return name.replace("_", "-")
