"""Kills and interrupts every command that writes an index, and counts what was lost or damaged.

    python benchmarks/kills.py [--kills 200] [--stops 60] [--seed 0]

A kill is a SIGKILL, a stop one Ctrl-C (SIGINT) or two in quick succession, both real and at a
random moment of the command. After each one the index must be as it was or as the command leaves
it, with every picture, and `lmk index verify` clean; a damaged index must have the same damage and
every file it had, byte for byte, or be mended. Then the same command is run again and must reach
the end. A stop must end with exit code 130, or with that of a command that had done its work.

The index is small: rendered pictures, a network of random weights on pictures of 48 px. Killed
commands are forks of this process, which has imported everything; stopped ones are new processes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lmk.cli.entry import run
from lmk.embed.errors import LmkError
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery import transaction
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify

LOADED = (  # before the forks, to save time
    "faiss", "numba", "openvino", "pandas", "rich.progress", "safetensors.torch", "timm", "torch",
    "lmk.cli.index.build", "lmk.cli.answer.calibrate", "lmk.cli.index.group",
    "lmk.cli.answer.tune", "lmk.embed.network.build", "lmk.rerank.indexing.build",
    "lmk.rerank.recognizer",
)  # fmt: skip
FORK = multiprocessing.get_context("fork")
LIMIT = 300.0  # seconds that a command may take
CLOSE = 0.02  # vectors of an embedder that was exported again differ less
VOLATILE = ("last relabelling",)


@dataclass(frozen=True)
class Case:
    """A command to be killed.

    Attributes:
        command: of `lmk`, run in the folder; the index is i.lmk.
        damage: what is done to the index before it.
        prepare: a command that is run before it.
        fresh: whether there is no index before it.
    """

    command: tuple[str, ...]
    damage: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    fresh: bool = False


BUILD = ("build-index", "gallery", "-o", "i.lmk", "--model", "a", "--distractors", "bank")
REPAIR = ("index", "repair", "i.lmk", "--model", "a")
CASES = {
    "build": Case((*BUILD, "--whiten"), fresh=True),
    "rebuild": Case(
        ("build-index", "more", "-o", "i.lmk", "--model", "b", "--distractors", "bank")
    ),
    "add": Case(("index", "add", "i.lmk", "more")),
    "remove": Case(("index", "remove", "i.lmk", "place_0/0.png", "--label", "place_1")),
    "relabel": Case(("index", "relabel", "i.lmk", "place_0/0.png", "--label", "place_1")),
    "rename-label": Case(("index", "rename-label", "i.lmk", "place_2", "spire")),
    "sync": Case(("index", "sync", "i.lmk", "mixed", "--allow-removals")),
    "merge": Case(("index", "merge", "one.lmk", "two.lmk", "-o", "i.lmk")),
    "compact": Case(
        ("index", "compact", "i.lmk"), prepare=("index", "remove", "i.lmk", "place_0/1.png")
    ),
    "set": Case(("index", "set", "i.lmk", "--kind", "flat")),
    "tune": Case(("tune", "i.lmk", "--data", "known", "--folds", "2", "--apply")),
    "calibrate": Case(("calibrate", "i.lmk", "--data", "known")),
    "repair graph": Case(REPAIR, ("graph.bin",)),
    "repair no graph": Case(REPAIR, ("no graph",)),
    "repair weights": Case(REPAIR, ("weights.safetensors",)),
    "repair config": Case(REPAIR, ("config.json",)),
    "repair segments": Case(REPAIR, ("segments", "no features")),
    "repair arrays": Case(REPAIR, ("arrays",)),
    "repair cache": Case(REPAIR, ("cache",)),
    "repair much": Case(REPAIR, ("graph.bin", "segments", "arrays", "cache")),
    "repair all": Case(
        REPAIR, ("weights.safetensors", "no graph", "segments", "arrays", "no features")
    ),
}


def render(path: Path, seed: int, view: int = 0) -> None:
    """Writes a picture of coloured blotches; views of a seed differ by noise."""
    blotches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    large = Image.fromarray(blotches).resize((96, 96), Image.Resampling.BICUBIC)
    noise = np.random.default_rng([seed, view]).integers(-20, 20, (96, 96, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.asarray(large, np.int64) + noise, 0, 255).astype(np.uint8)).save(
        path
    )


NETWORKS = """
import sys, timm, torch
from pathlib import Path
from safetensors.torch import save_file
from lmk.embed.extract.embedder import Embedder
torch.manual_seed(0)
save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "w.safetensors")
for name, size in (("a", 48), ("b", 40)):
    Path(name).mkdir()
    Embedder.named("test_resnet", weights=Path("w.safetensors"), size=size).save(Path(name))
"""


def prepare(folder: Path) -> None:
    """Writes pictures, networks and indexes."""
    for seed in range(5):
        for view in range(3):
            render(folder / "gallery" / f"place_{seed}" / f"{view}.png", seed, view)
            render(folder / "more" / f"tower_{seed}" / f"{view}.png", 100 + seed, view)
            render(folder / "known" / f"place_{seed}" / f"k{view}.png", seed, 50 + view)
    for seed in range(6):
        render(folder / "bank" / f"{seed}.png", 1000 + seed)
        render(folder / "known" / f"none{seed}.png", 2000 + seed)
    shutil.copytree(folder / "more", folder / "mixed")
    shutil.copytree(folder / "gallery" / "place_0", folder / "mixed" / "place_0")
    shutil.copytree(folder / "gallery" / "place_1", folder / "mixed" / "castle")
    subprocess.run([sys.executable, "-P", "-c", NETWORKS], cwd=folder, check=True)
    for name, source in (("one", "gallery"), ("two", "more")):
        done(folder, ("build-index", source, "-o", f"{name}.lmk", "--model", "a"))
    done(folder, (*BUILD, "--whiten"))
    (folder / "i.lmk").rename(folder / "old.lmk")


def start(folder: Path, command: tuple[str, ...]) -> Any:
    """Starts a command as a fork of this process."""

    def act() -> None:
        os.chdir(folder)
        for descriptor in (1, 2):
            os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        transaction.INLINE_ROWS = 1  # so that few pictures make a segment
        sys.argv = ["lmk", *command]
        run()

    child = FORK.Process(target=act)
    child.start()
    return child


def done(folder: Path, command: tuple[str, ...]) -> int:
    """Runs a command to its end, and returns its exit code."""
    child = start(folder, command)
    child.join(LIMIT)
    if child.exitcode is None:
        child.kill()
        raise SystemExit(f"{' '.join(command)} takes longer than {LIMIT:.0f} s")
    return int(child.exitcode)


def forked(act: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a function returns in a fork; this process starts no network."""
    receive, send = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: send.send(act(*arguments)))
    child.start()
    send.close()
    result = receive.recv()
    child.join()
    return result


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


def damage(index: Path, what: str) -> None:
    """Damages an index in one way."""
    if what == "no graph":
        for file in index.glob("embedder/*/graph.*"):
            file.unlink()
    elif what in ("segments", "arrays"):
        for file in (index / what).iterdir():
            flip(file)
    elif what == "cache":
        search = index / "cache" / "search"
        search.mkdir(parents=True, exist_ok=True)
        (search / "x.index").write_text("derived")
        (search / "x.index.note").write_text("{}")
    elif what == "no features":
        shutil.rmtree(index / "cache" / "features")
    else:
        flip(next(index.glob(f"embedder/*/{what}")))


def tree(index: Path) -> dict[str, str]:
    """The SHA-256 of each file that a catalog may name."""
    return {
        file.relative_to(index).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for top in ("embedder", "segments", "arrays")
        for file in (index / top).rglob("*")
        if file.is_file()
    }


@dataclass(frozen=True)
class Found:
    """An index as it is found.

    Attributes:
        damage: (file, what) of each finding; (index, error) where it cannot be opened.
        ids, labels, settings: of what it holds.
        vectors: float32 [n, dim].
        complete: whether its embedder can be loaded, weights and graph and all.
        files: see `tree`.
    """

    damage: tuple[tuple[str, str], ...]
    ids: tuple[str, ...] = ()
    labels: tuple[tuple[str, ...], ...] = ()
    settings: str = ""
    vectors: Any = None
    complete: bool = False
    files: Any = None

    def same(self, other: Found) -> bool:
        """Whether it holds what another holds, with the same damage."""
        if self.vectors is None or other.vectors is None:
            return self.damage == other.damage and self.vectors is other.vectors
        return (
            (self.damage, self.ids, self.labels, self.settings, self.complete)
            == (other.damage, other.ids, other.labels, other.settings, other.complete)
            and self.vectors.shape == other.vectors.shape
            and np.allclose(self.vectors, other.vectors, atol=CLOSE)
        )  # fmt: skip


def look(index: Path) -> Found:
    """Reads all of an index."""
    try:
        findings = tuple((f.where.name, f.what) for f in verify(index))
    except LmkError as error:
        return Found(((index.name, error.what),))
    files = tree(index)
    if any(name != "x.index" for name, _ in findings):
        return Found(findings, files=files)
    with Gallery.open(index, verify=True) as gallery:
        rows = np.flatnonzero(gallery.alive)
        ids = gallery.ids(rows)
        order = np.argsort(ids)
        labels = [gallery.labels(int(rows[i])) for i in order]
        embedder = Embedder.load(gallery.embedder_dir)
        embedder.network()  # compares the weights with the fingerprint
        settings = {k: _rounded(v) for k, v in gallery.settings().items() if k not in VOLATILE}
        return Found(
            findings,
            tuple(ids[i] for i in order),
            tuple(labels),
            repr(sorted(settings.items())),
            gallery.vectors(rows)[order],
            not embedder.lacks_graph(),
            files,
        )


def _rounded(value: Any) -> Any:
    """A setting without the digits that a graph exported again may change."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in sorted(value.items())}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 1) if isinstance(value, float) else value


class Trial:
    """One command, killed or stopped again and again."""

    def __init__(self, name: str, case: Case, folder: Path) -> None:
        self.name, self.case, self.folder = name, case, folder
        self.index, self.kept = folder / "i.lmk", folder / f"{name}.kept"
        self.counts: Counter[str] = Counter()
        shutil.rmtree(self.index, ignore_errors=True)
        if not case.fresh:
            shutil.copytree(folder / "old.lmk", self.index)
            if case.prepare:
                done(folder, case.prepare)
            for what in case.damage:
                damage(self.index, what)
            shutil.copytree(self.index, self.kept)
        self.before = forked(look, self.index)
        times = []
        for _ in range(2):  # the first one is slower
            self.reset()
            began = time.monotonic()
            code = done(folder, case.command)
            times.append(time.monotonic() - began)
        self.seconds = min(times)
        self.after = forked(look, self.index)
        if code != 0 or self.after.damage:
            raise SystemExit(f"{name}: exit code {code}, {self.after.damage}; see {folder / 'log'}")

    def reset(self) -> None:
        """Brings the index back to what it was before the command."""
        shutil.rmtree(self.index, ignore_errors=True)
        if not self.case.fresh:
            shutil.copytree(self.kept, self.index)

    def kill(self, chance: random.Random) -> None:
        """Kills the command once."""
        self.reset()
        child = start(self.folder, self.case.command)
        child.join(chance.uniform(0, 1.05 * self.seconds))
        child.kill()
        child.join()
        self.counts["killed" if child.exitcode == -signal.SIGKILL else "ended before"] += 1
        self.judge()

    def stop(self, chance: random.Random, *, twice: bool, seconds: float) -> None:
        """Interrupts the command once, as Ctrl-C does."""
        self.reset()
        command = [sys.executable, "-P", "-m", "lmk.cli", *self.case.command]
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        _wait_for_handler(process)
        began = time.monotonic()
        _wait(process, chance.uniform(0.15, 1.05) * seconds)
        ended = process.poll() is not None
        process.send_signal(signal.SIGINT)
        if twice:
            _wait(process, chance.uniform(0, 0.3))
            process.send_signal(signal.SIGINT)
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        at = time.monotonic() - began
        found = self.judge()
        self.counts["ended before" if ended else "stopped twice" if twice else "stopped"] += 1
        worked = code == 0 and found.same(self.after)
        if code != 130 and not worked:
            self.counts["wrong exit codes"] += 1
            print(f"  {self.name}: exit code {code} {at:.2f} s after its start", flush=True)

    def judge(self) -> Found:
        """Compares the index with what it may be, and runs the command again."""
        found = forked(look, self.index)
        self.counts["as before"] += found.same(self.before)
        if not found.same(self.after) and not self._as_before(found):
            gone = set(self.before.ids) & set(self.after.ids) - set(found.ids)
            lost = (found.vectors is not None and gone) or self._files_lost(found)
            self.counts["lost" if lost else "corrupt"] += 1
            print(f"  {self.name}: {found.damage} {sorted(gone)[:3]}", flush=True)
        code = done(self.folder, self.case.command)
        end = forked(look, self.index)
        if code != 0 or not end.same(self.after):
            self.counts["not finished by a rerun"] += 1
            print(f"  {self.name}: exit code {code} when run again: {end.damage}", flush=True)
        return found

    def _files_lost(self, found: Found) -> bool:
        """Whether a file of the damaged index is not there any more, or is another."""
        before = (self.before.files or {}).items()
        return bool(self.case.damage) and not before <= (found.files or {}).items()

    def _as_before(self, found: Found) -> bool:
        if self.case.fresh:
            return found.vectors is None and "transaction" not in found.damage[0][1]
        if found.damage and found.damage != self.before.damage:
            return found.damage == (("x.index", dict(self.before.damage).get("x.index")),)
        return found.same(self.before) and not self._files_lost(found)


def _wait_for_handler(process: subprocess.Popen[bytes]) -> None:
    """Waits until Python answers SIGINT; on a busy machine its start takes a while."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None and status.exists():
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status.read_text(), re.MULTILINE)
        if caught and int(caught[1], 16) >> (signal.SIGINT - 1) & 1:
            return
        _wait(process, 0.01)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=60, help="every second one is doubled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CASES, nargs="*", default=list(CASES))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    for module in LOADED:
        importlib.import_module(module)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        folder = Path(temporary)
        prepare(folder)
        for place, name in enumerate(options.only):
            trial = Trial(name, CASES[name], folder)
            count = len(options.only)
            for _ in range(_share(options.kills, place, count)):
                trial.kill(chance)
            stops = _share(options.stops, place, count)
            seconds = _seconds(trial) if stops else 0.0
            for number in range(stops):
                trial.stop(chance, twice=(place + number) % 2 == 1, seconds=seconds)
            counted = ", ".join(f"{value} {key}" for key, value in sorted(trial.counts.items()))
            print(f"{name:16} {counted}", flush=True)
            total += trial.counts
            shutil.rmtree(trial.kept, ignore_errors=True)
    for key in ("killed", "stopped", "stopped twice", "ended before", "as before"):
        print(f"{key}: {total[key]}")
    bad = ("lost", "corrupt", "wrong exit codes", "not finished by a rerun")
    print(", ".join(f"{total[key]} {key}" for key in bad))
    sys.exit(1 if any(total[key] for key in bad) else 0)


def _seconds(trial: Trial) -> float:
    """How long the command takes as a process of its own."""
    trial.reset()
    command = [sys.executable, "-P", "-m", "lmk.cli", *trial.case.command]
    began = time.monotonic()
    subprocess.run(command, cwd=trial.folder, check=True, capture_output=True)
    return time.monotonic() - began


def _share(count: int, place: int, places: int) -> int:
    """How many of a count fall to one of several places."""
    return count * (place + 1) // places - count * place // places


if __name__ == "__main__":
    main()
