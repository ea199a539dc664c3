"""What `lmk data check` finds of faults that were put in on purpose.

Copies: 60 photos, each changed in sixteen ways; how many are known as copies of the original.
Label errors: 50 labels exchanged for random others; how many are found, and with the right label.

    python benchmarks/data_check.py [GALLERY]      (defaults to $LMK_REAL_DATA/gallery.csv)
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from lmk.embed.data.manifest import Manifest, read_manifest
from lmk.embed.embeddings import Embeddings
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import Extraction, extract
from lmk.embed.extract.feature_store import FeatureStore
from lmk.eval.check.gallery_check import DataFinding, check_gallery
from lmk.eval.check.same_photo import READ_SIDE, SAME_PHOTO, alikeness

PHOTOS, PLANTED, SEEDS = 60, 50, (0, 1)
Change = Callable[[Image.Image], Image.Image]


def cut(share: float, *, corner: bool = False, height: float | None = None) -> Change:
    """Keeps a share of each side (or another of the height): the middle, or the upper left."""

    def change(image: Image.Image) -> Image.Image:
        width, tall = share * image.width, (height or share) * image.height
        left, top = (0, 0) if corner else ((image.width - width) / 2, (image.height - tall) / 2)
        return image.crop((int(left), int(top), int(left + width), int(top + tall)))

    return change


def bar(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).rectangle((0, 0.9 * image.height, image.width, image.height), "black")
    return image


CHANGES: dict[str, Change] = {
    "JPEG quality 30": lambda image: image,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "100 pixels wide": lambda image: image.resize((100, 100 * image.height // image.width)),
    "1.3 times as high": lambda image: image.resize((image.width, int(1.3 * image.height))),
    "mirrored": ImageOps.mirror,
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "1.4 times brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "turned by 2 degrees": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "crop to 0.9": cut(0.9),
    "crop to 0.8": cut(0.8),
    "crop to 0.7": cut(0.7),
    "crop to 0.65": cut(0.65),
    "crop to 0.6, at a corner": cut(0.6, corner=True),
    "width cut to 0.7": cut(0.7, height=1.0),
    "black bar over the lowest tenth": bar,
    "white border, 8 %": lambda image: ImageOps.expand(image, image.width * 8 // 100, "white"),
}


def grey(image: Image.Image, quality: int) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    small = Image.open(file)
    small.thumbnail((READ_SIDE, READ_SIDE))
    return cv2.cvtColor(np.asarray(small), cv2.COLOR_RGB2GRAY)


def copies(manifest: Manifest) -> None:
    chosen = np.random.default_rng(0).choice(len(manifest), PHOTOS, replace=False)
    found = dict.fromkeys(CHANGES, 0)
    for i in chosen:
        with Image.open(manifest.file(manifest.rows[i])) as image:
            original = image.convert("RGB")
        for name, change in CHANGES.items():
            copy = grey(change(original.copy()), 30 if "quality" in name else 85)
            found[name] += alikeness(grey(original, 95), copy) >= SAME_PHOTO
    for name, count in found.items():
        print(f"{name:34} {count} of {PHOTOS}")


def label_errors(manifest: Manifest, extraction: Extraction, embeddings: Embeddings) -> None:
    before = {finding.pictures[0].id for finding in found_errors(manifest, extraction, embeddings)}
    names = sorted({label for row in manifest.rows for label in row.labels})
    for seed in SEEDS:
        chance = np.random.default_rng(seed)
        pictures = list(extraction.pictures)
        true = {}
        for i in chance.choice(len(pictures), PLANTED, replace=False):
            row = pictures[i].row
            true[row.id] = row.labels[0]
            other = chance.choice([name for name in names if name not in row.labels])
            pictures[i] = replace(pictures[i], row=replace(row, labels=(str(other),)))
        rows = tuple(picture.row for picture in pictures)
        errors = found_errors(
            replace(manifest, rows=rows), replace(extraction, pictures=tuple(pictures)), embeddings
        )
        planted = [finding for finding in errors if finding.pictures[0].id in true]
        right = sum(finding.suggestion == true[finding.pictures[0].id] for finding in planted)
        best = sum(finding.pictures[0].id in true for finding in errors[:20])
        new = [f for f in errors if f.pictures[0].id not in true | dict.fromkeys(before)]
        print(
            f"seed {seed}: {len(planted)} of {PLANTED} exchanged labels found, {right} rightly"
            f" named; {best} of the 20 findings scored highest; {len(new)} new false findings"
        )


def found_errors(
    manifest: Manifest, extraction: Extraction, embeddings: Embeddings
) -> tuple[DataFinding, ...]:
    return tuple(check_gallery(manifest, extraction, embeddings).of("label_error"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    real = Path(os.environ.get("LMK_REAL_DATA", ".")) / "gallery.csv"
    parser.add_argument("gallery", type=Path, nargs="?", default=real)
    options = parser.parse_args()
    if not options.gallery.exists():
        print(f"skipped: no {options.gallery}; name a gallery, or set LMK_REAL_DATA")
        return
    manifest, embedder = read_manifest(options.gallery), Embedder.named()
    copies(manifest)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), embedder.feature_fingerprint, embedder.feature_dim)
        extraction = extract(manifest, embedder, store)
        vectors = embedder.vectors(store.read([one.sha256 for one in extraction.pictures]))
    ids = tuple(picture.row.id for picture in extraction.pictures)
    label_errors(manifest, extraction, Embeddings(vectors, ids, embedder.fingerprint))


if __name__ == "__main__":
    main()
