"""The commands `lmk index add`, `remove`, `merge` and `compact`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from lmk.cli.index.notes import (
    echo_conflicts,
    echo_duplicates,
    echo_relabelled,
    echo_shared,
    echo_unlabelled,
)
from lmk.cli.index_path import INDEX
from lmk.cli.landmark_notes import echo_landmarks, echo_shape
from lmk.cli.options import PATH, as_json, duplicates, index_command, root, wait
from lmk.cli.pictures import echo_similar_labels, read_pictures
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import counted, echo_skipped
from lmk.embed.errors import UsageError
from lmk.embed.shell_words import shell_word


@index_command(short_help="Add pictures.")
@click.argument("pictures", type=PATH)
@click.option("--distractors", is_flag=True, help="PICTURES show none of the landmarks.")
@click.option(
    "--label",
    metavar="NAME",
    help="The landmark that all PICTURES show, for a folder without sub-folders.",
)
@root
@duplicates
def add(
    index: Path,
    pictures: Path,
    distractors: bool,
    label: str | None,
    root: Path | None,
    duplicates: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Add PICTURES to INDEX: a folder with one sub-folder for each landmark, or a CSV.

    A picture that INDEX already holds is not added again; if its landmark differs, INDEX takes
    the new landmark. A picture whose file has changed is an error: use `lmk index sync`.

    Example: lmk index add gallery.lmk new-pictures/
    """
    from lmk.cli.progress import StageProgress
    from lmk.embed.data.one_landmark import with_landmark
    from lmk.rerank.indexing.build import add_pictures

    if label is not None and distractors:
        raise click.UsageError("--label and --distractors exclude each other")
    manifest = read_pictures(pictures, root=root)
    if label is not None:
        manifest = with_landmark(manifest, label, source=pictures)
    elif not distractors:
        echo_shape(manifest, pictures, lambda other: ["index", "add", str(index), str(other)])
    if not distractors:
        echo_similar_labels(manifest, pictures, index)
    with StageProgress() as progress:
        report = add_pictures(
            index,
            manifest,
            role="distractor" if distractors else "gallery",
            duplicates=duplicates,
            wait=wait,
            on_progress=progress,
        )
    if as_json:
        echo_json({"index": str(index)} | asdict(report))
        return
    echo_skipped(report.skipped, f"lmk index info {shell_word(index)} lists them")
    echo_duplicates(report.duplicates)
    echo_relabelled(report.relabelled)
    echo_conflicts(index, report.conflicts, report.without_own)
    echo_shared(report.shared)
    if report.added and not distractors and not manifest.labelled:
        echo_unlabelled(pictures, index, addable=True)
    noun = "distractor" if distractors else "picture"
    other = f", {len(report.relabelled):,} with other landmarks" if report.relabelled else ""
    echo(
        f"{index}: {counted(report.added, noun)} added{other}, "
        f"{report.unchanged:,} were there unchanged"
    )
    if not distractors:
        echo_landmarks(index)


@index_command(short_help="Remove pictures by id or landmark.")
@click.argument("ids", nargs=-1)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME",
    help="Remove all pictures of this landmark. Repeat the option for several landmarks.",
)
@click.option(
    "--from",
    "listed",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help='A file with an id on each line; "-" reads them from stdin.',
)
def remove(
    index: Path,
    ids: tuple[str, ...],
    labels: tuple[str, ...],
    listed: Path | None,
    wait: float,
    as_json: bool,
) -> None:
    """Remove pictures from INDEX by their IDS, as `lmk index list --pictures` shows them.

    The picture files are not deleted. It is no error to remove an id twice, so the command may be
    run again. An id or landmark that INDEX never had is an error, and then nothing is removed. The
    row numbers of other pictures do not change; `lmk index compact` frees the space.

    Example: lmk index remove gallery.lmk eiffel_tower/1.jpg --label big_ben
    """
    import numpy as np

    from lmk.cli.progress import StageProgress
    from lmk.index.gallery.gallery import Gallery
    from lmk.rerank.indexing.build import remove_pictures

    wanted = list(ids)
    if listed is not None:
        wanted += _lines(listed)
    emptied: list[str] = []
    if labels:
        with Gallery.open(index) as gallery:
            known = gallery.label_names
            emptied = [name for name in labels if name not in known and gallery.had_label(name)]
            left = [name for name in labels if name not in emptied]
            wanted += gallery.ids(np.flatnonzero(gallery.view().allowed(left)))
    wanted = list(dict.fromkeys(wanted))
    if not wanted and not emptied:
        raise UsageError(
            "no picture is named", where=index, remedy="name ids, or use --label or --from"
        )
    with StageProgress() as progress:
        removed = remove_pictures(index, wanted, wait=wait, on_progress=progress)
    if as_json:
        echo_json({"index": str(index)} | asdict(removed))
    else:
        for label in emptied:
            echo(f"lmk: no picture is left of {label}: it was removed before", err=True)
        before = f", {len(removed.earlier):,} removed before" if removed.earlier else ""
        echo(f"{index}: {counted(removed.removed, 'picture')} removed{before}")


@click.command(short_help="Join several indexes into a new one.")
@click.argument("indexes", nargs=-1, required=True, type=INDEX, metavar="INDEX...")
@click.option("-o", "--output", type=PATH, required=True, help="The index to write.")
@click.option(
    "--whiten/--no-whiten",
    default=None,
    help="Fit a whitening of the vectors.  [default: only for shards with distractors and 1,000 "
    "pictures in all]",
)
@duplicates
@wait
@as_json
def merge(
    indexes: tuple[Path, ...],
    output: Path,
    whiten: bool | None,
    duplicates: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Join several INDEXes, such as the shards of one gallery, into a new one.

    All must have been built with the same model. A picture in several of them is taken once.

    Example: lmk index merge shard1.lmk shard2.lmk -o gallery.lmk
    """
    from lmk.cli.progress import StageProgress
    from lmk.rerank.indexing.merge import merge_indexes

    with StageProgress() as progress:
        report = merge_indexes(
            output, indexes, whiten=whiten, duplicates=duplicates, wait=wait, on_progress=progress
        )
    if as_json:
        echo_json({"index": str(output)} | asdict(report))
        return
    echo_duplicates(report.duplicates)
    echo_relabelled(report.relabelled)
    echo_conflicts(output, report.conflicts, ())
    pictures = counted(report.pictures, "picture")
    distractors = counted(report.distractors, "distractor")
    several = f" ({report.repeated:,} in several of them)" if report.repeated else ""
    sources = counted(len(indexes), "index", "indexes")
    echo(f"{output}: {pictures} and {distractors} of {sources}{several}")


@index_command(short_help="Free the space of removed pictures.")
def compact(index: Path, wait: float, as_json: bool) -> None:
    """Rewrite INDEX without the rows of removed pictures, in few files.

    Row numbers change. A process that has the index open continues to use the old rows.

    Example: lmk index compact gallery.lmk
    """
    from lmk.cli.progress import StageProgress
    from lmk.rerank.indexing.build import compact_index

    with StageProgress() as progress:
        report = compact_index(index, wait=wait, on_progress=progress)
    if as_json:
        echo_json({"index": str(index)} | asdict(report))
    else:
        echo(f"{index}: {counted(report.removed, 'row')} freed, {report.rows:,} left")


def _lines(file: Path) -> list[str]:
    """Returns the non-empty lines of a file; the path "-" stands for stdin."""
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        lines = data.decode("utf-8-sig").split("\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot be read: {reason}", where=file) from error
    except UnicodeDecodeError as error:
        raise UsageError("is not text in UTF-8", where=file) from error
    return [line.strip() for line in lines if line.strip()]
