"""How long a large gallery takes to build, open and change, and how much memory.

    python benchmarks/gallery.py [--rows 1000000] [--dim 512] [--labels 100000] [--keep FOLDER]

Each figure is of a process of its own, as on the command line, without the imports. What is timed
is the index's part: the picture is embedded already. The disk's cache is warm, as after a build.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter

FINGERPRINT = "f" * 64
BLOCK_ROWS = 8192
RUNS = 5


def batches(rows: int, dim: int, labels: int) -> Iterator[tuple[Embeddings, list[Picture]]]:
    """Random unit vectors; few landmarks have many pictures and many have few."""
    for first in range(0, rows, BLOCK_ROWS):
        rng = np.random.default_rng([0, first])
        size = min(BLOCK_ROWS, rows - first)
        codes = (labels * rng.random(size) ** 2).astype(np.int64)
        vectors = unit_rows(rng.standard_normal((size, dim), np.float32))
        pictures = [picture(first + i, f"landmark {code}") for i, code in enumerate(codes)]
        yield Embeddings(vectors, tuple(p.id for p in pictures), FINGERPRINT), pictures


def picture(number: int, label: str) -> Picture:
    digest = hashlib.sha256(b"%d" % number).hexdigest()
    id_ = f"{label}/{digest[:16]}.jpg"
    return Picture(id_, (label,), "/photos", id_, digest, 200_000 + number % 1000, 10**18 + number)


def one_more(number: int, dim: int) -> tuple[Embeddings, list[Picture]]:
    new = picture(10**9 + number, "landmark 7")
    vector = unit_rows(np.random.default_rng([1, number]).standard_normal((1, dim)))
    return Embeddings(vector, (new.id,), FINGERPRINT), [new]


def build(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    took = 0.0
    with GalleryWriter(path, create=True) as writer:
        writer.reset(FINGERPRINT, arguments.dim)
        for embeddings, pictures in batches(arguments.rows, arguments.dim, arguments.labels):
            start = time.perf_counter()
            writer.append(embeddings, pictures)
            took += time.perf_counter() - start
        start = time.perf_counter()
        writer.commit()
    return {"build s": took + time.perf_counter() - start}


def open_(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    before, start = _resident(), time.perf_counter()
    with Gallery.open(path) as gallery:
        took = time.perf_counter() - start
        assert gallery.rows >= arguments.rows
        return {"open s": took, "open, resident MB more": _resident() - before}


def add(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    (number,) = arguments.numbers
    embeddings, pictures = one_more(number, arguments.dim)
    return _timed(path, "add one", lambda writer: writer.append(embeddings, pictures))


def remove(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    (number,) = arguments.numbers
    id_ = one_more(number, arguments.dim)[1][0].id
    return _timed(path, "remove one", lambda writer: writer.remove([id_]))


def compact(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    return _timed(path, "compact", GalleryWriter.compact)


def _timed(path: Path, name: str, act: Callable[[GalleryWriter], object]) -> dict[str, float]:
    times = [time.perf_counter()]
    writer = GalleryWriter(path)
    times.append(time.perf_counter())
    act(writer)
    times.append(time.perf_counter())
    writer.commit()
    times.append(time.perf_counter())
    writer.close()
    times.append(time.perf_counter())
    stages = ("open", "change", "commit", "close")
    each = {f"{name}, {s} ms": 1000 * d for s, d in zip(stages, np.diff(times), strict=True)}
    return {f"{name} ms": 1000 * (times[-1] - times[0]), **each}


def _resident() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def measure(act: str, path: Path, options: list[str], numbers: list[int]) -> dict[str, float]:
    """Runs one act once for each number, in a process each; the median of each figure."""
    seen: list[dict[str, float]] = []
    for number in numbers:
        command = [sys.executable, "-P", __file__, "--act", act, "--keep", str(path), *options]
        command += ["--numbers", str(number)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        seen.append(json.loads(done.stdout))
    return {name: statistics.median(figures[name] for figures in seen) for name in seen[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="build here and leave it; used if it is there")
    parser.add_argument("--act", help=argparse.SUPPRESS)
    parser.add_argument("--numbers", type=int, nargs=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.act:
        acts = {"build": build, "open": open_, "add": add, "remove": remove, "compact": compact}
        figures = acts[arguments.act](arguments.keep, arguments)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(json.dumps({**figures, f"{arguments.act}, peak resident MB": peak}))
        return
    options = [f"--{name}={getattr(arguments, name)}" for name in ("rows", "dim", "labels")]
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.keep or Path(folder) / "large.lmk"
        print(f"{arguments.rows:,} x {arguments.dim}, {arguments.labels:,} labels, half precision")
        todo = [] if (path / "catalog.db").exists() else [("build", [0])]
        numbers = list(range(RUNS))
        first = time.time_ns() // 1000  # a kept gallery has had other pictures added
        fresh = [first + n for n in numbers]
        for act, given in (*todo, ("open", numbers), ("add", fresh), ("open", numbers),
                           ("remove", fresh), ("open", numbers), ("compact", [0])):  # fmt: skip
            figures = measure(act, path, options, given)
            print("\n".join(f"{value:12,.3f}  {name}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
