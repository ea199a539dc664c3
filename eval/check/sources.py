"""Pictures and vectors for `lmk data check`, from a folder or table, an index, or both."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lmk.embed.data.manifest import Manifest, Row
from lmk.embed.embeddings import Embeddings
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import Extracted, Extraction, extract
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.progress import Count, no_count
from lmk.index.gallery.gallery import Gallery
from lmk.index.vectors.labels import ROLES


def pictures_of_index(gallery: Gallery) -> tuple[Manifest, Extraction, Embeddings]:
    """Returns the pictures of an index with their stored vectors, without reading the files.

    Distractors are left out. Paths are relative to the deepest folder that contains all pictures.
    """
    rows = gallery.role_rows("gallery")
    pictures = gallery.pictures(rows)
    files = [os.path.join(picture.root, picture.path) for picture in pictures]  # noqa: PTH118
    roots = {picture.root for picture in pictures}
    above = Path(os.path.commonpath(roots)) if roots else gallery.path
    listed = tuple(
        Row(picture.id, os.path.relpath(file, above), picture.labels)
        for picture, file in zip(pictures, files, strict=True)
    )
    extracted = [
        Extracted(row, picture.sha256, picture.size, picture.mtime_ns)
        for row, picture in zip(listed, pictures, strict=True)
    ]
    manifest = Manifest(above, listed)
    return manifest, Extraction(extracted, (), 0), gallery.embeddings("gallery")


def changed_files(manifest: Manifest, extraction: Extraction) -> int:
    """Returns the number of files that are missing or have another size or modification time."""

    def same(picture: Extracted) -> bool:
        try:
            status = manifest.file(picture.row).stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (picture.size, picture.mtime_ns)

    return sum(not same(picture) for picture in extraction.pictures)


def pictures_of_manifest(
    manifest: Manifest,
    embedder: Embedder,
    store: FeatureStore,
    *,
    gallery: Gallery | None = None,
    on_progress: Count = no_count,
) -> tuple[Extraction, Embeddings]:
    """Returns the pictures of a manifest and their vectors.

    The index supplies the vectors of its own pictures; the embedder computes the others.

    Args:
        manifest: the pictures.
        embedder: the embedder of the index if there is an index.
        store: the store for the features of the other pictures.
        gallery: the index; a picture is identified by its content.
        on_progress: called with the number of pictures done.
    """
    contents = _StoredContents(gallery)
    extraction = extract(manifest, embedder, store, known=contents, on_progress=on_progress)
    pictures = extraction.pictures
    vectors = np.zeros((len(pictures), embedder.dim), np.float32)
    rows = np.array([contents.row(picture.sha256) for picture in pictures], np.int64)
    computed = np.flatnonzero(rows < 0)
    if computed.size:
        raw = store.read([pictures[place].sha256 for place in computed.tolist()])
        vectors[computed] = embedder.vectors(raw)
    if gallery is not None:
        stored = np.flatnonzero(rows >= 0)
        vectors[stored] = gallery.vectors(rows[stored])
    ids = tuple(picture.row.id for picture in pictures)
    return extraction, Embeddings(vectors, ids, embedder.fingerprint)


class _StoredContents:
    """The contents of the pictures in an index, by SHA-256."""

    def __init__(self, gallery: Gallery | None) -> None:
        self._gallery = gallery

    def __contains__(self, sha256: object) -> bool:
        return isinstance(sha256, str) and self.row(sha256) >= 0

    def row(self, sha256: str) -> int:
        """Returns the row of a picture with this content, or -1."""
        if self._gallery is not None:
            for role in ROLES:
                rows = self._gallery.same_content(sha256, role)
                if rows:
                    return rows[0]
        return -1
