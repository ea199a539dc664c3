"""The `lmk` command, which runs a sub-command and reports each error in one line.

Each command imports heavy modules only when it runs, so that `lmk --help` is fast.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import sys
import warnings
from types import TracebackType

import click

from lmk.cli.printing import echo, echo_lines, printed_notices
from lmk.embed import interrupts
from lmk.embed.errors import LmkError, system_error_text
from lmk.embed.memory_errors import memory_error

DISTRIBUTION = "lmk-landmarks"
# Sections of `lmk --help`: name -> (module, attribute, short help).
_SECTIONS = {
    "Start": {
        "demo": ("answer.demo", "demo", "Build, query and score the sample gallery."),
        "build-index": ("index.build", "build_index", "Build an index from labelled pictures."),
        "query": ("answer.query", "query", "Name the landmark in a picture, if any."),
        "tag": ("tags.tag", "tag", "Name the things in pictures by tags."),
    },
    "Keep": {"index": ("index.group", "index", "Change, check, list or search an index.")},
    "Improve": {
        "calibrate": ("answer.calibrate", "calibrate", "Fit the threshold and the probabilities."),
        "tune": ("answer.tune", "tune", "Choose the best steps on labelled photos."),
        "tag-thresholds": ("tags.thresholds", "tag_thresholds", "Fit the thresholds of tags."),
        "train": ("train.train", "train", "Train an embedder."),
        "export": ("train.export", "export", "Export an embedder's network."),
    },
    "Contests": {
        "submit": ("answer.submit", "submit", "Write a contest's CSV file of answers."),
        "eval": ("eval.group", "evaluate", "Score a submission by the contest's rules."),
    },
    "Data": {"data": ("data.group", "data", "Download, check and label pictures.")},
}
_ALIASES = {"info": ("index.info", "info", "Show what an index contains.")}  # `lmk index info`
_COMMANDS = {name: command for section in _SECTIONS.values() for name, command in section.items()}


class _LazyGroup(click.Group):
    """A click group that imports the module of a command when the command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name) or _ALIASES.get(cmd_name)
        if entry is None:
            return None
        module, attribute, _ = entry
        command: click.Command = getattr(importlib.import_module(f"lmk.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, _, text) in commands.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        echo(f"lmk {version(DISTRIBUTION)}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Start with: lmk build-index gallery/ (one sub-folder for each landmark), then: "
    "lmk query photo.jpg",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version.",
)
def cli(debug: bool) -> None:
    """Recognise landmarks in photos by retrieval; answer "none of these" for other photos."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits.

    Exit codes: 0 for success; 1 if the work failed or a check has findings; 2 for a wrong call;
    130 if the user interrupted. click handles a closed pipe, as in `lmk query ... | head`.

    Args:
        arguments: the arguments of the command. None means the arguments of this process, and
            lmk.embed.interrupts then handles Ctrl-C.
    """
    if arguments is None:
        interrupts.install()
        arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # "lmk query --debug" has the same effect as "lmk --debug query".
    arguments = [word for word in arguments if word != "--debug"]
    if "" in arguments:  # An empty path would stand for the working directory.
        text = "an argument is empty; look for a shell variable that is not set"
        sys.exit(_failed(f"{text}; see: lmk --help", 2))
    if isinstance(sys.stdout, io.TextIOWrapper):  # A file's name need not be valid UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Pillow warns about broken tags and pictures of more than 89 million pixels, but names no file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with printed_notices():
            code = _flush(_run(arguments, debug=debug))
        if code != interrupts.EXIT_CODE:
            interrupts.check()  # A library may have swallowed an interrupt.
    except KeyboardInterrupt:
        echo("lmk: stopped", err=True)
        code = interrupts.EXIT_CODE
    interrupts.ending()
    sys.exit(code)


def _flush(code: int) -> int:
    """Flushes stdout, and returns the exit code."""
    if sys.stdout is None:  # The shell closed stdout: >&-
        return code
    try:
        sys.stdout.flush()
    except OSError as error:  # Python would flush again at exit and print a traceback.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if error.errno == errno.EPIPE:  # The reader closed the pipe.
            return code or 1
        return code or _failed(_unexpected(error), 1)
    return code


def _run(arguments: list[str], *, debug: bool) -> int:
    """Runs a command, prints the error of a failure, and returns the exit code."""
    try:
        code = cli.main(arguments, prog_name="lmk", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()  # `show` prints the help.
        return error.exit_code
    except click.ClickException as error:
        return _failed(_wrong_call(error), error.exit_code)
    except click.Abort as error:  # click turns KeyboardInterrupt into Abort.
        raise KeyboardInterrupt from error
    except Exception as error:
        interrupts.raise_interrupt(error)
        if debug:
            sys.excepthook = _print_traceback
            raise
        if isinstance(error, LmkError):
            return _failed(str(error), error.exit_code)
        return _failed(_unexpected(error), 1)
    return code if isinstance(code, int) else 0


def _failed(text: str, code: int) -> int:
    echo(f"lmk: {text}", err=True)
    return code


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints an exception as Python does, with control characters escaped."""
    import traceback

    for part in traceback.format_exception(kind, error, trace):
        echo_lines(part.splitlines(), err=True)


def _wrong_call(error: click.ClickException) -> str:
    """Returns one line of text for an error that click detected in the call."""
    text = " ".join(error.format_message().split()).rstrip(".")
    text += _nearest_command(error)
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{text}; see: {context.command_path if context else 'lmk'} --help"


def _nearest_command(error: click.ClickException) -> str:
    """Returns a question that names the command nearest to an unknown one, or ""."""
    unknown = re.match(r"No such command '(.*)'", error.format_message(), re.DOTALL)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if unknown is None or context is None or not isinstance(context.command, click.Group):
        return ""
    if "Did you mean" in error.format_message():
        return ""
    import difflib

    near = difflib.get_close_matches(unknown[1], context.command.list_commands(context), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _unexpected(error: Exception) -> str:
    """Returns one line of text for an unexpected error, such as a full disk."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'the output'}: no space left; free some and run it again"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open; raise the limit (ulimit -n) and run it again"
    if (no_memory := memory_error(error)) is not None:
        return str(no_memory)
    if isinstance(error, OSError) and (text := system_error_text(error)):
        return text
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text}; run it again with --debug to see where"
