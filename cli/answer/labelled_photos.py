"""Input of labelled photos for `lmk tune` and `lmk calibrate`, with notes on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmk.cli.printing import echo
from lmk.cli.render import counted, echo_skipped
from lmk.embed.errors import UsageError
from lmk.embed.progress import Count
from lmk.embed.shell_words import shell_word

if TYPE_CHECKING:
    from lmk.embed.data.manifest import Manifest
    from lmk.eval.tune.labelled_photos import LabelledPhotos
    from lmk.rerank.recognizer import Recognizer


def read_photos(
    manifest: Manifest, source: Path, recognizer: Recognizer, on_progress: Count
) -> LabelledPhotos:
    """Returns labelled photos with embeddings; lists unreadable photos and copies on stderr.

    Args:
        manifest: the photos with their labels.
        source: the folder or file of the manifest.
        recognizer: the open index.
        on_progress: called with the number of finished photos.

    Raises:
        UsageError: no photo can be read, or the index contains a photo (read_labelled_photos).
    """
    from lmk.eval.tune.labelled_photos import read_labelled_photos

    photos = read_labelled_photos(manifest, recognizer, on_progress=on_progress)
    echo_skipped(photos.skipped, f"left out of {source}")
    if not len(photos):
        raise UsageError("no photo can be read", where=source, remedy=manifest.unreadable_remedy)
    copies = len(photos) - len(set(photos.sha256))
    if copies:
        what = f"{counted(copies, 'photo')} of {len(photos):,} are copies of others"
        echo(f"lmk: {source}: {what}; copies stay in one fold", err=True)
    return photos


def indexed_landmarks(recognizer: Recognizer) -> frozenset[str]:
    """Returns the landmarks that have pictures in the index."""
    from lmk.index.gallery.gallery import class_sizes

    sizes = class_sizes(recognizer.gallery)
    return frozenset(label for label, pictures in sizes.items() if pictures)


def echo_unknown(
    photos: LabelledPhotos, source: Path, recognizer: Recognizer, consequence: str
) -> None:
    """Prints on stderr the number of photos whose landmarks are missing from the index.

    Args:
        photos: the photos with their labels.
        source: the folder or file of the photos.
        recognizer: the open index.
        consequence: the end of the line.

    Raises:
        UsageError: no landmark of the photos is in the index; the spelling probably differs.
    """
    from lmk.embed.tables.label_forms import similar_pairs, similar_text

    indexed, index = indexed_landmarks(recognizer), recognizer.gallery.path
    labelled = [labels for labels in photos.labels if labels]
    missing = [labels for labels in labelled if indexed.isdisjoint(labels)]
    if not missing:
        return
    what = f"{counted(len(missing), 'photo')} of landmarks that the index does not hold"
    what = f"{what}, such as {' '.join(missing[0])}"
    names = {label for labels in missing for label in labels}
    similar = similar_text(similar_pairs(names, indexed), "label", others="those of the index")
    if len(missing) == len(labelled):
        remedy = f"use the names of the index: lmk index list {shell_word(index)}"
        remedy = f"{similar}: {remedy}" if similar else remedy
        raise UsageError(f"{what}, and none of its landmarks", where=source, remedy=remedy)
    echo(f"lmk: {source}: {what}: {consequence}", err=True)
    if similar:
        echo(f"lmk: {source}: {similar}, so they never match", err=True)


def echo_all_landmarks(source: Path, more: str = "") -> None:
    """Prints on stderr that nothing measures the rejection of photos without a landmark."""
    what = "every photo shows a landmark, so refusing other photos is not measured"
    echo(f"lmk: {source}: {what}{more}", err=True)


def require_writable(index: Path, wait: float) -> None:
    """Checks, before a long computation, that an index can be written.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the index cannot be written.
    """
    from lmk.index.gallery.writer import GalleryWriter

    GalleryWriter(index, wait=wait).close()
