"""A repair that fails or is stopped at any step leaves every file that was there before it."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lmk.embed.checksums import write_checksums
from lmk.embed.data.manifest import read_manifest
from lmk.embed.errors import GalleryDamaged, GalleryError, LmkError
from lmk.embed.extract import embedder as embedder_module
from lmk.embed.extract import embedder_folder
from lmk.embed.extract.embedder import Embedder
from lmk.embed.tags.head import TAGS_FILE
from lmk.index.gallery import transaction as sizes
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.rerank.indexing import ingest
from lmk.rerank.indexing.build import build_index
from lmk.rerank.indexing.repair import RepairReport, repair_index

STEPS = 12  # of each repair, evenly spread
MORE_STEPS = 40  # slow
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def steps() -> type:
    """Steps of tests/index/scenario.py."""
    path = Path(__file__).parents[2] / "index" / "scenario.py"
    spec = importlib.util.spec_from_file_location("repair_scenario", path)
    assert spec and spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Steps


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path], tiny: Embedder
) -> Path:
    """A folder with gallery/, bank/ and their whitened index g.lmk, in segments of few rows."""
    folder = tmp_path_factory.mktemp("built")
    write_photos(folder / "gallery", landmarks=3, views=2)
    write_photos(folder / "bank", landmarks=2, views=1, first=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "BLOCK", 4)
        patch.setattr(sizes, "INLINE_ROWS", 1)
        patch.setattr(sizes, "SMALL_SEGMENT_ROWS", 4)
        bank, gallery = read_manifest(folder / "bank"), read_manifest(folder / "gallery")
        build_index(gallery, folder / "g.lmk", tiny, distractors=bank, whiten=True)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


@pytest.fixture
def quick_graph(tiny: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports the graph once for all repairs."""
    made = tiny.graph()

    def copied(network: object, size: int, path: Path) -> None:
        shutil.copyfile(made, path)
        shutil.copyfile(made.with_suffix(".bin"), path.with_suffix(".bin"))

    monkeypatch.setattr(embedder_module, "export_graph", copied)


def flip(path: Path, at: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def of_embedder(name: str) -> Damage:
    return lambda index: flip(next(index.glob(f"embedder/*/{name}")))


def no_graph(index: Path) -> None:
    for half in index.glob("embedder/*/graph.*"):
        half.unlink()


def segment(index: Path) -> None:
    flip(sorted((index / "segments").iterdir())[0])


def arrays(index: Path) -> None:
    for file in (index / "arrays").iterdir():
        file.write_bytes(file.read_bytes()[:-1])


def derived(index: Path) -> None:
    search = index / "cache" / "search"
    search.mkdir(parents=True, exist_ok=True)
    (search / "x.index").write_text("derived")
    (search / "x.index.note").write_text("{}")


def no_features(index: Path) -> None:
    shutil.rmtree(index / "cache" / "features")


DAMAGE: dict[str, tuple[Damage, ...]] = {
    "graph": (of_embedder("graph.bin"),),
    "no graph": (no_graph,),
    "weights": (of_embedder("weights.safetensors"),),
    "config": (of_embedder("config.json"),),
    "segment": (segment,),
    "arrays": (arrays,),
    "cache": (derived,),
    "much": (of_embedder("graph.bin"), segment, arrays, derived, no_features),
    "all": (of_embedder("weights.safetensors"), no_graph, segment, arrays, no_features),
}


def tree(index: Path) -> dict[str, bytes]:
    """Every file that a catalog may name, byte for byte."""
    return {
        path.relative_to(index).as_posix(): path.read_bytes()
        for top in ("embedder", "segments", "arrays")
        for path in (index / top).rglob("*")
        if path.is_file()
    }


def context(index: Path) -> list[tuple[Path, str]]:
    return [(finding.where, finding.what) for finding in verify(index)]


def contents(index: Path) -> object:
    with Gallery.open(index, verify=True) as gallery:
        rows = gallery.role_rows("gallery")
        names = sorted(file.name for file in gallery.embedder_dir.iterdir())
        embedder = Embedder.load(gallery.embedder_dir)
        embedder.network()  # compares the weights with the fingerprint
        vectors = (gallery.vectors(rows) * 50).round().tolist()
        return gallery.ids(rows), vectors, names, embedder.fingerprint


def disk_full(kind: str) -> None:
    if kind == "file":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def ctrl_c(kind: str) -> None:
    raise KeyboardInterrupt


# Python drops what is raised while a temporary folder is removed with its object.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", [disk_full, ctrl_c])
@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("much", STEPS, id="much"),
        *(pytest.param(n, MORE_STEPS, id=f"{n}-more", marks=pytest.mark.slow) for n in DAMAGE),
    ],
)
def test_a_repair_stopped_at_any_step_loses_nothing(
    folder: Path,
    tiny: Embedder,
    steps: type,
    quick_graph: None,
    name: str,
    count: int,
    fault: Callable[[str], None],
) -> None:
    index, kept = folder / "g.lmk", folder / "kept.lmk"
    whole = contents(index)
    for damage in DAMAGE[name]:
        damage(index)
    shutil.copytree(index, kept)
    before, found = tree(index), context(index)
    assert found
    watched = steps(0, fault, after=True)
    with watched.watch(removals=True):
        repair_index(index, embedder=tiny)
    total, stopped, undone = watched.taken, 0, 0
    for stop in range(1, total, max(1, total // count)):
        shutil.rmtree(index)
        shutil.copytree(kept, index)
        watched = steps(stop, fault, after=True)
        try:
            with watched.watch(removals=True):
                repair_index(index, embedder=tiny)
        except (LmkError, OSError, sqlite3.Error, KeyboardInterrupt):
            stopped += 1
        left = context(index)
        if left:
            undone += 1
            assert left == found or name in ("much", "cache"), stop
            # Derived files go after the commit.
            committed = {where for where, _ in left} <= {index / "cache" / "search" / "x.index"}
            assert committed or before.items() <= tree(index).items(), stop
        else:
            assert contents(index) == whole, stop
        repair_index(index, embedder=tiny)
        assert context(index) == []
        assert contents(index) == whole, stop
    assert stopped >= count / 2
    assert undone


def test_a_repair_that_is_refused_changes_nothing(folder: Path) -> None:
    """The embedder and vectors are damaged, and the drive of the pictures is away."""
    index = folder / "g.lmk"
    for damage in DAMAGE["much"]:
        damage(index)
    before, found = tree(index), context(index)
    (folder / "gallery").rename(folder / "away")
    with pytest.raises(GalleryError, match="mount its drive"):
        repair_index(index)
    assert tree(index) == before
    assert context(index) == found
    (folder / "away").rename(folder / "gallery")
    repair_index(index)
    assert context(index) == []


def test_what_cannot_be_restored_stays(folder: Path, tiny: Embedder) -> None:
    index = folder / "g.lmk"
    of_embedder("whitening.safetensors")(index)
    of_embedder("graph.bin")(index)
    before = tree(index)
    with pytest.raises(GalleryDamaged, match="no installed one is the same"):
        repair_index(index, embedder=tiny)
    assert tree(index) == before


def test_a_repaired_embedder_has_a_folder_of_its_own(folder: Path) -> None:
    """A reader that has opened the index goes on with the old one, until the next writer."""
    index = folder / "g.lmk"
    with Gallery.open(index) as old:
        flip(old.embedder_dir / "graph.xml")
        repair_index(index)
        with Gallery.open(index) as new:
            assert new.embedder_dir != old.embedder_dir
            assert new.embedder_dir.name.startswith(f"{old.fingerprint[:16]}-")
            assert Embedder.load(old.embedder_dir).fingerprint == new.fingerprint
        assert repair_index(index) == RepairReport((), 0, ())  # a writer, who sweeps
        assert list((index / "embedder").iterdir()) == [new.embedder_dir]


def test_verify_knows_that_a_graph_is_missing(
    folder: Path, tiny: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the index was built without OpenVINO, or an interrupted write went unnoticed."""
    index = folder / "no-graph.lmk"
    with monkeypatch.context() as patch:
        for module in (embedder_module, embedder_folder):
            patch.setattr(module, "openvino_usable", lambda: False)
        build_index(read_manifest(folder / "gallery"), index, tiny)
        assert verify(index) == ()  # nothing would use it
    (finding,) = verify(index)
    assert (finding.where.name, finding.mend) == ("graph.xml", "remake")
    report = repair_index(index)
    assert [Path(path).name for path in report.remade] == ["graph.xml"]
    assert verify(index) == ()
    with Gallery.open(index) as gallery:
        assert {"graph.xml", "graph.bin"} <= {f.name for f in gallery.embedder_dir.iterdir()}


def test_damaged_tags_are_not_dropped_without_being_asked(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tagger").mkdir()
    tiny = Embedder.load(next((folder / "g.lmk" / "embedder").iterdir())).with_whitening(None)
    tiny.save(tmp_path / "tagger")
    (tmp_path / "tagger" / TAGS_FILE).write_bytes(b"tags, which a repair does not read")
    write_checksums(tmp_path / "tagger")
    tagger = Embedder.load(tmp_path / "tagger")
    index = folder / "tags.lmk"
    build_index(read_manifest(folder / "gallery"), index, tagger)
    of_embedder(TAGS_FILE)(index)
    before = tree(index)
    with pytest.raises(GalleryDamaged, match="the tags of the embedder are damaged"):
        repair_index(index)
    assert tree(index) == before
    repair_index(index, embedder=tagger)
    restored = next(index.glob(f"embedder/*-*/{TAGS_FILE}"))
    assert restored.read_bytes() == (tmp_path / "tagger" / TAGS_FILE).read_bytes()
    assert verify(index) == ()
    flip(restored)
    assert repair_index(index, drop_lost=True).lost == ()
    assert verify(index) == ()


FULL = """
set -e
mount -t tmpfs -o size=100m none "$FOLDER/disk"
cp -r "$FOLDER/g.lmk" "$FOLDER/disk/"
mount -o remount,size=$(($(du -sk "$FOLDER/disk" | cut -f1) + 40))k none "$FOLDER/disk"
set +e
sums() { find "$FOLDER/disk/g.lmk/embedder" -type f -exec sha256sum {} + | sort; }
lmk() { "$PYTHON" -P -m lmk.cli "$@"; }
sums > "$FOLDER/before"
lmk index repair "$FOLDER/disk/g.lmk"; echo "repaired $?"
sums > "$FOLDER/after"
cmp "$FOLDER/before" "$FOLDER/after" && echo same
mount -o remount,size=100m none "$FOLDER/disk"
lmk index repair "$FOLDER/disk/g.lmk"; echo "repaired $?"
lmk index verify "$FOLDER/disk/g.lmk"; echo "verified $?"
"""


@pytest.mark.slow
def test_a_repair_on_a_really_full_disk(folder: Path) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("needs a mount namespace (root on Linux)")
    of_embedder("graph.bin")(folder / "g.lmk")
    (folder / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", FULL],
        env=os.environ | {"FOLDER": str(folder), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in done.stdout.splitlines() if ".lmk:" not in line]
    assert lines == ["repaired 1", "same", "repaired 0", "verified 0"], done.stderr
    assert "free some space" in done.stderr
