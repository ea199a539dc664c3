"""Wall time of `lmk query` on one photo from the shell, and where it goes.

    python benchmarks/query_time.py [INDEX PHOTO] [--runs 5]

"first" is a run after the operating system was asked to forget the index and the installed packages
(posix_fadvise), as after a start of the machine. The phases are timed in one further process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

LMK = Path(sys.executable).parent / "lmk"
SAMPLE = Path("demo/sample.lmk")  # made by `lmk demo`
PHOTO = Path("examples/queries/04153e4e038fd33a.jpg")
PHASES = """
import sys, time
marks = [("start", time.perf_counter())]
def mark(name): marks.append((name, time.perf_counter()))
from pathlib import Path
from lmk.rerank.recognizer import Recognizer
mark("imports (numpy, OpenCV, Pillow, pydantic)")
recognizer = Recognizer.open(sys.argv[1]); mark("open the index, check every file")
recognizer.embedder.start(); mark("OpenVINO: import, compile the graph")
vectors, _ = recognizer.embedder.embed([Path(sys.argv[2])]); mark("decode and embed the photo")
recognizer.search(vectors, 1); mark("FAISS: import, load, search")
recognizer.predict(vectors); mark("vote")
for (_, before), (name, after) in zip(marks, marks[1:]):
    print(f"  {name:45} {1000 * (after - before):6.0f} ms")
print("  torch imported:", "torch" in sys.modules)
"""


def forget(folder: Path) -> None:
    """Drops the files of a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def wall(index: Path, photo: Path) -> float:
    started = time.perf_counter()
    subprocess.run([LMK, "query", photo, "-i", index], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path, nargs="?", default=SAMPLE)
    parser.add_argument("photo", type=Path, nargs="?", default=PHOTO)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if options.index == SAMPLE and not SAMPLE.exists():
        subprocess.run([LMK, "demo"], check=True, stdout=subprocess.DEVNULL)
    forget(options.index)
    forget(Path(sys.prefix))
    print(f"first run   {wall(options.index, options.photo):.2f} s")
    runs = [wall(options.index, options.photo) for _ in range(options.runs)]
    print(f"later runs  {statistics.median(runs):.2f} s (median of {len(runs)})")
    command = [sys.executable, "-P", "-c", PHASES, options.index, options.photo]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
