"""A tiny network, a gallery it tells apart, and the command, run here or in a process."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

LANDMARKS = ("bridge", "castle", "tower")
VIEWS = 4
TINT = 0.25
DISTRACTORS = 6
THINGS = {"bridge": "bridge stone", "castle": "castle stone", "tower": "tower"}
COMMAND = (sys.executable, "-P", "-m", "lmk.cli")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines on stderr that say something."""
        return [line for line in self.err.splitlines() if line.strip()]

    def refused(self, code: int, *words: str) -> None:
        """Asserts: this exit code, nothing but one line on stderr, with these words in it."""
        assert self.code == code, self
        assert self.out == ""
        assert len(self.complaints) == 1, self.err
        assert self.complaints[0].startswith("lmk: ")
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err


def picture(seed: int, view: int = 0, side: int = 96) -> np.ndarray:
    """Coloured blotches, the same for one seed; views differ by tint and noise.

    Without the tint, all views of one seed would count as copies of one photo.
    """
    blotches = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    tint = np.random.default_rng([seed, view, 1]).integers(0, 255, blotches.shape, np.uint8)
    mixed = cv2.addWeighted(blotches, 1 - TINT, tint, TINT, 0)
    large = cv2.resize(mixed, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.int64)
    noise = np.random.default_rng([seed, view]).integers(-20, 20, large.shape)
    return np.clip(large + noise, 0, 255).astype(np.uint8)


def write_picture(path: Path, seed: int, view: int = 0, side: int = 96) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(seed, view, side))
    return path


@pytest.fixture(scope="session")
def paint() -> Callable[..., Path]:
    """Writes a picture: paint(path, seed, view)."""
    return write_picture


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with gallery/, bank/, queries/ and their solution.csv: read it, leave it alone."""
    folder = tmp_path_factory.mktemp("sample")
    solution = ["id,landmarks,Usage"]
    for seed, name in enumerate(LANDMARKS):
        for view in range(VIEWS):
            write_picture(folder / "gallery" / name / f"{view}.jpg", seed, view)
        write_picture(folder / "queries" / f"q_{name}.jpg", seed, 99)
        solution.append(f"q_{name},{name},{'Public' if seed else 'Private'}")
    for n in range(DISTRACTORS):
        write_picture(folder / "bank" / f"n{n}.jpg", 1000 + n)
        write_picture(folder / "queries" / f"q_none{n}.jpg", 2000 + n)
        solution.append(f"q_none{n},,Public")
    (folder / "solution.csv").write_text("\n".join(solution) + "\n")
    return folder


@pytest.fixture(scope="session")
def make_embedder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Writes the folder of a tiny network of random weights; its seed makes it another one."""

    def make(seed: int) -> Path:
        import timm
        import torch
        from safetensors.torch import save_file

        from lmk.embed.extract.embedder import Embedder

        folder = tmp_path_factory.mktemp("embedder")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            network = timm.create_model("test_efficientnet", num_classes=0)
            save_file(network.state_dict(), folder / "state.safetensors")
            saved = folder / "tiny"
            saved.mkdir()
            Embedder.named("test_efficientnet", weights=folder / "state.safetensors", size=64).save(
                saved
            )
        return saved

    return make


@pytest.fixture(scope="session")
def tiny(make_embedder: Callable[[int], Path]) -> Path:
    """The folder of a tiny embedder; it runs without torch."""
    return make_embedder(0)


@pytest.fixture(scope="session")
def _built(sample: Path, tiny: Path) -> Path:
    from lmk.embed.data.manifest import read_manifest
    from lmk.embed.extract.embedder import Embedder
    from lmk.rerank.indexing.build import build_index

    index = sample / "sample.lmk"
    build_index(
        read_manifest(sample / "gallery"),
        index,
        Embedder.load(tiny),
        distractors=read_manifest(sample / "bank"),
    )
    return index


@pytest.fixture
def here(sample: Path, _built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of one's own with the sample and its index, sample.lmk."""
    folder = tmp_path / "here"
    shutil.copytree(sample, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def lmk(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs the command in this process."""
    from lmk.cli.main import main

    def run(*words: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left, warnings.catch_warnings():
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Done(left.value.code, out, err)

    return run


@pytest.fixture
def lmk_process() -> Callable[..., Done]:
    """Runs the command in a process of its own; keywords go to subprocess.run."""

    def run(*words: object, **options: object) -> Done:
        command = [*COMMAND, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command and hands out the process; whatever still runs is ended.

    Its coverage is not measured: one that is killed would leave half a data file.
    """
    running: list[subprocess.Popen[str]] = []
    unmeasured = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}

    def start(*words: object, **options: object) -> subprocess.Popen[str]:
        command = [*COMMAND, *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, **pipes, env=unmeasured, **options)  # type: ignore[call-overload]
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def heed_permissions() -> Callable[[], None]:
    """For preexec_fn: makes root heed the permissions of files; ends with 77 where it cannot."""

    def give_up() -> None:  # CAP_DAC_OVERRIDE, by prctl(2)
        drop, dac_override = 24, 1
        if os.geteuid() == 0 and ctypes.CDLL(None).prctl(drop, dac_override, 0, 0, 0) != 0:
            os._exit(77)

    return give_up


@pytest.fixture(scope="session")
def tag_table() -> Callable[..., Path]:
    """Writes a CSV of the sample's pictures with their tags; those of the bank have none."""
    from lmk.embed.data.manifest import read_manifest

    def write(path: Path, folder: str, count: int | None = None) -> Path:
        manifest = read_manifest(folder)
        lines = ["id,path,tags"]
        for row in manifest.rows[:count]:
            name = row.labels[0] if row.labels else row.id.removeprefix("q_")
            lines.append(f"{row.id},{folder}/{row.path},{THINGS.get(name, '')}")
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def things() -> dict[str, str]:
    """The tags of each place of the sample."""
    return THINGS


@pytest.fixture(scope="session")
def _trained(sample: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `lmk train` writes it: a head that tells the three places apart."""
    from lmk.embed.data.manifest import read_manifest
    from lmk.embed.extract.embedder import Embedder
    from lmk.embed.tags.head import TAGS_FILE, TagHead, save_tag_head

    folder = tmp_path_factory.mktemp("tagger") / "my-tags"
    shutil.copytree(tiny, folder)
    embedder = Embedder.load(folder)
    manifest = read_manifest(sample / "gallery")
    embeddings, _ = embedder.embed([manifest.file(row) for row in manifest.rows])
    names = ("bridge", "castle", "stone", "tower", "unicorn")
    own = np.array([[name in THINGS[row.labels[0]] for name in names] for row in manifest.rows])
    weight = np.zeros((5, embedder.feature_dim))
    bias = np.full(5, -20.0)
    for tag in range(4):
        yes, no = (embeddings.vectors[own[:, tag] == side].mean(axis=0) for side in (True, False))
        weight[tag] = 2000 * (yes - no)
        bias[tag] = -weight[tag] @ (yes + no) / 2
    head = TagHead(
        names,
        weight.astype(np.float32),
        bias.astype(np.float32),
        "sigmoid",
        unit=True,
        feature_fingerprint=embedder.feature_fingerprint,
    )
    save_tag_head(head, folder / TAGS_FILE)
    return folder


@pytest.fixture
def tagger(here: Path, _trained: Path) -> Path:
    """The same, of one's own."""
    return shutil.copytree(_trained, here / "my-tags")
