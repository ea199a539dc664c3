"""No file of an embedder's folder gives other vectors or tags in silence after it has changed."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from lmk.embed import checksums as checksums_module
from lmk.embed.checksums import (
    CHECKSUMS_FILE,
    file_sha256,
    read_checksums,
    require_unchanged,
    write_checksums,
    write_with_checksum,
)
from lmk.embed.errors import CheckpointDamaged, ModelDamaged
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.config import preset, preset_names, shipped_tagger, shipped_weights
from lmk.embed.network.whitening import Whitening
from lmk.embed.tags.head import TAGS_FILE, TagHead, load_tag_head, save_tag_head
from lmk.embed.train.checkpoint import load_checkpoint, save_checkpoint

PRESETS = Path(str(resources.files("lmk.embed"))) / "presets"


@pytest.fixture(scope="module")
def written(tiny: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedder's folder with every file there is."""
    folder = tmp_path_factory.mktemp("written")
    mean = np.zeros(tiny.feature_dim, np.float32)
    whitening = Whitening(mean, np.eye(tiny.feature_dim, 8, dtype=np.float32))
    tiny.with_whitening(whitening).save(folder)
    weight = np.ones((1, tiny.feature_dim), np.float32)
    save_tag_head(
        TagHead(
            ("sky",),
            weight,
            np.zeros(1, np.float32),
            "sigmoid",
            unit=True,
            feature_fingerprint=tiny.feature_fingerprint,
        ),
        folder / TAGS_FILE,
    )
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def use(folder: Path) -> None:
    """Uses every file of the folder."""
    embedder = Embedder.load(folder)
    embedder.graph()
    load_tag_head(folder)
    embedder.network()


def damaged(folder: Path) -> str:
    with pytest.raises(ModelDamaged) as caught:
        use(folder)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    return str(caught.value)


def test_it_is_as_sha256sum_reads_it(written: Path) -> None:
    names = {item.name for item in written.iterdir()} - {CHECKSUMS_FILE}
    assert names == {
        *("config.json", "weights.safetensors", "whitening.safetensors"),
        *("graph.xml", "graph.bin", TAGS_FILE),
    }
    assert set(read_checksums(written) or ()) == names
    done = subprocess.run(["sha256sum", "--strict", "-c", CHECKSUMS_FILE], cwd=written, check=False)
    assert done.returncode == 0
    use(written)


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "weights.safetensors", "whitening.safetensors"),
        *("graph.xml", "graph.bin", TAGS_FILE, CHECKSUMS_FILE),
    ],
)
@pytest.mark.parametrize("at", [3, -5])
def test_a_flipped_bit_is_seen(folder: Path, name: str, at: int) -> None:
    flip(folder / name, at)
    text = damaged(folder)
    assert name == CHECKSUMS_FILE or f"{name}: the file has changed" in text


def test_a_damaged_graph_names_the_way_out(folder: Path, written: Path) -> None:
    flip(folder / "graph.bin", 100)
    assert "remove graph.xml and graph.bin" in damaged(folder)
    for name in ("graph.xml", "graph.bin"):
        (folder / name).unlink()
    use(folder)
    assert Embedder.load(folder).graph().parent != folder
    assert Embedder.load(folder).fingerprint == Embedder.load(written).fingerprint


@pytest.mark.parametrize("name", ["whitening.safetensors", "weights.safetensors"])
def test_a_missing_file_is_seen(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name}: the file is missing" in damaged(folder)


def test_checksums_that_were_cut_or_are_none(folder: Path) -> None:
    sums = folder / CHECKSUMS_FILE
    whole = sums.read_text()
    sums.write_text(whole.partition("\n")[0] + "\n")
    assert "has no checksum of the file" in damaged(folder)
    sums.write_text(whole[:-30])
    assert "has changed" in damaged(folder) or "no checksum" in damaged(folder)
    sums.write_bytes(b"\xff\xfe\n")
    assert "line 1 is no checksum" in damaged(folder)
    sums.write_text("")
    assert "has no checksum of the file" in damaged(folder)


def test_a_folder_without_checksums_opens_and_its_graph_is_not_believed(
    folder: Path, written: Path
) -> None:
    """As an older lmk wrote it: the fingerprint proves the weights, and nothing the graph."""
    (folder / CHECKSUMS_FILE).unlink()
    flip(folder / "graph.bin", 100)
    embedder = Embedder.load(folder)
    assert embedder.fingerprint == Embedder.load(written).fingerprint
    graph = embedder.graph()
    assert graph.parent != folder
    assert graph.with_suffix(".bin").read_bytes() == (written / "graph.bin").read_bytes()


def test_files_that_the_caller_compared_are_not_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums_module, "file_sha256", None)
    embedder = Embedder.load(folder, checked=True)
    assert embedder.graph() == folder / "graph.xml"
    load_tag_head(folder, checked=True)


def test_saving_again_copies_the_checksums(written: Path, tmp_path: Path) -> None:
    Embedder.load(written).save(tmp_path)
    before, after = read_checksums(written), read_checksums(tmp_path)
    assert before is not None and after == before
    use(tmp_path)


def test_damage_is_not_saved_under_a_new_checksum(folder: Path, tmp_path: Path) -> None:
    embedder = Embedder.load(folder)
    flip(folder / TAGS_FILE, -5)
    (tmp_path / "new").mkdir()
    with pytest.raises(ModelDamaged, match=TAGS_FILE):
        embedder.save(tmp_path / "new")


class Killed(BaseException):
    pass


class TestReplacing:
    def test_a_kill_anywhere_leaves_a_file_that_is_allowed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = checksums_module.write_whole
        for stop in range(4):
            folder = tmp_path / str(stop)
            folder.mkdir()
            monkeypatch.setattr(checksums_module, "write_whole", real)
            (folder / "a").write_bytes(b"old")
            write_checksums(folder)
            left = stop

            def write(path: Path, content: bytes) -> None:
                nonlocal left
                if not left:
                    raise Killed
                left -= 1
                real(path, content)

            monkeypatch.setattr(checksums_module, "write_whole", write)
            if stop < 3:
                with pytest.raises(Killed):
                    write_with_checksum(folder / "a", b"new")
            else:
                write_with_checksum(folder / "a", b"new")
            sums = read_checksums(folder)
            assert sums is not None
            require_unchanged(folder, ("a",), sums)
            assert (folder / "a").read_bytes() == (b"old" if stop < 2 else b"new")
            assert (sums["a"] == (file_sha256(folder / "a"),)) == (stop in (0, 3))

    def test_a_folder_without_checksums_gets_none(self, tmp_path: Path) -> None:
        write_with_checksum(tmp_path / "a", b"new")
        assert [item.name for item in tmp_path.iterdir()] == ["a"]


class TestShipped:
    def test_all_that_comes_with_lmk_is_listed(self) -> None:
        for folder in (PRESETS, shipped_tagger()):
            sums = read_checksums(folder)
            assert sums is not None
            require_unchanged(folder, sums, sums)
        listed = {Path(name).stem for name in read_checksums(PRESETS) or ()}
        assert listed == set(preset_names())
        there = {item.name for item in shipped_tagger().iterdir()} - {CHECKSUMS_FILE}
        assert set(read_checksums(shipped_tagger()) or ()) == there

    def test_damage_of_the_installed_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = Path(shutil.copytree(PRESETS, tmp_path / "presets"))
        monkeypatch.setattr("lmk.embed.network.config._presets", lambda: copy)
        monkeypatch.setattr(checksums_module, "_SHIPPED", copy)
        flip(copy / "landmarks-lite1.safetensors", -9)
        with pytest.raises(ModelDamaged, match=r"has changed.*install lmk again"):
            shipped_weights("landmarks-lite1")
        flip(copy / "lite1.json", 9)
        with pytest.raises(ModelDamaged, match=r"has changed.*install lmk again"):
            preset("lite1")
        flip(copy / "tags-lite1" / "graph.bin", -9)
        with pytest.raises(ModelDamaged, match=r"has changed.*install lmk again"):
            Embedder.load(shipped_tagger()).graph()


class TestCheckpoints:
    def test_every_flipped_byte_is_seen(self, tmp_path: Path) -> None:
        path = tmp_path / "last.safetensors"
        tensors = {
            "a": torch.arange(4).to(torch.bfloat16),
            "n": torch.tensor(3),
            "z": torch.ones(0),
        }
        state = {"step": 1, "data": "ab"}
        save_checkpoint(path, tensors, state)
        whole = path.read_bytes()
        for at in range(len(whole)):
            for bit in (0, 5):
                content = bytearray(whole)
                content[at] ^= 1 << bit
                path.write_bytes(content)
                try:
                    found, numbers = load_checkpoint(path)
                except CheckpointDamaged:
                    continue
                # Blanks that fill the header up, and its escapes, may be written in two ways.
                assert numbers == state and found.keys() == tensors.keys(), at
                assert all(torch.equal(found[name], tensors[name]) for name in tensors), at

    def test_one_of_an_older_lmk(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        path = tmp_path / "last.safetensors"
        save_file({"a": torch.ones(2)}, path, {"lmk": json.dumps({"step": 1})})
        tensors, state = load_checkpoint(path)
        assert state == {"step": 1} and torch.equal(tensors["a"], torch.ones(2))
