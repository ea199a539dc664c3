"""GalleryInfo: figures of a gallery."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GalleryInfo:
    """Figures of a gallery.

    Attributes:
        path: the gallery folder.
        format: format of the catalog.
        fingerprint: fingerprint of the embedder.
        dim: number of components of a vector.
        precision: precision of the stored vectors: "f16" or "f32".
        pictures: number of pictures with the role "gallery".
        landmarks: number of different labels of these pictures.
        distractors: number of pictures with the role "distractor".
        unlabelled: number of pictures with the role "gallery" and without a label.
        removed: number of removed rows; `compact` frees their space.
        skipped: number of skipped files.
        segments: number of files of vectors.
        bytes_on_disk: size of all files in the folder, including cache/.
        created, updated: UTC, ISO 8601.
        generation: number of changes of the rows.
        landmark_details: landmarks with details, also those without pictures.
    """

    path: Path
    format: int
    fingerprint: str
    dim: int
    precision: str
    pictures: int
    landmarks: int
    distractors: int
    unlabelled: int
    removed: int
    skipped: int
    segments: int
    bytes_on_disk: int
    created: str
    updated: str
    generation: int
    landmark_details: int = 0


def bytes_below(folder: Path) -> int:
    """Returns the number of bytes of all files below a folder; links are not followed."""
    total = 0
    for below, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):  # a writer may remove the file
                total += os.lstat(os.path.join(below, name)).st_size  # noqa: PTH118
    return total
