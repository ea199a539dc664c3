"""The command `lmk index sync`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.index.notes import (
    echo_built,
    echo_conflicts,
    echo_duplicates,
    echo_shared,
    echo_unlabelled,
)
from lmk.cli.landmark_notes import echo_landmarks, echo_shape
from lmk.cli.options import PATH, index_command, root
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import counted, echo_skipped, first_of
from lmk.embed.shell_words import shell_word

if TYPE_CHECKING:
    from lmk.embed.extract.embedder import Embedder
    from lmk.rerank.indexing.build import BuildReport
    from lmk.rerank.indexing.removals import UnseenPictures
    from lmk.rerank.indexing.sync import SyncReport

_SHOWN = 10  # maximum number of folders or files that stderr names


@index_command(short_help="Bring an index up to date with a folder.")
@click.argument("pictures", type=PATH)
@click.option(
    "--distractors",
    type=PATH,
    metavar="FOLDER|CSV",
    help="Also bring the distractors up to date with this folder or CSV.",
)
@root
@click.option(
    "--model",
    metavar="NAME|DIR",
    help="Embed all pictures anew with this network, and keep the settings of the index.",
)
@click.option("--dry-run", is_flag=True, help="Print the changes without making them.")
@click.option(
    "--allow-removals",
    is_flag=True,
    help="Allow removing whole landmarks, or more than a fifth of the pictures.",
)
def sync(
    index: Path,
    pictures: Path,
    distractors: Path | None,
    root: Path | None,
    model: str | None,
    dry_run: bool,
    allow_removals: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Bring INDEX up to date with PICTURES: add new, replace changed, remove missing pictures.

    Only new and changed pictures are embedded. A picture stays in INDEX if its file cannot be
    accessed now: it is in a folder that is empty or cannot be read, behind a broken link, or
    damaged. The command stops without a change if it would remove whole landmarks or more than a
    fifth of the pictures, unless --allow-removals is given. If it is stopped, run it again: it
    continues.

    --model changes the network of an index: all pictures are embedded anew, and the index answers
    with the old network until the new vectors are complete.

    Example: lmk index sync gallery.lmk gallery/
    """
    from lmk.cli.progress import StageProgress
    from lmk.rerank.indexing.reembed import reembed_index
    from lmk.rerank.indexing.sync import sync_index

    manifest = read_pictures(pictures, root=root)
    echo_shape(manifest, pictures, lambda other: ["index", "sync", str(index), str(other)])
    distractor_manifest = None if distractors is None else read_pictures(distractors, root=root)
    embedder = None if model is None else _new_network(index, model)
    if embedder is not None and not dry_run:
        with StageProgress() as progress:
            built = reembed_index(
                index,
                manifest,
                embedder,
                distractors=distractor_manifest,
                allow_removals=allow_removals,
                wait=wait,
                on_progress=progress,
            )
        _echo_rebuilt(index, str(model), built, as_json=as_json)
        return
    with StageProgress() as progress:
        report = sync_index(
            index,
            manifest,
            distractors=distractor_manifest,
            wait=wait,
            dry_run=dry_run,
            allow_removals=allow_removals,
            on_progress=progress,
        )
    if as_json:
        facts = {"index": str(index), "dry_run": dry_run} | asdict(report)
        facts |= {} if embedder is None else {"model": model}
        echo_json(facts)
        return
    kept = {one.path for one in report.kept}
    skipped = [skip for skip in report.skipped if skip.path not in kept]
    echo_skipped(skipped, f"lmk index info {shell_word(index)} lists them")
    _echo_kept(report.kept)
    echo_duplicates(report.duplicates, takes="lmk index add --duplicates")
    echo_conflicts(index, report.conflicts, report.without_own)
    echo_shared(report.shared)
    if not manifest.labelled:
        echo_unlabelled(pictures, index)
    for verb, id_ in report.would:
        echo(f"{verb:8} {id_}")
    if report.asks and not allow_removals:
        echo(f"lmk: {_question(report)}", err=True)
    done = "dry run, nothing is changed: " * dry_run
    hidden = sum(one.pictures for one in report.kept)
    stay = f", {hidden:,} of them kept though they could not be looked at" if hidden else ""
    echo(
        f"{index}: {done}{report.added:,} added, {report.changed:,} changed, "
        f"{report.moved:,} moved, {report.relabelled:,} with other landmarks, "
        f"{report.removed:,} removed, {report.unchanged:,} unchanged{stay}"
    )
    if embedder is not None:
        pictures_text = counted(len(manifest) + len(distractor_manifest or ()), "picture")
        echo(f"{index}: {model} would embed {pictures_text} anew")
    if not dry_run:
        echo_landmarks(index)


def _new_network(index: Path, model: str) -> Embedder | None:
    """Returns the named embedder, or None if the index uses its network already."""
    from lmk.embed.extract.embedder import Embedder
    from lmk.rerank.indexing.reembed import uses_network

    embedder = Embedder.named(model)
    if uses_network(index, embedder):
        echo(f"lmk: {index} uses {model} already; only changes are embedded", err=True)
        return None
    return embedder


def _echo_rebuilt(index: Path, model: str, report: BuildReport, *, as_json: bool) -> None:
    """Prints the report of an index whose pictures were all embedded again."""
    if as_json:
        echo_json({"index": str(index), "model": model} | asdict(report))
        return
    echo_built(index, report)
    others = f" and {counted(report.distractors, 'distractor')}" * bool(report.distractors)
    echo(
        f"{index}: {counted(report.pictures, 'picture')}{others} embedded anew by {model} "
        f"({report.computed:,} newly computed)"
    )
    echo_landmarks(index)


def _echo_kept(kept: Sequence[UnseenPictures]) -> None:
    """Prints on stderr the pictures that stay although their files cannot be accessed."""
    for one in kept[:_SHOWN]:
        echo(f"lmk: kept {counted(one.pictures, 'picture')} of {one.path}: {one.reason}", err=True)
    if len(kept) > _SHOWN:
        pictures = counted(sum(one.pictures for one in kept[_SHOWN:]), "more picture")
        echo(f"lmk: kept {pictures} that could not be looked at", err=True)
    if kept:
        echo("lmk: if these pictures are gone for good, `lmk index remove` removes them", err=True)


def _question(report: SyncReport) -> str:
    """Returns the warning of a dry run that the actual sync will stop."""
    names = report.vanishing
    whole = f", all of {first_of(names, _SHOWN)} among them" if names else ""
    pictures = counted(report.removed, "picture")
    return f"this removes {pictures}{whole}: the sync will stop unless --allow-removals is given"
