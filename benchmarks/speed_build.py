"""Pictures a second from JPEG files: `lmk build-index` against a plain timm loop, in one run.

The peer is what one would write first: timm's own transform on PIL pictures, a DataLoader with a
worker for each core, torch on the CPU, the same network (backbone, weights, GeM, size). Both read
the same files; the vectors of both are compared. `lmk build-index` is timed whole, as a command,
start-up, whitening and index included, and once more as its steady rate.

    python benchmarks/speed_build.py [FOLDER|CSV] [--most 1000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset

from lmk.embed.data.images import decode
from lmk.embed.data.manifest import Manifest, read_manifest
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import extract_stream


class Pictures(Dataset[Any]):
    """PIL pictures through timm's transform."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths = paths
        self.transform = create_transform(
            (3, size, size), crop_mode="squash", crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB"))


def plain_loop(manifest: Manifest, embedder: Embedder) -> tuple[float, np.ndarray]:
    network = embedder.network()
    pictures = Pictures([manifest.file(row) for row in manifest.rows], embedder.config.size)
    loader = DataLoader(pictures, batch_size=32, num_workers=os.cpu_count() or 1)
    started = time.perf_counter()
    with torch.inference_mode():
        features = [network.pool(network.backbone.forward_features(batch)) for batch in loader]
    rate = len(pictures) / (time.perf_counter() - started)
    return rate, embedder.vectors(torch.cat(features).numpy())


def steady(manifest: Manifest, embedder: Embedder) -> tuple[float, np.ndarray]:
    embedder.start()
    started = time.perf_counter()
    vectors = [batch.vectors for batch, _ in extract_stream(manifest, embedder)]
    return len(manifest) / (time.perf_counter() - started), np.concatenate(vectors)


def command(source: Path, root: Path, most: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        lmk = Path(sys.executable).parent / "lmk"
        started = time.perf_counter()
        subprocess.run(
            [lmk, "build-index", source, "--root", root, "-o", f"{folder}/bench.lmk"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return most / (time.perf_counter() - started)


def same_pixels(manifest: Manifest, embedder: Embedder, most: int = 64) -> float:
    """The lowest cosine between OpenVINO's and torch's vectors of the same decoded pictures."""
    files = [manifest.file(row) for row in manifest.rows[:most]]
    pictures = [decode(file.read_bytes(), embedder.config.size) for file in files]
    arrays = [picture for picture in pictures if not isinstance(picture, str)]
    ours = embedder.vectors(np.stack(list(embedder.features(arrays))))
    with torch.inference_mode():
        theirs = embedder.network()(torch.from_numpy(np.stack(arrays))).numpy()
    return float((ours * embedder.vectors(theirs)).sum(axis=1).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", default=Path("examples/gallery"))
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--model", default="lite1")
    options = parser.parse_args()
    whole = read_manifest(options.source)
    manifest = Manifest(whole.root, whole.rows[: options.most])
    embedder = Embedder.named(options.model)
    with tempfile.TemporaryDirectory() as folder:
        subset = Path(folder) / "subset.csv"
        lines = [f"{row.id},{row.path},{' '.join(row.labels)}" for row in manifest.rows]
        subset.write_text("\n".join(["id,path,landmark_id", *lines]) + "\n")
        ours, vectors = steady(manifest, embedder)
        plain, peer = plain_loop(manifest, embedder)
        whole_command = command(subset, manifest.root.resolve(), len(manifest))
    size = embedder.config.size
    print(f"{len(manifest)} pictures, {options.model} at {size} px, {os.cpu_count()} cores")
    print(f"plain timm + PIL + DataLoader   {plain:7.1f} pictures/s")
    print(f"lmk, steady                     {ours:7.1f} pictures/s  {ours / plain:5.2f} x")
    print(
        f"lmk build-index, whole command  {whole_command:7.1f} pictures/s  "
        f"{whole_command / plain:5.2f} x"
    )
    print(f"lowest cosine OpenVINO - torch, same pixels: {same_pixels(manifest, embedder):.5f}")
    cosines = (vectors * peer).sum(axis=1)
    print(
        f"cosine to the plain loop's vectors (other decoder and resize): median "
        f"{np.median(cosines):.4f}, lowest {cosines.min():.4f}"
    )


if __name__ == "__main__":
    main()
