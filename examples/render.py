"""Render the sample gallery: invented landmarks, non-landmarks, queries and their solution.

python examples/render.py [--out FOLDER] [--only NAME] [--size PIXELS] [--jobs N]
python examples/render.py --check-histogram [--out FOLDER]
"""

import argparse
import csv
import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from everyday import EVERYDAY
from landmarks import LANDMARKS
from numpy.typing import NDArray
from photo import LONG_SIDE, SEED, photograph
from PIL import Image

GALLERY_VIEWS, QUERY_VIEWS, BANK, OTHERS = 10, 3, 60, 36
QUERY_SEED = 100  # gallery and bank count from 0, queries from here: no view is shared
QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """One file of the gallery: what it shows, and its path below the output folder."""

    kind: str
    seed: int
    path: Path


def pictures() -> Iterator[Picture]:
    """Every picture of the sample: gallery, bank of non-landmarks, queries."""
    for landmark in LANDMARKS:
        for view in range(GALLERY_VIEWS):
            folder = Path("gallery") / landmark.name
            yield Picture(landmark.name, view, folder / f"{landmark.name}_{view:02d}.jpg")
    scenes = list(EVERYDAY)
    for number in range(BANK):
        kind, seed = scenes[number % len(scenes)], number // len(scenes)
        yield Picture(kind, seed, Path("distractors") / f"{kind}_{seed:02d}.jpg")
    queries = [(landmark.name, view) for landmark in LANDMARKS for view in range(QUERY_VIEWS)]
    queries += [(scenes[n % len(scenes)], n // len(scenes)) for n in range(OTHERS)]
    for kind, view in queries:
        seed = QUERY_SEED + view
        yield Picture(kind, seed, Path("queries") / f"{query_id(kind, seed)}.jpg")


def query_id(kind: str, seed: int) -> str:
    """Sixteen hexadecimal digits that do not tell what the picture shows."""
    return hashlib.sha256(f"{SEED}/{kind}/{seed}".encode()).hexdigest()[:16]


def write_solution(out: Path) -> None:
    """Write solution.csv in the contest's recognition format; Usage alternates over sorted ids."""
    names = {landmark.name for landmark in LANDMARKS}
    rows = sorted(
        (p.path.stem, p.kind if p.kind in names else "")
        for p in pictures()
        if p.path.parts[0] == "queries"
    )
    with (out / "solution.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "landmarks", "Usage"])
        for number, (name, landmark) in enumerate(rows):
            writer.writerow([name, landmark, ("Public", "Private")[number % 2]])


def render(picture: Picture, out: Path, size: int) -> Path:
    """Render one picture and write it as JPEG below `out`."""
    path = out / picture.path
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(photograph(picture.kind, picture.seed, size))
    image.save(path, quality=QUALITY, optimize=True)
    return path


def histogram(path: Path, hsv: bool = False) -> NDArray[np.float32]:
    """Shares [512] of the picture's colours over 8 x 8 x 8 bins of RGB or HSV."""
    image = np.asarray(Image.open(path).convert("RGB"))
    top = [256, 256, 256]
    if hsv:
        image, top = cv2.cvtColor(image, cv2.COLOR_RGB2HSV), [180, 256, 256]
    ranges = [v for high in top for v in (0, high)]
    counts = cv2.calcHist([image], [0, 1, 2], None, [8, 8, 8], ranges).ravel()
    return np.asarray(counts / counts.sum(), np.float32)


def histogram_accuracy(out: Path, hsv: bool = False) -> float:
    """Share of landmark queries whose nearest gallery picture by colour (L1) is right."""
    gallery = sorted((out / "gallery").glob("*/*.jpg"))
    known = np.stack([histogram(path, hsv) for path in gallery])
    with (out / "solution.csv").open(newline="") as file:
        truth = {row["id"]: row["landmarks"] for row in csv.DictReader(file) if row["landmarks"]}
    right = 0
    for name, landmark in truth.items():
        query = histogram(out / "queries" / f"{name}.jpg", hsv)
        nearest = int(np.abs(known - query).sum(axis=1).argmin())
        right += gallery[nearest].parent.name == landmark
    return right / len(truth)


def main() -> int:
    """Run the command line; see the module's description."""
    parser = argparse.ArgumentParser(description="Render the sample gallery.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    parser.add_argument("--only", help="one landmark, scene, folder or file stem")
    parser.add_argument("--size", type=int, default=LONG_SIDE, help="longer side in pixels")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument(
        "--check-histogram",
        action="store_true",
        help="score colour histograms instead of rendering",
    )
    options = parser.parse_args()
    if options.check_histogram:
        for name, hsv in (("RGB", False), ("HSV", True)):
            print(f"{name} {histogram_accuracy(options.out, hsv):.3f}")
        return 0
    wanted = [p for p in pictures() if options.only in (None, p.kind, p.path.parts[0], p.path.stem)]
    if not wanted:
        parser.error(f"--only {options.only}: no landmark, scene, folder or file has this name")
    options.out.mkdir(parents=True, exist_ok=True)
    write_solution(options.out)
    with ProcessPoolExecutor(options.jobs) as pool:
        paths = pool.map(render, wanted, [options.out] * len(wanted), [options.size] * len(wanted))
        for number, path in enumerate(paths, 1):
            print(f"{number}/{len(wanted)} {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
