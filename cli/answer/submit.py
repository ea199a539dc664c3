"""`lmk submit`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.index_path import INDEX
from lmk.cli.options import retrieval_steps, root, tell
from lmk.cli.pictures import echo_without_landmarks, read_pictures
from lmk.cli.printing import echo
from lmk.cli.render import check_output, counted, echo_skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmk.embed.data.images import Skipped
    from lmk.embed.data.manifest import Manifest, Row
    from lmk.embed.embeddings import Embeddings
    from lmk.eval.files.submission import RetrievalWriter, SubmissionWriter
    from lmk.rerank.lists.retrieval import Retrieval
    from lmk.rerank.recognizer import Recognizer


@click.command()
@click.argument("queries", type=click.Path(path_type=Path))
@click.option(
    "-i",
    "--index",
    type=INDEX,
    help="The index to ask.  [default: the only *.lmk folder here]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The CSV file to write.",
)
@click.option(
    "--task",
    type=click.Choice(["recognition", "retrieval"]),
    default="recognition",
    show_default=True,
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
    """Answer the pictures of QUERIES, a folder or CSV, into a contest's CSV file.

    Every query that can be read gets its best answer, as GAP ranks answers by confidence and a
    blank gains nothing; a picture that cannot be read gets a blank. Stopped or killed, the same
    command goes on where it was. OUTPUT appears when it is whole; nothing is written when no
    picture can be read.

    A retrieval list begins with the pictures of the query's landmark, those that the search missed
    too (docs/retrieval.md; --retrieval-steps none: the order of the search).

    Ids: of a flat folder the file names without their ending, of sub-folders the paths with it
    (tower/1.jpg), a blank as "_"; of a CSV its column id. Pictures that would share an id get
    longer ids (docs/index.md).

    Example: lmk submit queries/ -i gallery.lmk -o submission.csv
    """
    from lmk.cli.find_index import find_index
    from lmk.cli.progress import StageProgress
    from lmk.embed.errors import LmkError
    from lmk.eval.files.submission import RetrievalWriter, SubmissionWriter
    from lmk.rerank.recognizer import Recognizer

    check_output(output, reads=[queries])
    if retrieval_steps is not None and task != "retrieval":
        raise click.UsageError("--retrieval-steps is for --task retrieval")
    manifest = read_pictures(queries, root=root)
    with Recognizer.open(find_index(index)) as recognizer:
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
    asked = counted(len(manifest), "query", "queries")
    echo(f"{output}: {asked}{again}, {writer.blank:,} left blank")


def _retrieval(recognizer: Recognizer, name: str | None) -> Retrieval:
    """How lists are made: as the option says, else as the index keeps it."""
    from lmk.embed.errors import UsageError
    from lmk.eval.files.submission import MAX_IMAGES
    from lmk.rerank.lists.retrieval import read_retrieval, saved_retrieval

    found = saved_retrieval(recognizer.gallery) if name is None else read_retrieval(name)
    if found.k > MAX_IMAGES:
        raise UsageError(
            f"lists of {found.k:,} pictures, a submission holds {MAX_IMAGES}",
            where=name or recognizer.gallery.path,
            remedy=f"set its k to {MAX_IMAGES}",
        )
    return found


def _work(task: str, manifest: Manifest, recognizer: Recognizer, retrieval: Retrieval) -> str:
    """Names the work: answers of other queries, or by another index, must not be mixed in.

    A picture that was replaced is another query.
    """
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
    """Size in bytes and time of change in ns of a picture; zeros where there is none."""
    try:
        found = picture.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _answer(
    todo: Manifest,
    batches: Iterator[tuple[Embeddings, tuple[Skipped, ...]]],
    recognizer: Recognizer,
    writer: SubmissionWriter,
) -> list[Skipped]:
    """Writes each batch as it comes, in the manifest's order; returns the pictures not read.

    A step that needs all answers is applied to all in the end, to those of earlier runs too.
    """
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
    if "all_queries" in whole.needs:
        writer.revise(lambda answers: whole.revise(answers.labels, answers.confidence))
    return skipped


def _list(
    todo: Manifest,
    batches: Iterator[tuple[Embeddings, tuple[Skipped, ...]]],
    recognizer: Recognizer,
    retrieval: Retrieval,
    writer: RetrievalWriter,
) -> list[Skipped]:
    """Writes the lists of each batch as it comes, as _answer does answers."""
    from lmk.rerank.lists.retrieval import Collection, rerank_lists

    gallery = recognizer.gallery
    collection = Collection(
        recognizer.searcher, gallery.view(), recognizer.context.neighbourhoods, tell
    )
    left = iter(todo.rows)
    skipped: list[Skipped] = []
    for embeddings, failed in batches:
        skipped += failed
        found = rerank_lists(retrieval, embeddings, collection)
        for query, rows in zip(found.query_ids, found.rows, strict=True):
            _leave_blank_before(query, left, writer)
            writer.write(query, gallery.ids(rows[rows >= 0]))
    _leave_blank_before(None, left, writer)
    return skipped


def _leave_blank_before(
    query: str | None, left: Iterator[Row], writer: SubmissionWriter | RetrievalWriter
) -> None:
    """Takes rows up to `query` (None: all): those passed over on the way could not be read."""
    for row in left:
        if row.id == query:
            return
        writer.leave_blank(row.id)
