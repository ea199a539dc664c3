"""The command group `lmk eval`."""

from __future__ import annotations

import click

from lmk.cli.eval.gap import compare, gap
from lmk.cli.eval.retrieval import retrieval, revisited
from lmk.cli.eval.tags import tags


@click.group("eval")
def evaluate() -> None:
    """Score submissions by the rules of the contests and benchmarks."""


for command in (gap, retrieval, revisited, tags, compare):
    evaluate.add_command(command)
