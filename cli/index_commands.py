"""`lmk index`: the group, and what belongs to it."""

from __future__ import annotations

import click

from lmk.cli.index_change import add, compact, merge, remove
from lmk.cli.index_health import repair, verify
from lmk.cli.index_info import index_info, list_
from lmk.cli.index_labels import relabel, rename_label
from lmk.cli.index_milvus import push
from lmk.cli.index_picks import picks
from lmk.cli.index_search import search, set_
from lmk.cli.index_sync import sync


@click.group()
def index() -> None:
    """Change, check, list and search an index."""


for command in (
    *(index_info, list_, add, remove, relabel, rename_label, sync, merge, compact, verify, repair),
    *(search, push, picks, set_),
):
    index.add_command(command)
