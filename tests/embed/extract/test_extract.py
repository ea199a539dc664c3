"""Features on disk and the run that computes them: resumed, in order, bounded."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import save

from lmk.embed.data import images
from lmk.embed.data.images import Skipped, decode
from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.embeddings import unit_rows
from lmk.embed.errors import GalleryDamaged, StorageError
from lmk.embed.extract import extract as extract_module
from lmk.embed.extract import feature_store as features_module
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import extract, extract_stream, feature_stream
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.network.runtime import available_cores


def key(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def feature(number: int, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(dim).astype(np.float32)


class TestFeatureStore:
    def fill(self, folder: Path, numbers: range, **options: int) -> FeatureStore:
        store = FeatureStore(folder, "f" * 64, 6, **options)
        for number in numbers:
            store.add(key(number), feature(number))
        return store

    def check(self, store: FeatureStore, numbers: list[int]) -> None:
        got = store.read([key(number) for number in numbers])
        expected = unit_rows(np.stack([feature(number) for number in numbers]))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-3)

    def test_what_is_added_is_read_before_and_after_a_flush(self, tmp_path: Path) -> None:
        store = self.fill(tmp_path, range(10), shard_rows=4)
        self.check(store, [9, 0, 3, 3, 8, 5])  # two shards, and two that wait
        assert len(list((tmp_path / ("f" * 16)).iterdir())) == 2
        store.flush()
        store.flush()
        assert len(list((tmp_path / ("f" * 16)).iterdir())) == 3
        again = FeatureStore(tmp_path, "f" * 64, 6)
        self.check(again, [2, 9, 1])
        assert key(9) in again and key(10) not in again
        with pytest.raises(KeyError):
            again.read([key(10)])
        assert again.read([]).shape == (0, 6)

    def test_batches(self, tmp_path: Path) -> None:
        store = self.fill(tmp_path, range(10), shard_rows=3)
        keys = [key(number) for number in (7, 1, 9, 0, 4)]
        pieces = list(store.batches(keys, rows=2))
        assert [(piece.start, len(rows)) for piece, rows in pieces] == [(0, 2), (2, 2), (4, 1)]
        np.testing.assert_array_equal(
            np.concatenate([rows for _, rows in pieces]), store.read(keys)
        )

    def test_each_shard_is_read_once_in_any_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = self.fill(tmp_path, range(40), shard_rows=4)
        reads = self.watched(monkeypatch)
        self.check(store, [int(i) for i in np.random.default_rng(0).permutation(40)])
        assert len(reads) == len(set(reads)) == 10

    @staticmethod
    def watched(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The files that are read from now on."""
        read, reads = features_module.read_plain, []

        def watch(path: Path, **options: Path) -> bytes:
            reads.append(path)
            return read(path, **options)

        monkeypatch.setattr(features_module, "read_plain", watch)
        return reads

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e6, 1e30])
    def test_features_of_any_size_fit(self, tmp_path: Path, scale: float) -> None:
        store = FeatureStore(tmp_path, "f" * 64, 3)
        store.add(key(0), np.array([3, -4, 0], np.float32) * np.float32(scale))
        store.add(key(1), np.zeros(3, np.float32))
        got = store.read([key(0), key(1)])
        np.testing.assert_allclose(got, [[0.6, -0.8, 0], [0, 0, 0]], atol=1e-3)

    def test_networks_are_kept_apart(self, tmp_path: Path) -> None:
        self.fill(tmp_path, range(3)).flush()
        assert key(0) not in FeatureStore(tmp_path, "e" * 64, 6)
        assert key(0) not in FeatureStore(tmp_path, "f" * 64, 7)
        assert key(0) in FeatureStore(tmp_path, "f" * 64, 6)

    @pytest.mark.parametrize("damage", ["cut", "flip", "part", "junk"])
    def test_a_damaged_shard_is_dropped(self, tmp_path: Path, damage: str) -> None:
        self.fill(tmp_path, range(4)).flush()
        (path,) = (tmp_path / ("f" * 16)).iterdir()
        self.fill(tmp_path, range(4, 8)).flush()
        content = path.read_bytes()
        if damage == "cut":
            path.write_bytes(content[:-1])
        elif damage == "flip":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif damage == "part":
            path.rename(path.with_name(f".{path.name[:40]}.{'0' * 16}.part"))
        else:
            path.unlink()
            junk = b"no tensors"
            (path.parent / f"{hashlib.sha256(junk).hexdigest()}.safetensors").write_bytes(junk)
        again = FeatureStore(tmp_path, "f" * 64, 6)
        assert [key(number) in again for number in (1, 3, 4, 7)] == [False, False, True, True]
        assert len(list(path.parent.iterdir())) == 1
        (path.parent / "notes.txt").write_text("not ours, and not removed")
        again.add(key(1), feature(1))
        again.flush()
        self.check(FeatureStore(tmp_path, "f" * 64, 6), [1, 4])
        assert (path.parent / "notes.txt").exists()

    def test_a_large_store_opens_without_reading_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        numbers = list(range(60))
        self.fill(tmp_path, range(60), shard_rows=3).flush()
        FeatureStore(tmp_path, "f" * 64, 6)  # 20 shards: they are hashed, and listed
        reads = self.watched(monkeypatch)
        again = FeatureStore(tmp_path, "f" * 64, 6)
        assert [path.suffix for path in reads] == [".index"]
        self.check(again, numbers)
        self.fill(tmp_path, range(60, 62)).flush()
        reads.clear()
        more = FeatureStore(tmp_path, "f" * 64, 6)
        assert [path.suffix for path in reads] == [".index", ".safetensors"]
        self.check(more, list(range(62)))
        assert key(62) not in more

    @pytest.mark.parametrize("damage", ["cut", "flip", "gone", "foreign", "junk"])
    def test_an_index_is_checked(self, tmp_path: Path, damage: str) -> None:
        self.fill(tmp_path, range(60), shard_rows=3).flush()
        FeatureStore(tmp_path, "f" * 64, 6)
        index = tmp_path / f"{'f' * 16}.index"
        content = index.read_bytes()
        if damage == "cut":
            index.write_bytes(content[:-1])
        elif damage == "flip":
            index.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif damage == "gone":
            index.unlink()
        elif damage == "junk":
            index.write_bytes(b"junk")
        else:
            self.fill(tmp_path / "other", range(100, 160), shard_rows=3).flush()
            FeatureStore(tmp_path / "other", "f" * 64, 6)
            shutil.copy(tmp_path / "other" / index.name, index)
        again = FeatureStore(tmp_path, "f" * 64, 6)
        self.check(again, list(range(60)))
        assert key(100) not in again

    def test_listed_shards_that_change_or_go(self, tmp_path: Path) -> None:
        self.fill(tmp_path, range(60), shard_rows=3).flush()
        FeatureStore(tmp_path, "f" * 64, 6)
        one, two = sorted((tmp_path / ("f" * 16)).iterdir())[:2]
        content = one.read_bytes()
        one.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        two.unlink()
        again = FeatureStore(tmp_path, "f" * 64, 6)
        left = [number for number in range(60) if key(number) in again]
        assert len(left) == 54 and not one.exists()
        self.check(again, left)
        self.check(FeatureStore(tmp_path, "f" * 64, 6), left)

    @pytest.mark.parametrize("damage", ["flip", "gone"])
    def test_a_shard_that_changes_while_it_is_open(self, tmp_path: Path, damage: str) -> None:
        store = self.fill(tmp_path, range(3), shard_rows=3)
        (shard,) = (tmp_path / ("f" * 16)).iterdir()
        content = shard.read_bytes()
        shard.unlink()
        if damage == "flip":
            shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(GalleryDamaged, match="run the same command again"):
            store.read([key(0)])
        assert not shard.exists() and key(0) not in FeatureStore(tmp_path, "f" * 64, 6)

    def test_many_keys_in_little_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(features_module, "_MOST_FRESH", 10)
        store = self.fill(tmp_path, range(50), shard_rows=4)
        self.check(store, list(range(49, -1, -1)))
        assert len(store._fresh) < 10 and key(50) not in store
        store.add(key(7), feature(7))  # again
        store.flush()
        self.check(store, [7, 8])

    def test_prune(self, tmp_path: Path) -> None:
        store = self.fill(tmp_path, range(40), shard_rows=4)
        other = FeatureStore(tmp_path, "e" * 64, 6)
        other.add(key(0), feature(0))
        other.flush()
        kept = [0, 1, 2, 3, 4, 8, 12, 13, 14]  # shards: whole, a quarter twice, three quarters
        (tmp_path / ("e" * 16) / "notes.txt").touch()
        (tmp_path / "notes").mkdir()
        assert store.prune(key(number) for number in kept) == 30
        for again in (store, FeatureStore(tmp_path, "f" * 64, 6)):
            assert [n for n in range(40) if key(n) in again] == [*kept, 15]
            self.check(again, [*kept, 15])
        assert len(list((tmp_path / ("f" * 16)).iterdir())) == 3
        assert [path.name for path in (tmp_path / ("e" * 16)).iterdir()] == ["notes.txt"]
        assert (tmp_path / "notes").exists()
        assert store.prune(()) == 10 and key(0) not in store
        assert not list((tmp_path / ("f" * 16)).iterdir())

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = self.fill(tmp_path, range(3))

        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="no space left on device; free some space"):
            store.flush()
        monkeypatch.undo()
        self.check(store, [0, 1, 2])
        store.flush()
        self.check(FeatureStore(tmp_path, "f" * 64, 6), [0, 1, 2])


@pytest.fixture
def gallery(tmp_path: Path, write_photos: Callable[..., Path]) -> Path:
    """12 pictures, and 3 files that are none."""
    root = write_photos(tmp_path / "gallery", landmarks=3)
    (root / "place_1" / "1b.jpg").write_text("words")
    (root / "place_1" / "empty.jpg").touch()
    (root / "notes.txt").touch()
    return root


@pytest.fixture
def store(tmp_path: Path, tiny: Embedder) -> Callable[[], FeatureStore]:
    """Opens the store anew, as the next run does."""
    return lambda: FeatureStore(tmp_path / "f", tiny.feature_fingerprint, tiny.feature_dim)


Store = Callable[[], FeatureStore]


class TestExtract:
    def test_order_features_and_skipped(self, gallery: Path, tiny: Embedder, store: Store) -> None:
        manifest = read_manifest(gallery)
        seen: list[int] = []
        result = extract(manifest, tiny, kept := store(), on_progress=seen.append)
        good = [row for row in manifest.rows if row.path not in
                ("place_1/1b.jpg", "place_1/empty.jpg")]  # fmt: skip
        assert [picture.row for picture in result.pictures] == good and result.computed == 12
        assert sorted(seen) == seen == list(range(1, 15))
        assert result.skipped == (
            Skipped("notes.txt", "not a picture (.txt)"),
            Skipped("place_1/1b.jpg", "not a picture that can be decoded"),
            Skipped("place_1/empty.jpg", "empty file (0 bytes)"),
        )
        for picture in result.pictures:
            data = (gallery / picture.row.path).read_bytes()
            assert picture.sha256 == hashlib.sha256(data).hexdigest()
            assert picture.size == len(data)
            assert picture.mtime_ns == (gallery / picture.row.path).stat().st_mtime_ns
        files = [gallery / row.path for row in good]
        expected, _ = tiny.embed(files)
        got = unit_rows(kept.read([picture.sha256 for picture in result.pictures]))
        assert (got * expected.vectors).sum(axis=1).min() > 0.99999

    def test_the_second_run_computes_nothing(
        self, gallery: Path, tiny: Embedder, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = read_manifest(gallery)
        first = extract(manifest, tiny, store())
        monkeypatch.setattr(extract_module, "decode", lambda data, size: "not asked for")
        again = extract(manifest, tiny, store())
        assert again.computed == 0 and again.pictures == first.pictures

    def test_known_pictures_are_listed_and_not_computed(
        self, gallery: Path, tiny: Embedder, store: Store
    ) -> None:
        manifest = read_manifest(gallery)
        known = {hashlib.sha256(manifest.file(row).read_bytes()).hexdigest()
                 for row in manifest.rows[:3]}  # fmt: skip
        result = extract(manifest, tiny, kept := store(), known=known)
        assert (result.computed, len(result.pictures)) == (9, 12)
        assert [p.sha256 in kept for p in result.pictures] == [False] * 3 + [True] * 9

    def test_the_pictures_are_a_sequence(self, gallery: Path, tiny: Embedder, store: Store) -> None:
        pictures = extract(read_manifest(gallery), tiny, store()).pictures
        listed = list(pictures)
        assert pictures[-1] == pictures[11] == listed[11] and pictures[3:-2:2] == listed[3:-2:2]
        with pytest.raises(IndexError):
            pictures[12]
        assert pictures != extract(Manifest(gallery, ()), tiny, store()).pictures

    def test_changed_moved_and_new_files(self, gallery: Path, tiny: Embedder, store: Store) -> None:
        extract(read_manifest(gallery), tiny, store())
        (gallery / "place_0" / "0.jpg").write_bytes((gallery / "place_0" / "1.jpg").read_bytes())
        (gallery / "place_0" / "2.jpg").rename(gallery / "place_0" / "moved.jpg")
        image = np.full((40, 40, 3), 77, np.uint8)
        cv2.imwrite(str(gallery / "place_0" / "3.jpg"), image)
        result = extract(read_manifest(gallery), tiny, store())
        assert result.computed == 1 and len(result.pictures) == 12

    def test_the_same_content_under_two_ids(
        self, gallery: Path, tiny: Embedder, store: Store
    ) -> None:
        for name in ("a.jpg", "b.jpg"):
            (gallery / "place_0" / name).write_bytes((gallery / "place_2" / "1.jpg").read_bytes())
        result = extract(read_manifest(gallery), tiny, kept := store())
        assert len(result.pictures) == 14
        same = [
            picture for picture in result.pictures if picture.row.id.endswith(("/a.jpg", "/b.jpg"))
        ]
        assert len(same) == 2 and same[0].sha256 == same[1].sha256
        twice = [p for p in result.pictures if p.row.id == "place_2/1.jpg"]
        assert twice[0].sha256 == same[0].sha256
        assert kept.read([picture.sha256 for picture in result.pictures]).shape == (14, 96)

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
    def test_stopped_in_the_middle(
        self, gallery: Path, tiny: Embedder, store: Store, stop: type[BaseException]
    ) -> None:
        def progress(done: int) -> None:
            if done == 6:
                raise stop

        with pytest.raises(stop):
            extract(read_manifest(gallery), tiny, store(), on_progress=progress)
        assert cv2.getNumThreads() > 0
        result = extract(read_manifest(gallery), tiny, store())
        assert len(result.pictures) == 12 and 0 < result.computed <= 8
        assert not [t for t in threading.enumerate() if t.name.startswith("lmk-decode")]

    def test_a_failure_ends_the_threads_that_look_pictures_up(
        self, gallery: Path, tiny: Embedder, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(self: Embedder, pictures: Iterator[object]) -> Iterator[np.ndarray]:
            next(pictures)
            raise ZeroDivisionError
            yield

        monkeypatch.setattr(Embedder, "features", failing)
        with pytest.raises(ZeroDivisionError) as raised:  # holds the frames of `extract`
            extract(read_manifest(gallery), tiny, store())
        assert raised.tb is not None
        assert not [t.name for t in threading.enumerate() if t.name.startswith("lmk-decode")]

    def test_look_ahead_is_bounded(
        self, gallery: Path, tiny: Embedder, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many pictures there are, few wait in memory."""
        rows = tuple(Row(f"{i}", "place_0/0.jpg") for i in range(300))
        read, lock, started, most = extract_module._read, threading.Lock(), [0], [0]

        def counted(*args: object) -> object:
            with lock:
                started[0] += 1
            return read(*args)  # type: ignore[arg-type]

        def progress(done: int) -> None:
            most[0] = max(most[0], started[0] - done)

        monkeypatch.setattr(extract_module, "_read", counted)
        monkeypatch.setattr(extract_module, "available_cores", lambda: 2)
        extract(Manifest(gallery, rows), tiny, store(), on_progress=progress)
        assert started == [300]
        assert most[0] <= 2 * 8 + 2 * available_cores() + 1

    def test_opencv_gets_its_threads_back(
        self, gallery: Path, tiny: Embedder, store: Store
    ) -> None:
        before, inside = cv2.getNumThreads(), []
        cv2.setNumThreads(3)
        try:
            extract(read_manifest(gallery), tiny, store(),
                    on_progress=lambda done: inside.append(cv2.getNumThreads()))  # fmt: skip
            assert set(inside) == {1} and cv2.getNumThreads() == 3
        finally:
            cv2.setNumThreads(before)

    def test_a_file_that_goes_away(
        self, gallery: Path, tiny: Embedder, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = read_manifest(gallery)
        (gallery / "place_0" / "0.jpg").unlink()
        victim, read = gallery / "place_0" / "1.jpg", images.read_bytes

        def read_and_lose(path: Path) -> bytes | str:
            data = read(path)
            if path == victim:
                path.unlink()
            return data

        monkeypatch.setattr(images, "read_bytes", read_and_lose)
        skipped = {skip.path: skip.reason for skip in extract(manifest, tiny, store()).skipped}
        assert skipped["place_0/0.jpg"] == "no such file"
        assert skipped["place_0/1.jpg"] == "was removed while it was read"


class TestStream:
    @pytest.mark.parametrize("batch", [1, 5, 12, 100])
    def test_equals_extract(self, gallery: Path, tiny: Embedder, store: Store, batch: int) -> None:
        manifest = read_manifest(gallery)
        result = extract(manifest, tiny, kept := store())
        seen: list[int] = []
        parts = list(extract_stream(manifest, tiny, batch=batch, on_progress=seen.append))
        sizes = [len(embeddings) for embeddings, _ in parts]
        assert all(size == batch for size in sizes[:-1]) and sum(sizes) == 12
        ids = [id_ for embeddings, _ in parts for id_ in embeddings.ids]
        assert ids == [picture.row.id for picture in result.pictures]
        vectors = np.concatenate([embeddings.vectors for embeddings, _ in parts])
        stored = tiny.vectors(kept.read([picture.sha256 for picture in result.pictures]))
        assert (vectors * stored).sum(axis=1).min() > 0.99999
        skipped = [skip for _, part in parts for skip in part]
        assert (*manifest.skipped, *skipped) == result.skipped
        assert seen[-1] == 14 and seen == sorted(seen)

    def test_raw_features(self, gallery: Path, tiny: Embedder) -> None:
        manifest = read_manifest(gallery)
        raw, unit = (
            list(each(manifest, tiny, batch=5)) for each in (feature_stream, extract_stream)
        )
        for (ids, rows, skipped), (embeddings, also) in zip(raw, unit, strict=True):
            assert ids == embeddings.ids and skipped == also
            assert np.array_equal(tiny.vectors(rows), embeddings.vectors)
            pictures = [decode((gallery / f"{id_}").read_bytes(), 48) for id_ in ids]
            np.testing.assert_allclose(rows, list(tiny.features(pictures)), rtol=1e-5)
        assert np.abs(np.linalg.norm(raw[0][1], axis=1) - 1).min() > 0.01

    def test_nothing_to_embed(self, tmp_path: Path, tiny: Embedder) -> None:
        (tmp_path / "a.jpg").touch()
        parts = list(extract_stream(read_manifest(tmp_path), tiny))
        assert [(len(embeddings), len(skipped)) for embeddings, skipped in parts] == [(0, 1)]
        assert parts[0][0].vectors.shape == (0, 96)

    def test_it_can_be_left_early(self, gallery: Path, tiny: Embedder) -> None:
        stream: Iterator[object] = extract_stream(read_manifest(gallery), tiny, batch=2)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert not [t for t in threading.enumerate() if t.name.startswith("lmk-decode")]


def test_shards_of_another_content_are_no_surprise(tmp_path: Path) -> None:
    """A shard of another dim with the right checksum is left alone and not used."""
    content = save({"keys": np.zeros((1, 32), np.uint8), "features": np.zeros((1, 4), np.float16)})
    folder = tmp_path / ("f" * 16)
    folder.mkdir()
    path = folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
    path.write_bytes(content)
    store = FeatureStore(tmp_path, "f" * 64, 6)
    assert "0" * 64 not in store and path.exists()
