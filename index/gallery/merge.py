"""Merge: several galleries of one embedder into one, as after extraction in parts."""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from lmk.embed.errors import EmbedderMismatch, GalleryError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.progress import CountOfTotal, no_count_of_total
from lmk.index.catalog.records import Picture, Precision
from lmk.index.gallery.deduplicate import LabelDifference
from lmk.index.gallery.embedder_check import check_embedder
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.labels import Role

_BLOCK_ROWS = 8192


@dataclass(frozen=True)
class MergeReport:
    """Result of a merge.

    Attributes:
        pictures, distractors: in the merged gallery.
        repeated: pictures that were in several galleries under one id, with one content.
        duplicates: (id given, id that has this content) of pictures left out.
        relabelled: pictures of a later gallery that brought labels to an earlier one's.
        conflicts: pictures with the same content under different labels. Both are kept where their
            ids differ; where one id has two labels, the earlier gallery's label is kept.
    """

    pictures: int
    distractors: int
    repeated: int
    duplicates: tuple[tuple[str, str], ...]
    relabelled: tuple[LabelDifference, ...] = ()
    conflicts: tuple[LabelDifference, ...] = ()


def merge(
    out: Path,
    paths: Sequence[Path],
    *,
    duplicates: bool = False,
    embedder: Embedder | None = None,
    finish: Callable[[GalleryWriter], None] = lambda writer: None,
    wait: float = 0.0,
    on_progress: CountOfTotal = no_count_of_total,
) -> MergeReport:
    """Makes the gallery `out` of the rows of several, in the order given; a gallery there is lost.

    Vectors keep every bit, and nothing more than a block of them is held in memory. Settings are
    those of the first gallery. Details of landmarks are those of all galleries, for each landmark
    of the first one that has some. Arrays are not carried over, because they belong to its rows.

    Args:
        out: the new gallery, not one of `paths`.
        paths: the galleries.
        duplicates: keep pictures whose content another one of the same role has too.
        embedder: the galleries' own with a whitening, by which their vectors are mapped.
        finish: called with all rows in their place, before they are committed.
        wait: seconds to wait for who writes to `out`.
        on_progress: called with (rows done, rows in all).

    Raises:
        UsageError: for no galleries, or `out` among them.
        EmbedderMismatch: for galleries of different embedders.
        GalleryError: when two galleries give one id to different pictures.
        NotAGallery, GalleryDamaged, StorageError: as the folders are.
    """
    if not paths or out.resolve() in {path.resolve() for path in paths}:
        what = "a gallery cannot be merged into itself" if paths else "no galleries to merge"
        raise UsageError(what, where=out, remedy="name the galleries, and another one to make")
    with ExitStack() as stack:
        galleries = [stack.enter_context(Gallery.open(path)) for path in paths]
        _require_one_embedder(galleries)
        for gallery in galleries:
            check_embedder(gallery)
        writer = stack.enter_context(GalleryWriter(out, create=True, wait=wait))
        first = galleries[0]
        precision: Precision = "f32" if any(g.precision == "f32" for g in galleries) else "f16"
        if embedder is None:
            writer.reset(first.fingerprint, first.dim, precision)
            writer.install_embedder(lambda folder: _copy(first.embedder_dir, folder))
        else:
            writer.reset(embedder.fingerprint, embedder.dim, precision)
            writer.install_embedder(embedder.save)
        for name, value in first.settings().items():
            writer.set(name, value)
        writer.set_landmarks(
            one for gallery in reversed(galleries) for one in gallery.all_details()
        )
        _append_all(writer, galleries, embedder, duplicates=duplicates, on_progress=on_progress)
        finish(writer)
        distractor = writer.uncommitted.membership().distractor
        writer.commit()
        bank = int(np.count_nonzero(distractor))
        return MergeReport(
            pictures=len(distractor) - bank - len(writer.relabelled),
            distractors=bank,
            repeated=writer.unchanged + sum(one.id == one.other for one in writer.relabelled),
            duplicates=tuple(writer.duplicates),
            relabelled=tuple(writer.relabelled),
            conflicts=tuple(writer.conflicts),
        )


def _copy(source: Path, folder: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _append_all(
    writer: GalleryWriter,
    galleries: Sequence[Gallery],
    embedder: Embedder | None,
    *,
    duplicates: bool,
    on_progress: CountOfTotal,
) -> None:
    total, done, starts = sum(int(g.alive.sum()) for g in galleries), 0, []
    for gallery in galleries:
        starts.append(writer.uncommitted.rows)
        for path, reason in gallery.skipped():
            writer.skip(path, reason)
        for rows, pictures, role in _blocks(gallery):
            _require_same_pictures(writer, galleries, starts, pictures)
            vectors = gallery.stored.gather(np.array(rows, np.int64))
            fingerprint = gallery.fingerprint
            if embedder is not None:
                vectors, fingerprint = embedder.vectors(vectors), embedder.fingerprint
            writer.append_stored(
                vectors,
                fingerprint,
                pictures,
                role,
                duplicates=duplicates,
                replace_labels=False,
            )
            done += len(rows)
            on_progress(done, total)


def _blocks(gallery: Gallery) -> Iterator[tuple[list[int], list[Picture], Role]]:
    """Yields (rows, pictures, role) of some rows at a time."""
    for role, entries in groupby(gallery.entries(), key=lambda entry: entry[2]):
        while block := list(islice(entries, _BLOCK_ROWS)):
            yield [row for row, _, _ in block], [picture for _, picture, _ in block], role


def _require_one_embedder(galleries: Sequence[Gallery]) -> None:
    first = galleries[0]
    for other in galleries[1:]:
        if (other.fingerprint, other.dim) != (first.fingerprint, first.dim):
            raise EmbedderMismatch(
                f"made by embedder {other.fingerprint[:16]}, and {first.path} by"
                f" {first.fingerprint[:16]}",
                where=other.path,
                remedy="build it again with the other's embedder (`lmk build-index --model`)",
            )


def _require_same_pictures(
    writer: GalleryWriter,
    galleries: Sequence[Gallery],
    starts: Sequence[int],
    pictures: Sequence[Picture],
) -> None:
    """Refuses an id that an earlier gallery gave to another content."""
    known = writer.uncommitted.find(picture.id for picture in pictures)
    if not known:
        return
    contents = {p.id: p.sha256 for p in writer.uncommitted.pictures(list(known.values()))}
    for picture in pictures:
        if contents.get(picture.id, picture.sha256) != picture.sha256:
            earlier = galleries[bisect_right(starts, known[picture.id]) - 1]
            raise GalleryError(
                f"{earlier.path} and {galleries[len(starts) - 1].path} have different pictures"
                " under this id",
                where=picture.id,
                remedy="remove one of them (`lmk index remove`)",
            )
