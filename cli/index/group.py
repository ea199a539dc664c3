"""The command group `lmk index`."""

from __future__ import annotations

import click

from lmk.cli.index.change import add, compact, merge, remove
from lmk.cli.index.health import repair, verify
from lmk.cli.index.hits import hits
from lmk.cli.index.info import info, list_
from lmk.cli.index.labels import relabel, rename_label
from lmk.cli.index.milvus import push
from lmk.cli.index.search import search, set_
from lmk.cli.index.sync import sync
from lmk.cli.old_names import GroupWithOldNames


@click.group(cls=GroupWithOldNames, old_names={"picks": "hits"})
def index() -> None:
    """Change, check, list or search an index."""


for command in (
    *(info, list_, add, remove, relabel, rename_label, sync, merge, compact, verify, repair),
    *(search, push, hits, set_),
):
    index.add_command(command)
