"""Photos with known answers, read for a command that learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmk.cli.printing import echo
from lmk.cli.render import counted, echo_skipped
from lmk.embed.progress import Count
from lmk.embed.shell_words import shell_word

if TYPE_CHECKING:
    from lmk.embed.data.manifest import Manifest
    from lmk.eval.tune.labelled_photos import LabelledPhotos
    from lmk.rerank.recognizer import Recognizer


def read_photos(
    manifest: Manifest, source: Path, recognizer: Recognizer, on_progress: Count
) -> LabelledPhotos:
    """Embeds photos with known answers, and says on stderr what is odd about them.

    Args:
        manifest: the photos and what they show.
        source: where it was read from.
        recognizer: the opened index.
        on_progress: called with the number of photos done.

    Raises:
        UsageError: no photo can be read, or the index knows one (read_labelled_photos).
    """
    from lmk.embed.errors import UsageError
    from lmk.eval.tune.labelled_photos import read_labelled_photos

    photos = read_labelled_photos(manifest, recognizer, on_progress=on_progress)
    echo_skipped(photos.skipped, f"left out of {source}")
    if not len(photos):
        raise UsageError("no photo can be read", where=source, remedy=manifest.unreadable_remedy)
    copies = len(photos) - len(set(photos.sha256))
    if copies:
        what = f"{counted(copies, 'photo')} of {len(photos):,} only repeat another one"
        echo(f"lmk: {source}: {what}; copies stay in one fold", err=True)
    return photos


def held_landmarks(recognizer: Recognizer) -> frozenset[str]:
    """The landmarks that the index has pictures of."""
    from lmk.index.gallery.gallery import class_sizes

    sizes = class_sizes(recognizer.gallery)
    return frozenset(label for label, pictures in sizes.items() if pictures)


def say_unknown(
    photos: LabelledPhotos, source: Path, recognizer: Recognizer, consequence: str
) -> None:
    """Says on stderr how many photos are of landmarks that the index does not hold.

    Args:
        photos: with what they show.
        source: where they were read from.
        recognizer: the opened index.
        consequence: what that means for them.

    Raises:
        UsageError: when photos show landmarks, but none of the index's: names are spelt otherwise.
    """
    from lmk.embed.errors import UsageError
    from lmk.embed.tables.label_forms import similar_pairs, similar_text

    held, index = held_landmarks(recognizer), recognizer.gallery.path
    named = [labels for labels in photos.labels if labels]
    missing = [labels for labels in named if held.isdisjoint(labels)]
    if not missing:
        return
    what = f"{counted(len(missing), 'photo')} of landmarks that the index does not hold"
    what = f"{what}, as {' '.join(missing[0])}"
    names = {label for labels in missing for label in labels}
    similar = similar_text(similar_pairs(names, held), "label", others="those of the index")
    if len(missing) == len(named):
        remedy = f"name them as the index does: lmk index list {shell_word(index)}"
        remedy = f"{similar}: {remedy}" if similar else remedy
        raise UsageError(f"{what}, and none of those it holds", where=source, remedy=remedy)
    echo(f"lmk: {source}: {what}: {consequence}", err=True)
    if similar:
        echo(f"lmk: {source}: {similar}, so they never match", err=True)


def require_writable(index: Path, wait: float) -> None:
    """Checks, before the work is done, that its result can be saved with an index.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
    """
    from lmk.index.gallery.writer import GalleryWriter

    GalleryWriter(index, wait=wait).close()
