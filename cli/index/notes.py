"""Notes on stderr about skipped, duplicate and contradictory pictures of an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmk.cli.printing import echo
from lmk.cli.render import counted, echo_skipped, first_of
from lmk.embed.shell_words import shell_word

if TYPE_CHECKING:
    from lmk.index.gallery.deduplicate import LabelDifference
    from lmk.rerank.indexing.build import BuildReport

_SHOWN = 10  # maximum number of pictures that a note names
_SHOWN_LANDMARKS = 5


def echo_built(index: Path, report: BuildReport) -> None:
    """Prints the files and distractors that a build left out, and contradictory pictures."""
    echo_skipped(report.skipped, f"lmk index info {shell_word(index)} lists them")
    echo_duplicates(report.duplicates)
    echo_conflicts(index, report.conflicts, report.without_own)
    echo_shared(report.shared)


def echo_duplicates(pairs: Sequence[tuple[str, str]], *, takes: str = "--duplicates") -> None:
    """Prints the pictures that were skipped because other pictures have the same content.

    Args:
        pairs: pairs (skipped id, id with the same content).
        takes: the option, or the command with its option, that adds such pictures.
    """
    for given, held in pairs[:_SHOWN]:
        echo(f"lmk: left out {given}: the same file as {held}", err=True)
    if len(pairs) > _SHOWN:
        echo(f"lmk: left out {len(pairs) - _SHOWN:,} more ({takes} takes them)", err=True)


def echo_shared(shared: Sequence[str]) -> None:
    """Prints the distractors that are not used because a gallery picture is the same file.

    Args:
        shared: the ids of these distractors.
    """
    if shared:
        more = f" and {len(shared) - 1:,} more are" if len(shared) > 1 else " is"
        echo(
            f"lmk: {shared[0]}{more} also among the pictures of landmarks, and not used as "
            f"{'distractors' if len(shared) > 1 else 'a distractor'}",
            err=True,
        )


def echo_conflicts(
    index: Path, pairs: Sequence[LabelDifference], without_own: Sequence[str]
) -> None:
    """Prints the pictures that are the same file under different landmarks.

    Args:
        index: the index, which contains both pictures of each pair.
        pairs: pairs of pictures with the same content and different labels.
        without_own: landmarks whose pictures are all in such pairs.
    """
    for one in pairs[:_SHOWN]:
        own, other = " ".join(one.labels), " ".join(one.other_labels)
        if one.id == one.other:
            echo(
                f"lmk: {one.id} is under another landmark in a later index: {other} is kept, "
                f"{own} is not",
                err=True,
            )
            continue
        echo(
            f"lmk: {one.id} ({own}) is the same file as {one.other}, under another landmark "
            f"({other}); both are kept",
            err=True,
        )
    if len(pairs) > _SHOWN:
        more = len(pairs) - _SHOWN
        echo(f"lmk: {more:,} more are the same file under another landmark", err=True)
    if pairs:
        echo(
            f"lmk: {counted(len(pairs), 'picture')} under another landmark as well: remove the "
            f"wrong ones (lmk index remove {shell_word(index)} ID...) or relabel them "
            f"(lmk index relabel {shell_word(index)} ID... --label NAME)",
            err=True,
        )
    if without_own:
        names = first_of(without_own, _SHOWN_LANDMARKS)
        verb = "have" if len(without_own) > 1 else "has"
        echo(f"lmk: {names} {verb} no picture that is not also under another landmark", err=True)


def echo_relabelled(pairs: Sequence[LabelDifference]) -> None:
    """Prints the pictures whose landmark changed to the landmark of an added picture.

    Args:
        pairs: the added pictures, each with the picture that it replaces.
    """
    for one in pairs[:_SHOWN]:
        old = " ".join(one.other_labels) or "no landmark"
        was = "" if one.id == one.other else f", and was called {one.other}"
        echo(f"lmk: {one.id} is {' '.join(one.labels)} now instead of {old}{was}", err=True)
    if len(pairs) > _SHOWN:
        echo(f"lmk: {len(pairs) - _SHOWN:,} more have another landmark now", err=True)


def echo_unlabelled(pictures: Path, index: Path | None = None, *, addable: bool = False) -> None:
    """Prints that no picture of a folder or table has a landmark, and prints the remedy.

    Args:
        pictures: the folder or table.
        index: the index of the pictures, if it may contain other pictures with a landmark.
        addable: whether `lmk index add --label` can set the landmark of all these pictures.
    """
    effect = (
        "so the index can find similar pictures but name nothing"
        if index is None
        else "so no answer can name one"
    )
    remedy = (
        "put each landmark's pictures into a sub-folder of its own"
        if pictures.is_dir()
        else "name the landmark of each picture in a column landmark_id"
    )
    if addable and index is not None and pictures.is_dir():
        name = shell_word(pictures.resolve().name)
        words = f"{shell_word(index)} {shell_word(pictures)}"
        remedy += f", or give these the landmark they show: lmk index add {words} --label {name}"
    echo(f"lmk: {pictures}: no picture has a landmark, {effect}; {remedy}", err=True)
