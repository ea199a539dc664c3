"""The commands `lmk index search` and `lmk index set`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.index_path import INDEX, INDEX_OR_OTHER
from lmk.cli.landmark_names import echo_unknown
from lmk.cli.options import (
    FILE,
    FOLDER,
    as_json,
    backend,
    check_backend,
    collection,
    index_command,
    kind,
    labels,
    neighbour_count,
    recall,
    retrieval_steps,
    tell,
    uri,
)
from lmk.cli.printing import echo, echo_json, echo_lines
from lmk.cli.render import counted
from lmk.embed.errors import UsageError

if TYPE_CHECKING:
    from lmk.embed.tables.landmark_table import LandmarkTable
    from lmk.index.gallery.landmarks import DetailsReport
    from lmk.index.search.settings import SearchSettings
    from lmk.rerank.lists.retrieval import Retrieval

_NO_LANDMARKS = "none"  # the value of --landmarks that removes all details


@click.command(short_help="Write the neighbours of many queries.")
@click.argument("index", type=INDEX)
@click.argument("queries", type=INDEX_OR_OTHER)
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    required=True,
    help="Folder of Parquet files to write. A second run continues where the first stopped.",
)
@click.option(
    "-k",
    "neighbours",
    type=click.IntRange(min=1),
    default=100,
    help="Number of neighbours of each query.",
)
@click.option(
    "--kind",
    metavar="KIND",
    help="Another kind of search than the saved one (see `lmk index set`).",
)
@labels
@as_json
def search(
    index: Path,
    queries: Path,
    output: Path,
    neighbours: int,
    kind: str | None,
    labels: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the nearest pictures of INDEX for many QUERIES: an index, or a safetensors file.

    Queries are read and neighbours are written in blocks, so memory does not limit their number.
    OUTPUT has the columns query, rows, scores and ids; pandas.read_parquet reads the folder.

    Example: lmk index search gallery.lmk queries.lmk -o neighbours/ -k 20
    """
    from lmk.cli.progress import StageProgress
    from lmk.index.gallery.gallery import Gallery
    from lmk.index.search.batch import block_of, search_batches
    from lmk.index.search.choose import choose
    from lmk.index.search.query_files import open_queries, state_of
    from lmk.index.search.settings import SearchSettings

    with Gallery.open(index) as gallery, open_queries(queries) as query_file:
        neighbours = max(1, neighbour_count(neighbours, len(gallery.role_rows("gallery"))))
        settings = SearchSettings(kind)
        batch = block_of(neighbours)
        searcher = choose(gallery, settings=settings, batch=batch, on_message=tell)
        how = {"setting": gallery.setting("search"), "kind": kind}
        with StageProgress() as progress:
            report = search_batches(
                searcher,
                query_file,
                neighbours,
                output,
                searched=state_of(gallery) | {"search": how},
                allow=labels or None,
                ids_of=gallery.ids,
                on_progress=partial(progress, "queries"),
            )
        reason = searcher.reason
    if as_json:
        facts = {"output": str(output), "k": neighbours, "search": reason} | asdict(report)
        echo_json(facts)
        return
    again = f", {report.kept:,} of them from an earlier run" if report.kept else ""
    echo(
        f"{output}: {neighbours:,} neighbours of {counted(report.queries, 'query', 'queries')} "
        f"in {counted(report.blocks, 'file')}{again}"
    )
    echo(f"search: {reason}", err=True)


@index_command("set", short_help="Change how the index is searched, or set names.")
@kind
@recall
@backend
@uri
@collection
@retrieval_steps
@click.option(
    "--landmarks",
    multiple=True,
    type=FILE,
    metavar="CSV|none",
    help="Names, coordinates and links of landmarks (docs/landmarks.md), in place of all that "
    "INDEX has; none removes them. Repeat the option for several files.",
)
def set_(
    index: Path,
    kind: str | None,
    recall: float | None,
    backend: str | None,
    uri: str | None,
    collection: str | None,
    retrieval_steps: str | None,
    landmarks: tuple[Path, ...],
    wait: float,
    as_json: bool,
) -> None:
    """Change how INDEX is searched, or the names of its landmarks, without building it again.

    Settings that are not given stay as they are. Files that the search needs are built now, not at
    the first query. --retrieval-steps sets how `lmk submit --task retrieval` orders its lists.
    Before --backend milvus, run `lmk index push`, which copies the vectors to the server.

    Example: lmk index set gallery.lmk --kind exact

    Then: lmk index set gallery.lmk --landmarks landmarks.csv
    """
    from lmk.index.gallery.landmarks import store_landmarks
    from lmk.index.gallery.writer import GalleryWriter
    from lmk.index.search.settings import SEARCH, SearchSettings
    from lmk.rerank.lists.retrieval import RETRIEVAL, read_retrieval

    given = SearchSettings(kind, recall, backend, uri, collection)
    lists = None if retrieval_steps is None else read_retrieval(retrieval_steps)
    searched = bool(given.to_json()) or lists is not None
    if not searched and not landmarks:
        remedy = "use --kind, --recall, --backend, --collection, --retrieval-steps or --landmarks"
        raise UsageError("no setting is given", where=index, remedy=remedy)
    table = _read_landmarks(landmarks)
    facts, lines = _prepare_search(index, given, lists) if searched else ({}, [])
    with GalleryWriter(index, wait=wait) as writer:
        if searched:
            writer.set(SEARCH, facts["setting"])
        if lists is not None:  # The default is not saved, so that a later default applies.
            kept_as = None if retrieval_steps == "default" else lists.model_dump(mode="json")
            writer.set(RETRIEVAL, kept_as)
        described = store_landmarks(writer, table) if landmarks else None
        writer.commit()
    if as_json:
        facts |= {} if described is None else {"landmarks": asdict(described)}
        echo_json({"index": str(index)} | facts)
        return
    echo_lines(lines)
    if described is not None:
        _echo_described(index, table, described)


def _prepare_search(
    index: Path, given: SearchSettings, lists: Retrieval | None
) -> tuple[dict[str, Any], list[str]]:
    """Builds the files of a search after a check; returns JSON values and lines of text."""
    from lmk.index.gallery.gallery import Gallery
    from lmk.index.search.choose import choose
    from lmk.index.search.settings import SearchSettings
    from lmk.rerank.lists.retrieval import saved_retrieval

    with Gallery.open(index) as gallery:
        saved = SearchSettings.saved(gallery)
        check_backend(given, saved)
        searcher = choose(gallery, settings=given, on_message=tell)  # choose refuses wrong settings
        facts = {"setting": given.over(saved).to_json(), "search": searcher.reason}
        retrieval = lists or saved_retrieval(gallery)
    facts["retrieval"] = retrieval.model_dump(mode="json")
    return facts, [f"{index}: {searcher.reason}"]


def _read_landmarks(files: tuple[Path, ...]) -> LandmarkTable | None:
    """Returns the details of landmarks in files; None without a file and for "none"."""
    from lmk.embed.tables.landmark_table import read_landmarks

    if not files or [str(file) for file in files] == [_NO_LANDMARKS]:
        return None
    return read_landmarks(*files)


def _echo_described(index: Path, table: LandmarkTable | None, report: DetailsReport) -> None:
    """Prints the number of landmarks with details, and the unknown landmarks of a table."""
    if table is not None:
        echo_unknown(table.path, report.unknown, len(table.details), str(index))
    described = f"{report.described:,} of its {counted(report.landmarks, 'landmark')}"
    echo(f"{index}: details of {described}")
