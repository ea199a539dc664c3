"""The command `lmk submit`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.index_path import find_index
from lmk.cli.options import FILE, PATH, index, retrieval_steps, root, tell
from lmk.cli.pictures import echo_without_landmarks, read_pictures
from lmk.cli.printing import echo
from lmk.cli.render import check_output, counted, echo_skipped
from lmk.embed.errors import LmkError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmk.embed.data.images import Skipped
    from lmk.embed.data.manifest import Manifest, Row
    from lmk.embed.embeddings import Embeddings
    from lmk.eval.files.submission import RetrievalWriter, SubmissionWriter
    from lmk.rerank.lists.retrieval import Retrieval
    from lmk.rerank.recognizer import Recognizer


@click.command()
@click.argument("queries", type=PATH)
@index
@click.option("-o", "--output", type=FILE, required=True, help="CSV file to write.")
@click.option(
    "--task",
    type=click.Choice(["recognition", "retrieval"]),
    default="recognition",
    help="id,landmarks (a label and its confidence), or id,images (100 ids, best first).",
)
@root
@retrieval_steps
def submit(
    queries: Path,
    index: Path | None,
    output: Path,
    task: str,
    root: Path | None,
    retrieval_steps: str | None,
) -> None:
    """Write the answers to the pictures of QUERIES, a folder or CSV, as a contest's CSV file.

    Every readable query gets its best answer, since GAP ranks answers by confidence and a blank
    gains nothing. A picture that cannot be read gets a blank. A command that was stopped or killed
    continues when it is repeated. OUTPUT appears when it is complete. No file is written when no
    picture can be read.

    A retrieval list starts with all pictures of the query's landmark, including those that the
    search did not return (docs/retrieval.md). --retrieval-steps none keeps the order of the search.

    The ids of a flat folder are the file names without extension. Those of sub-folders are the
    paths with extension (tower/1.jpg), with "_" for a blank. Those of a CSV are its column id.
    Pictures that would share an id get longer ids (docs/index.md).

    Example: lmk submit queries/ -i gallery.lmk -o submission.csv
    """
    from lmk.cli.progress import StageProgress
    from lmk.eval.files.submission import RetrievalWriter, SubmissionWriter
    from lmk.rerank.recognizer import Recognizer

    check_output(output, reads=[queries])
    if retrieval_steps is not None and task != "retrieval":
        raise click.UsageError("--retrieval-steps is for --task retrieval")
    manifest = read_pictures(queries, root=root)
    with Recognizer.open(find_index(index), batch=len(manifest)) as recognizer:
        if task == "recognition":
            echo_without_landmarks(recognizer)
        retrieval = _retrieval(recognizer, retrieval_steps)
        work = _work(task, manifest, recognizer, retrieval)
        writer = (
            SubmissionWriter(output, resume=work)
            if task == "recognition"
            else RetrievalWriter(output, resume=work)
        )
        with writer, StageProgress() as progress:
            before = len(writer.written)
            left = tuple(row for row in manifest.rows if row.id not in writer.written)
            todo = replace(manifest, rows=left)
            batches = recognizer.embed_stream(
                todo, on_progress=lambda done: progress("queries", before + done, len(manifest))
            )
            skipped = (
                _answer(todo, batches, recognizer, writer)
                if isinstance(writer, SubmissionWriter)
                else _list(todo, batches, recognizer, retrieval, writer)
            )
            if len(skipped) == len(manifest):
                writer.discard()
                raise LmkError(
                    f"none of the {counted(len(manifest), 'query', 'queries')} can be read (the "
                    f"first, {skipped[0].path}: {skipped[0].reason}), so {output} is not written",
                    where=queries,
                    remedy=manifest.unreadable_remedy,
                )
    echo_skipped([*manifest.skipped, *skipped], f"blank in {output}, or no pictures")
    again = f" ({before:,} of them in an earlier run)" if before else ""
    total = counted(len(manifest), "query", "queries")
    echo(f"{output}: {total}{again}, {writer.blank:,} left blank")


def _retrieval(recognizer: Recognizer, name: str | None) -> Retrieval:
    """Returns the retrieval steps that the option names, or the steps saved with the index."""
    from lmk.eval.files.submission import MAX_IMAGES
    from lmk.rerank.lists.retrieval import read_retrieval, saved_retrieval

    retrieval = saved_retrieval(recognizer.gallery) if name is None else read_retrieval(name)
    if retrieval.k > MAX_IMAGES:
        what = f"lists of {retrieval.k:,} pictures, a submission holds {MAX_IMAGES}"
        remedy = f"set its k to {MAX_IMAGES}"
        raise UsageError(what, where=name or recognizer.gallery.path, remedy=remedy)
    return retrieval


def _work(task: str, manifest: Manifest, recognizer: Recognizer, retrieval: Retrieval) -> str:
    """Returns a hash of task, index, steps and queries; a run continues only an equal hash."""
    from lmk.rerank.steps.step import digest_text

    gallery = recognizer.gallery
    facts = gallery.info()
    digest = hashlib.sha256()
    index = (gallery.path.resolve(), gallery.fingerprint, gallery.generation)
    for part in (task, *index, facts.created, facts.updated):
        digest.update(f"{part}\n".encode(errors="surrogateescape"))
    steps = recognizer.pipeline if task == "recognition" else retrieval
    digest.update(digest_text(steps).encode())
    digest.update(str(manifest.root.resolve()).encode(errors="surrogateescape"))
    for row in manifest.rows:
        state = _state(manifest.file(row))
        digest.update(f"{row.id}\n{row.path}\n{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _state(picture: Path) -> tuple[int, int]:
    """Returns the size in bytes and the modification time in ns of a file; zeros if missing."""
    try:
        status = picture.stat()
    except (OSError, ValueError):  # ValueError: No file can have this name.
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _answer(
    todo: Manifest,
    batches: Iterator[tuple[Embeddings, tuple[Skipped, ...]]],
    recognizer: Recognizer,
    writer: SubmissionWriter,
) -> list[Skipped]:
    """Writes the answers batch by batch in the manifest's order; returns unreadable pictures."""
    whole = recognizer.pipeline
    recognizer = recognizer.with_pipeline(whole.per_query())
    left, file_of = iter(todo.rows), {row.id: todo.file(row) for row in todo.rows}
    skipped: list[Skipped] = []
    for embeddings, failed in batches:
        skipped += failed
        files = [file_of[query] for query in embeddings.ids]
        predictions = recognizer.predict(embeddings, features=recognizer.features_of(files))
        for query, label, confidence in zip(
            predictions.query_ids, predictions.labels, predictions.confidence, strict=True
        ):
            _leave_blank_before(query, left, writer)
            writer.write(query, label, float(confidence))
    _leave_blank_before(None, left, writer)
    if "all_queries" in whole.needs:  # These steps also revise the answers of earlier runs.
        writer.revise(lambda answers: whole.revise(answers.labels, answers.confidence))
    return skipped


def _list(
    todo: Manifest,
    batches: Iterator[tuple[Embeddings, tuple[Skipped, ...]]],
    recognizer: Recognizer,
    retrieval: Retrieval,
    writer: RetrievalWriter,
) -> list[Skipped]:
    """Writes the lists batch by batch in the manifest's order; returns unreadable pictures."""
    from lmk.rerank.lists.retrieval import Collection, rerank_lists

    gallery = recognizer.gallery
    collection = Collection(
        recognizer.searcher, gallery.view(), recognizer.context.neighbourhoods, tell
    )
    left = iter(todo.rows)
    skipped: list[Skipped] = []
    for embeddings, failed in batches:
        skipped += failed
        lists = rerank_lists(retrieval, embeddings, collection)
        for query, rows in zip(lists.query_ids, lists.rows, strict=True):
            _leave_blank_before(query, left, writer)
            writer.write(query, gallery.ids(rows[rows >= 0]))
    _leave_blank_before(None, left, writer)
    return skipped


def _leave_blank_before(
    query: str | None, left: Iterator[Row], writer: SubmissionWriter | RetrievalWriter
) -> None:
    """Writes blanks for the unreadable pictures before `query`; None stands for the end."""
    for row in left:
        if row.id == query:
            return
        writer.leave_blank(row.id)
