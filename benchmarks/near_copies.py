"""Near-copies in a gallery: how far they move the threshold and the answers.

A seeded part of the real photos becomes a small gallery with distractors. The same gallery is built
again with copies of its photos: cropped, made smaller as the thumbnails of a photo server are,
frames of a burst, and copies that lie under another landmark or among the distractors. Each index
answers the same other photos of its landmarks and the distractors of the other half.

"held" is the number of right answers if the threshold without copies is kept: the copies may change
the answers themselves too, so this column says what the threshold alone does.

    python benchmarks/near_copies.py [DATA] [--networks landmarks-lite1,lite0] [--features FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.defaults import DEFAULT
from lmk.embed.embeddings import Embeddings
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import extract
from lmk.embed.extract.feature_store import FeatureStore
from lmk.rerank.indexing.build import build_index
from lmk.rerank.recognizer import Recognizer

PHOTOS, QUERIES, DISTRACTORS = 267, 317, 300  # of each half of the distractors
STRAY = 10  # every tenth copy lies under another landmark, or among the distractors
SEED = 0
JPEG_QUALITY = 85


def cropped(image: Image.Image) -> Image.Image:
    """The middle 98 % of each side."""
    width, height = image.size
    cut = (round(0.01 * width), round(0.01 * height))
    return image.crop((*cut, width - cut[0], height - cut[1]))


def thumbnail(image: Image.Image) -> Image.Image:
    """At most 160 pixels wide and high."""
    small = image.copy()
    small.thumbnail((160, 160))
    return small


def frame(shift: float, turn: float, light: float) -> Callable[[Image.Image], Image.Image]:
    """Another frame of a burst: the camera moved a little, and the light changed."""

    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        left, top = round(shift * width), round(shift * height / 2)
        turned = image.rotate(turn, Image.Resampling.BICUBIC)
        part = turned.crop((left, top, round(0.95 * width) + left, round(0.95 * height) + top))
        return ImageEnhance.Brightness(part).enhance(light)

    return change


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "cropped": cropped,
    "thumbnail": thumbnail,
    "burst1": frame(0.02, 0.7, 1.05),
    "burst2": frame(0.04, -0.7, 0.95),
}


@dataclass(frozen=True)
class Data:
    """The photos of the measurement, all below one folder.

    Attributes:
        gallery: the photos.
        copies: of each photo of the gallery, by the name of the change.
        distractors: of one half.
        landmarks: photos of the gallery's landmarks that ask.
        others: distractors of the other half, that ask.
    """

    gallery: Manifest
    copies: dict[str, Manifest]
    distractors: Manifest
    landmarks: Manifest
    others: Manifest

    def scenarios(self) -> Iterator[tuple[str, Manifest, Manifest]]:
        """Yields a name, a gallery and its distractors."""
        rows, bank = self.gallery.rows, self.distractors
        copies = {name: manifest.rows for name, manifest in self.copies.items()}
        burst = (*copies["burst1"], *copies["burst2"])
        stray, others = copies["cropped"][::STRAY], sorted({row.labels for row in rows})
        elsewhere = tuple(
            replace(row, labels=others[(others.index(row.labels) + 1) % len(others)])
            for row in stray
        )
        unlabelled = tuple(replace(row, labels=()) for row in stray)
        for name, more, more_bank in (
            ("without copies", (), ()),
            ("each cropped by 2 %", copies["cropped"], ()),
            ("each as a thumbnail of 160 px", copies["thumbnail"], ()),
            ("each as a burst of three", burst, ()),
            ("all of these", tuple(row for some in copies.values() for row in some), ()),
            ("every tenth under another landmark", elsewhere, ()),
            ("every tenth among the distractors", (), unlabelled),
            ("each distractor cropped by 2 %", (), copied_bank(self)),
        ):
            yield (
                name,
                replace(self.gallery, rows=(*rows, *more)),
                replace(bank, rows=(*bank.rows, *more_bank)),
            )


def copied_bank(data: Data) -> tuple[Row, ...]:
    """A cropped copy of each distractor, made where it is missing."""
    return tuple(change(data.distractors, row, "cropped") for row in data.distractors.rows)


def change(manifest: Manifest, row: Row, name: str) -> Row:
    """Writes a changed copy of a picture beside the others, and returns its row."""
    path = f"{name}/{row.id}.jpg"
    file = manifest.root / path
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        with Image.open(manifest.file(row)) as image:
            CHANGES[name](image.convert("RGB")).save(file, quality=JPEG_QUALITY)
    return replace(row, id=f"{row.id}-{name}", path=path)


def chosen(rows: tuple[Row, ...], count: int, chance: np.random.Generator) -> tuple[Row, ...]:
    """Some of the rows, in their order."""
    places = np.sort(chance.choice(len(rows), min(count, len(rows)), replace=False))
    return tuple(rows[place] for place in places.tolist())


def prepared(source: Path, folder: Path) -> Data:
    """Chooses the photos, and copies and changes them into a folder."""
    chance = np.random.default_rng(SEED)
    gallery = chosen(read_manifest(source / "gallery.csv").rows, PHOTOS, chance)
    held = {label for row in gallery for label in row.labels}
    asked = tuple(
        row for row in read_manifest(source / "queries.csv").rows if held & set(row.labels)
    )
    landmarks = chosen(asked, QUERIES, chance)
    with (source / "distractors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    halves = [
        chosen(
            tuple(Row(row["id"], row["path"]) for row in rows if row["half"] == half),
            DISTRACTORS,
            chance,
        )
        for half in ("bank", "query")
    ]
    moved = []
    for part in (gallery, *halves, landmarks):
        for row in part:
            (folder / row.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / row.path, folder / row.path)
        moved.append(Manifest(folder, part))
    copies = {
        name: Manifest(folder, tuple(change(moved[0], row, name) for row in gallery))
        for name in CHANGES
    }
    return Data(moved[0], copies, moved[1], moved[3], moved[2])


def embedded(manifest: Manifest, embedder: Embedder, store: FeatureStore) -> Embeddings:
    """Raw features of a manifest's pictures, as if they were embeddings; all must be readable."""
    found = extract(manifest, embedder, store)
    assert len(found.pictures) == len(manifest)
    features = store.read([picture.sha256 for picture in found.pictures])
    ids = tuple(picture.row.id for picture in found.pictures)
    return Embeddings(features, ids, embedder.fingerprint)


def answered(
    recognizer: Recognizer, asked: Embeddings
) -> tuple[list[str | None], NDArray[np.float32]]:
    """The best label and the confidence of each answer, before the threshold."""
    vectors = recognizer.embedder.vectors(asked.vectors)
    found = recognizer.predict(Embeddings(vectors, asked.ids, recognizer.embedder.fingerprint))
    return list(found.labels), found.confidence


def measure(name: str, data: Data, features: Path, folder: Path, *, whiten: bool) -> None:
    """One line for each gallery."""
    embedder = Embedder.named(name)
    store = FeatureStore(features, embedder.feature_fingerprint, embedder.feature_dim)
    asked = [embedded(each, embedder, store) for each in (data.landmarks, data.others)]
    print(f"\n## {name}{', whitened' if whiten else ''}: {len(asked[0])} photos of landmarks,"
          f" {len(asked[1])} of none")  # fmt: skip
    print("gallery | pictures | threshold | right | held | right, any confidence | none right")
    print(" | ".join(["---"] * 7), flush=True)
    held: float | None = None
    for number, (scenario, gallery, distractors) in enumerate(data.scenarios()):
        for manifest in (gallery, distractors):
            extract(manifest, embedder, store)
        path = folder / f"{number}.lmk"
        shutil.copytree(features, path / "cache" / "features")
        build_index(gallery, path, embedder, distractors=distractors, whiten=whiten)
        with Recognizer.open(path) as recognizer:
            threshold = recognizer.pipeline.threshold()
            assert threshold is not None
            held = threshold if held is None else held
            labels, sure = answered(recognizer, asked[0])
            right = np.array(
                [
                    label in row.labels
                    for label, row in zip(labels, data.landmarks.rows, strict=True)
                ]
            )
            none = answered(recognizer, asked[1])[1]
        shutil.rmtree(path)
        cells = (
            f"{len(gallery)}",
            f"{threshold:.4f}",
            f"{(right & (sure >= threshold)).sum()}",
            f"{(right & (sure >= held)).sum()}",
            f"{right.sum()}",
            f"{(none < threshold).sum()}",
        )
        print(" | ".join([scenario, *cells]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    real = Path(os.environ.get("LMK_REAL_DATA", "."))
    parser.add_argument("data", type=Path, nargs="?", default=real)
    parser.add_argument("--networks", default=f"{DEFAULT},lite0")
    parser.add_argument("--whiten", action="store_true", help="learn a whitening in each index")
    parser.add_argument("--features", type=Path, help="keep the features of the photos here")
    options = parser.parse_args()
    source = options.data.resolve()
    if not (source / "gallery.csv").exists():
        print(f"skipped: no gallery.csv in {source}; name the folder, or set LMK_REAL_DATA")
        return
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(source, Path(folder))
        features = options.features or Path(folder) / "features"
        features.mkdir(parents=True, exist_ok=True)
        for name in options.networks.split(","):
            indexes = Path(folder) / name
            measure(name, data, features, indexes, whiten=options.whiten)


if __name__ == "__main__":
    main()
