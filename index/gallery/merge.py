"""Merges several galleries of one embedder into one, for example after extraction in parts."""

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
        pictures, distractors: numbers of pictures in the merged gallery.
        repeated: number of pictures with the same id and content in several galleries.
        duplicates: (id, id of a picture with the same content) of the pictures left out.
        relabelled: pictures of a later gallery that have added labels to those of an earlier one.
        conflicts: pictures with the same content and different labels. If their ids differ, the
            merged gallery has both; otherwise it has the label of the earlier gallery.
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
    """Writes a gallery with the rows of several galleries, in order; replaces a gallery in `out`.

    Vectors are copied bit by bit, and memory holds one block of them. Settings are those of the
    first gallery. Details of landmarks are those of all galleries, for each landmark those of the
    first gallery that has some. Arrays are not copied, because they belong to the rows of one
    gallery.

    Args:
        out: the new gallery, not one of `paths`.
        paths: the galleries.
        duplicates: also add pictures with the content of another picture of the same role.
        embedder: the embedder of the galleries with a whitening that transforms their vectors.
        finish: called with the writer after all rows are added, before the commit.
        wait: seconds to wait for another writer of `out`.
        on_progress: called with (rows done, total number of rows).

    Raises:
        UsageError: there are no galleries, or `out` is one of them.
        EmbedderMismatch: the galleries have different embedders.
        GalleryError: two galleries have different pictures with the same id.
        NotAGallery, GalleryDamaged, StorageError: a folder cannot be read or written.
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
        distractors = int(np.count_nonzero(distractor))
        return MergeReport(
            pictures=len(distractor) - distractors - len(writer.relabelled),
            distractors=distractors,
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
            options = {"duplicates": duplicates, "replace_labels": False}
            writer.append_stored(vectors, fingerprint, pictures, role, **options)
            done += len(rows)
            on_progress(done, total)


def _blocks(gallery: Gallery) -> Iterator[tuple[list[int], list[Picture], Role]]:
    """Yields (rows, pictures, role) of blocks of rows."""
    for role, entries in groupby(gallery.entries(), key=lambda entry: entry[2]):
        while block := list(islice(entries, _BLOCK_ROWS)):
            yield [row for row, _, _ in block], [picture for _, picture, _ in block], role


def _require_one_embedder(galleries: Sequence[Gallery]) -> None:
    first = galleries[0]
    for other in galleries[1:]:
        if (other.fingerprint, other.dim) != (first.fingerprint, first.dim):
            what = f"made by embedder {other.fingerprint[:16]}, and {first.path} by"
            what += f" {first.fingerprint[:16]}"
            remedy = "build it again with the other's embedder (`lmk build-index --model`)"
            raise EmbedderMismatch(what, where=other.path, remedy=remedy)


def _require_same_pictures(
    writer: GalleryWriter,
    galleries: Sequence[Gallery],
    starts: Sequence[int],
    pictures: Sequence[Picture],
) -> None:
    """Checks that no id has another content in an earlier gallery (GalleryError)."""
    rows = writer.uncommitted.find(picture.id for picture in pictures)
    if not rows:
        return
    contents = {p.id: p.sha256 for p in writer.uncommitted.pictures(list(rows.values()))}
    for picture in pictures:
        if contents.get(picture.id, picture.sha256) != picture.sha256:
            earlier = galleries[bisect_right(starts, rows[picture.id]) - 1]
            later = galleries[len(starts) - 1]
            what = f"{earlier.path} and {later.path} have different pictures under this id"
            remedy = "remove one of them (`lmk index remove`)"
            raise GalleryError(what, where=picture.id, remedy=remedy)
