"""Builds and extends an index: pictures in, a gallery with its learnt parts out.

The features of every picture go to the gallery's cache first, as they come; then, in one
transaction, the gallery is written: embedder, vectors, penalty, pipeline. A build that is killed
leaves the old gallery as it was, and the next one takes up the cached features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embedder import Embedder
from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import ManifestError
from lmk.embed.extract import Extracted, Extraction, extract
from lmk.embed.features import FeatureStore
from lmk.embed.images import Skipped
from lmk.embed.manifest import Manifest
from lmk.embed.whitening import LEAST_PICTURES, MOST_PICTURES, Whitening, learn_whitening
from lmk.index.catalog import Picture
from lmk.index.faiss_search import FlatSearcher
from lmk.index.gallery import Gallery
from lmk.index.segments import VECTOR_DTYPE
from lmk.index.writer import GalleryWriter
from lmk.rerank.pipeline import GalleryFacts, Pipeline
from lmk.rerank.threshold import learn_threshold

PIPELINE, PENALTY, BACKGROUND = "pipeline", "penalty", "background"
MOST_BACKGROUND = 0.9  # so that a gallery of copies does not divide by nothing
DISTRACTOR_PREFIX = "distractor:"  # so that a bank's ids never meet the gallery's

Progress = Callable[[str, int, int], None]
_LEARNING = "penalty and threshold"


@dataclass(frozen=True)
class BuildReport:
    """What a build or an add did.

    Attributes:
        pictures, distractors: added to the index.
        computed: pictures whose features were not in the cache.
        skipped: files that gave nothing, and why.
        whitened: whether a whitening was learnt.
        threshold: below it an answer is "none of these"; None where there was nothing to learn it
            from, so that everything is answered.
    """

    pictures: int
    distractors: int
    computed: int
    skipped: tuple[Skipped, ...]
    whitened: bool
    threshold: float | None


def build_index(
    path: Path,
    gallery: Manifest,
    embedder: Embedder,
    *,
    distractors: Manifest | None = None,
    pipeline: Pipeline | None = None,
    whiten: bool | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> BuildReport:
    """Builds a gallery at `path`, or builds it anew; readers of the old one are not disturbed.

    Args:
        path: the gallery folder (NAME.lmk).
        gallery: the known pictures.
        embedder: without a whitening; one is learnt here where it helps.
        distractors: pictures that show no landmark of the gallery.
        pipeline: the steps saved with the gallery; the default ones unless given.
        whiten: whether to learn a whitening; by default where there are distractors and at least
            1,000 pictures in all, because below that it costs more rejection than it gains.
        progress: called with (stage, done, total).

    Raises:
        ManifestError: when not one picture of the gallery can be read.
        GalleryLocked, StorageError: as the folder is.
    """
    with GalleryWriter(path, create=True) as writer:
        store = _store(path, embedder)
        known = _extract(gallery, embedder, store, "gallery", progress)
        bank = Extraction((), (), 0)
        if distractors is not None:
            bank = _extract(distractors, embedder, store, "distractors", progress)
        _require_pictures(gallery, known)
        if whiten is None:
            pictures = len(known.pictures) + len(bank.pictures)
            whiten = bool(bank.pictures) and pictures >= LEAST_PICTURES
        if whiten:
            embedder = embedder.with_whitening(_learn_whitening(store, known, bank))
        writer.reset(embedder.fingerprint, embedder.dim)
        writer.install_embedder(embedder.save)
        added = _embeddings(store, embedder, known.pictures)
        writer.append(added, _pictures(known.pictures, gallery.root), "gallery")
        against = _embeddings(store, embedder, bank.pictures, DISTRACTOR_PREFIX)
        if distractors is not None:
            pictures_of_bank = _pictures(bank.pictures, distractors.root, DISTRACTOR_PREFIX)
            writer.append(against, pictures_of_bank, "distractor")
        for skip in known.skipped:
            writer.skip(skip.path, skip.reason)
        for skip in bank.skipped:
            writer.skip(DISTRACTOR_PREFIX + skip.path, skip.reason)
        labels = [picture.row.labels for picture in known.pictures]
        contents = _Contents(_as_stored(added), np.arange(len(added)), labels, _as_stored(against))
        learnt = _learn(writer, pipeline or Pipeline(), contents, progress)
        writer.commit()
    skipped = (*known.skipped, *bank.skipped)
    computed = known.computed + bank.computed
    return BuildReport(len(added), len(against), computed, skipped, whiten, learnt.threshold())


def add_pictures(
    path: Path,
    manifest: Manifest,
    *,
    progress: Progress = lambda stage, done, total: None,
) -> BuildReport:
    """Adds pictures to a gallery, with its own embedder; penalty and threshold are learnt anew.

    A picture whose id and content the gallery has is left as it is.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
        GalleryError: when another picture has an id.
    """
    with GalleryWriter(path) as writer:
        with Gallery.open(path) as old:
            embedder = Embedder.load(old.embedder_dir)
            store = _store(path, embedder)
            found = _extract(manifest, embedder, store, "pictures", progress)
            rows = old.role_rows("gallery")
            before = old.embeddings("gallery")
            labels = [old.labels(int(row)) for row in rows]
            bank = old.embeddings("distractor")
            pipeline = saved_pipeline(old)
            next_row = old.rows
        vectors = _embeddings(store, embedder, found.pictures)
        added = writer.append(vectors, _pictures(found.pictures, manifest.root), "gallery")
        for skip in found.skipped:
            writer.skip(skip.path, skip.reason)
        known = set(before.ids)
        new = [i for i, id_ in enumerate(vectors.ids) if id_ not in known]
        contents = _Contents(
            Embeddings(
                np.concatenate([before.vectors, _as_stored(vectors).vectors[new]]),
                (*before.ids, *(vectors.ids[i] for i in new)),
                embedder.fingerprint,
            ),
            np.concatenate([rows, np.arange(next_row, next_row + len(new))]),
            [*labels, *(found.pictures[i].row.labels for i in new)],
            bank,
        )
        learnt = _learn(writer, pipeline, contents, progress)
        writer.commit()
    whitened = embedder.whitening is not None
    return BuildReport(added, 0, found.computed, found.skipped, whitened, learnt.threshold())


def saved_pipeline(gallery: Gallery) -> Pipeline:
    """The pipeline saved with a gallery; the default one where none is."""
    saved = gallery.setting(PIPELINE)
    return Pipeline() if saved is None else Pipeline.model_validate(saved)


@dataclass(frozen=True, eq=False)
class _Contents:
    """What a gallery will hold when the transaction is done."""

    pictures: Embeddings
    rows: NDArray[np.int64]  # the row number of each picture
    labels: list[tuple[str, ...]]
    bank: Embeddings


def _learn(
    writer: GalleryWriter, pipeline: Pipeline, contents: _Contents, progress: Progress
) -> Pipeline:
    """Learns penalty and threshold from the contents; saves and returns the pipeline with them."""
    progress(_LEARNING, 0, 1)
    n = len(contents.pictures)
    searcher = FlatSearcher.of_embeddings(contents.pictures)
    background = mean_background(contents.pictures.vectors, contents.labels)
    writer.set(BACKGROUND, background)
    penalty = pipeline.learn_penalty(
        searcher, contents.bank, rows=n, gallery=n, background=background
    )
    if penalty is not None:
        by_row = np.zeros(max(int(contents.rows.max()) + 1, n), np.float32)
        by_row[contents.rows] = penalty
        writer.put_array(PENALTY, by_row)
    facts = facts_of(contents.labels, penalty, background)
    threshold = learn_threshold(
        pipeline, searcher, facts, contents.pictures, np.arange(n), contents.bank
    )
    learnt = pipeline.with_threshold(threshold if np.isfinite(threshold) else None)
    writer.set(PIPELINE, learnt.model_dump(mode="json"))
    progress(_LEARNING, 1, 1)
    return learnt


def mean_background(vectors: NDArray[np.float32], labels: Sequence[tuple[str, ...]]) -> float:
    """The mean cosine of two pictures of different landmarks, 0 where there are no two.

    Pictures without a landmark count as strangers to all others. Read off the sums of vectors,
    of all pictures and of each landmark, so it costs one pass.
    """
    keys = [(0, names) if names else (i + 1, names) for i, names in enumerate(labels)]
    codes = {key: code for code, key in enumerate(dict.fromkeys(keys))}
    code = np.array([codes[key] for key in keys])
    order = np.argsort(code, kind="stable")
    sizes = np.bincount(code).astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    sums = np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0)
    pairs = len(vectors) ** 2 - float((sizes**2).sum())
    if pairs == 0:
        return 0.0
    total = float((sums.sum(axis=0) ** 2).sum() - (sums**2).sum())
    return float(np.clip(total / pairs, 0.0, MOST_BACKGROUND))


def facts_of(
    labels: Sequence[tuple[str, ...]],
    penalty: NDArray[np.float32] | None,
    background: float = 0.0,
) -> GalleryFacts:
    """GalleryFacts of pictures numbered from 0."""
    names = tuple(sorted({name for row in labels for name in row}))
    code = {name: i for i, name in enumerate(names)}
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in labels])]).astype(np.int64)
    codes = np.array([code[name] for row in labels for name in row], np.int32)
    return GalleryFacts(names, offsets, codes, penalty, background)


def _store(path: Path, embedder: Embedder) -> FeatureStore:
    folder = path / "cache" / "features"
    return FeatureStore(folder, embedder.feature_fingerprint, embedder.feature_dim)


def _extract(
    manifest: Manifest, embedder: Embedder, store: FeatureStore, stage: str, progress: Progress
) -> Extraction:
    progress(stage, 0, len(manifest))
    return extract(
        manifest, embedder, store, progress=lambda done: progress(stage, done, len(manifest))
    )


def _require_pictures(manifest: Manifest, known: Extraction) -> None:
    if known.pictures:
        return
    paths = {row.path for row in manifest.rows}
    failed = [skip for skip in known.skipped if skip.path in paths]
    first = f"; the first is {failed[0].path}: {failed[0].reason}" if failed else ""
    raise ManifestError(
        f"none of its {len(manifest)} pictures can be read{first}",
        where=manifest.root,
        remedy="check that the files are pictures",
    )


def _learn_whitening(store: FeatureStore, known: Extraction, bank: Extraction) -> Whitening:
    sha256s = [picture.sha256 for picture in (*known.pictures, *bank.pictures)]
    step = -(-len(sha256s) // MOST_PICTURES)
    return learn_whitening(store.read(sha256s[::step]))


def _embeddings(
    store: FeatureStore, embedder: Embedder, pictures: Sequence[Extracted], prefix: str = ""
) -> Embeddings:
    vectors = np.empty((len(pictures), embedder.dim), np.float32)
    for piece, features in store.batches([picture.sha256 for picture in pictures]):
        vectors[piece] = embedder.vectors(features)
    ids = tuple(prefix + picture.row.id for picture in pictures)
    return Embeddings(vectors, ids, embedder.fingerprint)


def _as_stored(embeddings: Embeddings) -> Embeddings:
    """As the gallery will give them back, so that a build and adds learn the same."""
    vectors = unit_rows(embeddings.vectors.astype(VECTOR_DTYPE))
    return Embeddings(vectors, embeddings.ids, embeddings.fingerprint)


def _pictures(pictures: Sequence[Extracted], root: Path, prefix: str = "") -> list[Picture]:
    folder = str(root.resolve())
    return [
        Picture(
            id=prefix + picture.row.id,
            labels=picture.row.labels,
            root=folder,
            path=picture.row.path,
            sha256=picture.sha256,
            size=picture.size,
            mtime_ns=picture.mtime_ns,
        )
        for picture in pictures
    ]
