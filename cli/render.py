"""What commands print and show: lines, JSON, thumbnails, HTML pages."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

    from lmk.embed.images import Skipped
    from lmk.rerank.predictions import Predictions
    from lmk.rerank.recognizer import Recognizer

NONE_OF_THESE = "none of these"
_SKIPPED_SHOWN = 10
_THUMBNAIL_PIXELS = 240


@dataclass(frozen=True)
class Evidence:
    """One neighbour of an answer, ready to be shown.

    Attributes:
        id, path, labels: of the picture.
        place: among the neighbours by cosine, from 1.
        score: the cosine.
        penalty: what was taken off the rescaled cosine.
        score_after: what is left of the cosine after rescaling and penalty; this votes.
        vote: what it gave to the best landmark; 0 where it did not vote for it.
        share: of all that was given to the best landmark, 0 to 1.
    """

    id: str
    path: str
    labels: tuple[str, ...]
    place: int
    score: float
    penalty: float
    score_after: float
    vote: float
    share: float


@dataclass(frozen=True)
class Answer:
    """One query's answer, ready to be shown.

    Attributes:
        query: the picture's path or id.
        label: the landmark, or None for "none of these".
        best: the best landmark, even below the threshold; None where nothing has a label.
        confidence: of `best`; None where there is none.
        threshold: below it the answer is "none of these"; None where all is answered.
        neighbours: those that gave most to `best` first, then by score after rescaling and
            penalty, then by cosine.
    """

    query: str
    label: str | None
    best: str | None
    confidence: float | None
    threshold: float | None
    neighbours: tuple[Evidence, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def answers_of(predictions: Predictions, recognizer: Recognizer, k: int) -> list[Answer]:
    """Predictions with up to k neighbours each, looked up in the gallery.

    Those that voted for the answer come first, as the penalty may have brought forward what is not
    among the k nearest by cosine.
    """
    return [_answer(predictions, i, recognizer, k) for i in range(len(predictions))]


def _answer(predictions: Predictions, i: int, recognizer: Recognizer, k: int) -> Answer:
    near = predictions.neighbours
    votes, scores_after = predictions.votes[i], predictions.scores[i]
    given = float(votes.sum())
    shown = sorted(
        (j for j in range(near.rows.shape[1]) if near.rows[i, j] >= 0),
        key=lambda j: (-votes[j], -scores_after[j], j),
    )[:k]
    gallery = recognizer.gallery
    neighbours = tuple(
        Evidence(
            id=picture.id,
            path=_shown_path(gallery.file(picture)),
            labels=picture.labels,
            place=j + 1,
            score=float(near.scores[i, j]),
            penalty=float(predictions.penalty[i, j]),
            score_after=float(scores_after[j]),
            vote=float(votes[j]),
            share=float(votes[j]) / given if given else 0.0,
        )
        for j, picture in zip(shown, gallery.pictures(near.rows[i, shown]), strict=True)
    )
    confidence, threshold = float(predictions.confidence[i]), predictions.threshold
    return Answer(
        query=predictions.query_ids[i],
        label=predictions.answers()[i],
        best=predictions.labels[i],
        confidence=confidence if predictions.labels[i] is not None else None,
        threshold=threshold if threshold > float("-inf") else None,
        neighbours=neighbours,
    )


def _shown_path(path: Path) -> str:
    """Relative to the working directory where that is shorter to read."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def answer_lines(answer: Answer) -> list[str]:
    """An answer as text: one line, then one for each neighbour.

    A neighbour's line: place by cosine, cosine, score after rescaling and penalty, share of the
    votes for the best landmark ("-" for none), landmark, file.
    """
    if answer.best is None or answer.confidence is None:
        head = f"{NONE_OF_THESE} (no picture in the index has a landmark)"
    elif answer.label is None:
        head = (
            f"{NONE_OF_THESE}  (the best guess, {answer.best}, has confidence "
            f"{answer.confidence:.3f}; {answer.threshold:.3f} is needed)"
        )
    else:
        needed = "" if answer.threshold is None else f" ({answer.threshold:.3f} is needed)"
        head = f"{answer.label}  confidence {answer.confidence:.3f}{needed}"
    lines = [f"{answer.query}: {head}"]
    labels = [" ".join(near.labels) or "(no landmark)" for near in answer.neighbours]
    width = max(map(len, labels), default=0)
    for near, label in zip(answer.neighbours, labels, strict=True):
        share = f"{100 * near.share:.0f} %" if near.vote > 0 else "-"
        taken = f"  (penalty {near.penalty:.3f})" if near.penalty > 0 else ""
        lines.append(
            f"  {near.place:3}  {near.score:.3f} -> {near.score_after:6.3f}  {share:>5}"
            f"  {label:{width}}  {near.path}{taken}"
        )
    return lines


def echo_skipped(skipped: Sequence[Skipped], rest: str) -> None:
    """Lists on stderr the files that gave nothing: the first ones, and how many more.

    Args:
        skipped: the files.
        rest: where the others can be seen.
    """
    for skip in skipped[:_SKIPPED_SHOWN]:
        click.echo(f"lmk: skipped {skip.path}: {skip.reason}", err=True)
    if len(skipped) > _SKIPPED_SHOWN:
        more = len(skipped) - _SKIPPED_SHOWN
        click.echo(f"lmk: skipped {more:,} more ({rest})", err=True)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """1 and "picture" -> "1 picture"; 1200 and "query", "queries" -> "1,200 queries"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def human_bytes(count: int) -> str:
    """1234567 -> "1.2 MB"."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def page(template: str, **values: Any) -> str:
    """Renders a template of this folder into one self-contained HTML page."""
    return _environment().get_template(template).render(**values)


def data_uri(path: str) -> str | None:
    """A picture's thumbnail for an HTML page; None where it cannot be read."""
    from lmk.embed.images import thumbnail

    jpeg = thumbnail(Path(path), _THUMBNAIL_PIXELS)
    return None if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def breakable(name: str) -> Markup:
    """A label or path as HTML that may be broken behind "_" and "/" rather than inside words."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(map(escape, re.split(r"(?<=[_/])(?=.)", name, flags=re.DOTALL)))


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmk.cli", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["thumbnail"] = cache(data_uri)  # a page shows some pictures many times
    environment.globals["none_of_these"] = NONE_OF_THESE
    environment.filters["breakable"] = breakable
    return environment


def require_folder(path: Path) -> None:
    """Checks that the folder of something to write is there, before the work is done.

    Raises:
        UsageError: when it is not.
    """
    from lmk.embed.errors import UsageError

    if not path.parent.is_dir():
        raise UsageError("no such folder", where=path.parent, remedy="make it first")


def check_output(path: Path, *, reads: Sequence[Path] = ()) -> None:
    """Checks, before the work is done, that a file can be put there.

    Args:
        path: of the file to write.
        reads: what the work reads; none of it may be written over.

    Raises:
        UsageError: when its folder is missing; when what is there is one of `reads`, or a picture
            (as in `lmk query --html a.jpg b.jpg`, where the page's name was forgotten), or no
            plain file: putting a file in its place would replace a device such as /dev/null.
    """
    from lmk.embed.errors import UsageError
    from lmk.embed.manifest import PICTURE_SUFFIXES

    require_folder(path)
    if not path.exists():
        return
    if not path.is_file():
        raise UsageError("is no plain file", where=path, remedy="name a file to write")
    if any(source.exists() and path.samefile(source) for source in reads):
        raise UsageError("would be read and written over", where=path, remedy="name another file")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise UsageError(
            "is a picture, and would be written over", where=path, remedy="name another file"
        )


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        StorageError: the disk is full, the folder read-only.
    """
    from lmk.embed.files import write_whole

    write_whole(path, text.encode("utf-8", "backslashreplace"))
