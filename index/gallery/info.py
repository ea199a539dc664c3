"""GalleryInfo: a gallery in numbers."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GalleryInfo:
    """A gallery in numbers.

    Attributes:
        path: its folder.
        format: of its catalog.
        fingerprint: of its embedder.
        dim: components of a vector.
        precision: of the stored vectors: "f16" or "f32".
        pictures: with role "gallery".
        landmarks: different labels of these pictures.
        distractors: pictures with role "distractor".
        unlabelled: pictures with role "gallery" that have no label.
        removed: rows that were removed; `compact` gives their space back.
        skipped: files left out.
        segments: files of vectors.
        bytes_on_disk: of everything in the folder, cache/ too.
        created, updated: UTC, ISO 8601.
        generation: counts the changes of the rows.
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
    """Returns the bytes of all files below a folder; a link counts itself."""
    total = 0
    for below, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):  # a writer may have removed it meanwhile
                total += os.lstat(os.path.join(below, name)).st_size  # noqa: PTH118
    return total
