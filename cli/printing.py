"""Functions for all output of commands; ruff refuses click.echo and print elsewhere.

Names, labels, tags, paths and messages may come from untrusted files. Characters that could control
the terminal (escape sequences, line breaks, bidirectional overrides) are printed as escapes such as
`\\x1b`. JSON output contains these characters as JSON escapes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from lmk.embed.notices import LOGGER
from lmk.embed.printable import json_escaped, printable


def echo(text: str = "", *, err: bool = False) -> None:
    """Prints one line. A line break inside `text` is printed as an escape.

    Args:
        text: the line.
        err: whether to print on stderr.
    """
    click.echo(printable(text), err=err)


def echo_lines(lines: Iterable[str], *, err: bool = False) -> None:
    """Prints each of several lines with `echo`."""
    for line in lines:
        echo(line, err=err)


def echo_fields(*fields: str) -> None:
    """Prints fields separated by tabs. A tab inside a field is printed as an escape."""
    click.echo("\t".join(map(printable, fields)))


def echo_json(value: Any) -> None:
    """Prints a value as one line of JSON."""
    click.echo(json_escaped(json.dumps(value, ensure_ascii=False)))


@contextmanager
def printed_notices() -> Iterator[None]:
    """Prints the notices of the library on stderr, each once, while the context is open."""
    handler = _Printer()
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)


class _Printer(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._printed:
            self._printed.add(text)
            echo(f"lmk: {text}", err=True)
