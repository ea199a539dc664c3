"""Local features, and their cache on disk: damage, the bound, who goes first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from lmk.embed.errors import StorageError
from lmk.embed.local import features as module
from lmk.embed.local.features import FeatureCache, LocalFeatures, RootSift, XFeat, local_features


def texture(seed: int, width: int = 200, height: int = 150) -> np.ndarray:
    """Blobs of several sizes: something to find."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width), np.float32)
    for sigma in (2, 4, 8):
        noise = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), sigma)
        total += (noise / noise.std()).astype(np.float32)
    return np.clip(128 + 35 * total, 0, 255).astype(np.uint8)


def some(seed: int, n: int = 20) -> LocalFeatures:
    rng = np.random.default_rng(seed)
    rows = rng.random((n, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return LocalFeatures(rng.random((n, 2)).astype(np.float32), rows.astype(np.float16), 20, 10)


def same(first: LocalFeatures | None, second: LocalFeatures) -> bool:
    return first is not None and first.to_bytes() == second.to_bytes()


def name(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


class TestRootSift:
    def test_descriptors_are_roots_of_sift(self) -> None:
        picture = texture(0)
        got = RootSift(most=50).extract(picture)
        assert len(got) == 50 and (got.width, got.height) == (200, 150)
        np.testing.assert_allclose(
            np.linalg.norm(got.descriptors.astype(np.float64), axis=1), 1, atol=2e-3
        )
        points, raw = cv2.SIFT.create().detectAndCompute(picture, None)
        strongest = max(range(len(points)), key=lambda i: points[i].response)
        expected = [(value / sum(raw[strongest].tolist())) ** 0.5 for value in raw[strongest]]
        place = np.flatnonzero((got.points == np.float32(points[strongest].pt)).all(axis=1))
        differences = np.abs(got.descriptors[place] - np.array(expected)).max(axis=1)
        assert differences.min() < 1e-3
        assert (got.points >= 0).all() and (got.points < (200, 150)).all()

    def test_the_same_every_time(self) -> None:
        assert same(RootSift().extract(texture(1)), RootSift().extract(texture(1)))

    def test_the_strongest_are_kept(self) -> None:
        all_, few = RootSift(most=400).extract(texture(2)), RootSift(most=10).extract(texture(2))
        assert len(few) == 10
        assert np.array_equal(few.points, all_.points[:10])

    @pytest.mark.parametrize("shape", [(1, 1), (3, 200), (100, 100)])
    def test_nothing_stands_out(self, shape: tuple[int, int]) -> None:
        got = RootSift().extract(np.full(shape, 90, np.uint8))
        assert len(got) == 0 and got.descriptors.shape == (0, 128)
        assert same(LocalFeatures.from_bytes(got.to_bytes()), got)

    def test_other_parameters_have_another_name(self) -> None:
        assert len({RootSift().name, RootSift(most=5).name, RootSift(longest=9).name}) == 3


@pytest.mark.parametrize(
    ("points", "descriptors", "message"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float16), "points"),
        (np.zeros((2, 2), np.float64), np.zeros((2, 4), np.float16), "points"),
        (np.zeros((2, 2), np.float32), np.zeros((2, 4), np.float32), "descriptors must"),
        (np.zeros((2, 2), np.float32), np.zeros((3, 4), np.float16), "3 descriptors"),
        (np.full((1, 2), np.nan, np.float32), np.zeros((1, 4), np.float16), "finite"),
        (np.zeros((1, 2), np.float32), np.full((1, 4), np.inf, np.float16), "finite"),
    ],
)
def test_features_that_cannot_be(points: np.ndarray, descriptors: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalFeatures(points, descriptors, 1, 1)


@pytest.mark.parametrize("data", [b"", b"junk", some(0).to_bytes()[:-1]])
def test_bytes_that_are_no_features(data: bytes) -> None:
    with pytest.raises(ValueError, match="no local features"):
        LocalFeatures.from_bytes(data)


class TestCache:
    SIZE = len(some(0).to_bytes()) + 32

    def test_what_was_kept_comes_back(self, tmp_path: Path) -> None:
        cache, sift = FeatureCache(tmp_path / "deep" / "cache", 10**6), RootSift()
        assert cache.load(name(0), sift) is None
        cache.save(name(0), sift, some(0))
        assert same(cache.load(name(0), sift), some(0))
        assert same(FeatureCache(tmp_path / "deep" / "cache", 10**6).load(name(0), sift), some(0))
        assert cache.load(name(1), sift) is None
        assert cache.load(name(0), RootSift(most=7)) is None, "other features, another file"

    @pytest.mark.parametrize("damage", ["cut", "bit", "empty", "more", "swapped"])
    def test_damage_is_noticed_and_mended(self, tmp_path: Path, damage: str) -> None:
        cache, sift = FeatureCache(tmp_path, 10**6), RootSift()
        cache.save(name(0), sift, some(0))
        (path,) = tmp_path.iterdir()
        data = path.read_bytes()
        flipped = bytes([*data[:200], data[200] ^ 4, *data[201:]])
        digest_of_junk = hashlib.sha256(b"junk").digest() + b"junk"
        path.write_bytes(
            {
                "cut": data[:-5],
                "bit": flipped,
                "empty": b"",
                "more": data + b"x",
                "swapped": digest_of_junk,
            }[damage]
        )
        assert cache.load(name(0), sift) is None and not path.exists()
        cache.save(name(0), sift, some(0))
        assert same(cache.load(name(0), sift), some(0))

    def test_the_least_recently_used_go_first(self, tmp_path: Path) -> None:
        """Room for 10: the 11th makes it 9, and what was asked for lately stays."""
        cache, sift = FeatureCache(tmp_path, 10 * self.SIZE), RootSift()
        for i in range(10):
            cache.save(name(i), sift, some(i))
            (path,) = tmp_path.glob(f"{name(i)}*")
            os.utime(path, ns=(i, i))
        assert same(cache.load(name(0), sift), some(0))
        assert len([*tmp_path.iterdir()]) == 10
        cache.save(name(10), sift, some(10))
        left = [i for i in range(11) if cache.load(name(i), sift) is not None]
        assert left == [0, 3, 4, 5, 6, 7, 8, 9, 10]
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10 * self.SIZE

    def test_what_was_there_before_counts(self, tmp_path: Path) -> None:
        sift = RootSift()
        before = FeatureCache(tmp_path, 10**6)
        for i in range(6):
            before.save(name(i), sift, some(i))
        (tmp_path / ".x.features.0123456789abcdef.part").write_bytes(bytes(self.SIZE))
        (tmp_path / "stranger.txt").write_bytes(bytes(10**5))
        FeatureCache(tmp_path, 3 * self.SIZE).save(name(6), sift, some(6))
        assert sum(p.stat().st_size for p in tmp_path.glob("*.features")) <= 3 * self.SIZE
        assert (tmp_path / "stranger.txt").exists(), "what is not ours stays"

    def test_too_large_for_the_bound(self, tmp_path: Path) -> None:
        FeatureCache(tmp_path / "c", self.SIZE - 1).save(name(0), RootSift(), some(0))
        assert not (tmp_path / "c").exists()
        FeatureCache(tmp_path / "c", self.SIZE).save(name(0), RootSift(), some(0))
        assert len([*(tmp_path / "c").iterdir()]) == 1
        with pytest.raises(ValueError, match="negative"):
            FeatureCache(tmp_path, -1)

    def test_a_disk_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, content: object, **_: object) -> None:
            raise StorageError("cannot write: no space left on device", where=path)

        monkeypatch.setattr(module, "write_whole", full)
        cache = FeatureCache(tmp_path, 10**6)
        cache.save(name(0), RootSift(), some(0))
        assert cache.load(name(0), RootSift()) is None


class TestOfAPicture:
    DATA = cv2.imencode(".png", texture(5))[1].tobytes()
    CONTENT = hashlib.sha256(DATA).hexdigest()

    def test_made_once(self, tmp_path: Path) -> None:
        cache, sift, reads = FeatureCache(tmp_path, 10**7), RootSift(most=30), []

        def read() -> bytes:
            reads.append(1)
            return self.DATA

        first = local_features(self.CONTENT, read, sift, cache)
        again = local_features(self.CONTENT, read, sift, cache)
        assert isinstance(first, LocalFeatures) and isinstance(again, LocalFeatures)
        assert same(first, again) and len(reads) == 1
        assert same(first, sift.extract(texture(5)))
        fresh = local_features(self.CONTENT, read, sift)
        assert isinstance(fresh, LocalFeatures) and same(fresh, first)

    def test_it_is_shrunk(self) -> None:
        got = local_features(self.CONTENT, lambda: self.DATA, RootSift(longest=100))
        assert isinstance(got, LocalFeatures) and (got.width, got.height) == (100, 75)

    def test_a_changed_file_is_not_kept_under_the_old_name(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, 10**7)
        got = local_features(name(0), lambda: self.DATA, RootSift(), cache)
        assert isinstance(got, LocalFeatures) and cache.load(name(0), RootSift()) is None

    @pytest.mark.parametrize("read", [lambda: "no such file", lambda: b"text"])
    def test_a_reason(self, tmp_path: Path, read: Callable[[], bytes | str]) -> None:
        got = local_features(name(0), read, RootSift(), FeatureCache(tmp_path, 10**7))
        assert got in ("no such file", "not a picture that can be decoded")


class TestXFeat:
    def test_features_of_the_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the network finds, in half precision, under a name of its own."""
        from lmk.embed.local import xfeat

        class Network:
            def __init__(self, most: int) -> None:
                self.most = most

            def detect(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                points = np.arange(2 * self.most, dtype=np.float32).reshape(-1, 2)
                return points, np.eye(self.most, 64, dtype=np.float32)

        monkeypatch.setattr(xfeat, "XFeatNetwork", Network)
        monkeypatch.setattr(xfeat, "xfeat_version", lambda: "9.9")
        got = XFeat(most=3).extract(texture(0))
        assert got.points.tolist() == [[0, 1], [2, 3], [4, 5]]
        assert got.descriptors.dtype == np.float16 and (got.width, got.height) == (200, 150)
        names = {XFeat().name, XFeat(most=3).name, XFeat(longest=9).name, RootSift().name}
        assert len(names) == 4 and all("9.9" in name for name in names - {RootSift().name})
