"""Hostile pictures: what a header promises is checked before a decoder is started."""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from lmk.embed.data import images
from lmk.embed.data.images import decode, decode_grey, picture_bytes, read_bytes
from lmk.embed.decode import pillow
from lmk.embed.decode.orientation import exif_orientation
from lmk.embed.decode.pillow import open_picture, rgb_pixels
from lmk.embed.memory_budget import MemoryBudget

Render = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def hostile() -> ModuleType:
    """benchmarks/mutated_pictures.py, which makes the files."""
    path = Path(__file__).parents[3] / "benchmarks" / "mutated_pictures.py"
    spec = importlib.util.spec_from_file_location("mutated_pictures", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def in_png(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    return data[:33] + b"".join(chunks) + data[33:]


class TestBudget:
    def test_no_more_than_the_total_is_held_at_once(self) -> None:
        budget, held, most = MemoryBudget(10), [0], [0]
        lock = threading.Lock()

        def work(count: int) -> None:
            for _ in range(50):
                with budget.hold(count):
                    with lock:
                        held[0] += count
                        most[0] = max(most[0], held[0])
                    with lock:
                        held[0] -= count

        threads = [threading.Thread(target=work, args=(count,)) for count in (3, 4, 6, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert held == [0] and 9 <= most[0] <= 10

    def test_a_claim_waits_until_there_is_room(self) -> None:
        budget, started, done = MemoryBudget(10), threading.Event(), threading.Event()

        def wait() -> None:
            started.set()
            with budget.hold(5):
                done.set()

        with budget.hold(6):
            thread = threading.Thread(target=wait)
            thread.start()
            assert started.wait(60) and not done.wait(0.05)
        assert done.wait(60)
        thread.join(60)

    def test_a_claim_over_the_total_gets_all_of_it(self) -> None:
        budget = MemoryBudget(10)
        with budget.hold(10**12):
            pass
        with pytest.raises(ZeroDivisionError), budget.hold(10):
            _ = 1 / 0
        with budget.hold(10):
            pass


class TestFiles:
    def test_a_large_file_is_not_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(images, "MAX_FILE_BYTES", 3_000_000)
        (tmp_path / "a.jpg").write_bytes(bytes(3_000_000))
        (tmp_path / "b.jpg").write_bytes(bytes(4_000_000))
        assert len(read_bytes(tmp_path / "a.jpg")) == 3_000_000
        assert read_bytes(tmp_path / "b.jpg") == "a file of 4 MB, over the limit of 3 MB"

    def test_threads_hold_no_more_than_the_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(images, "_files", MemoryBudget(100))
        for name in "ab":
            (tmp_path / name).write_bytes(bytes(60))
        second = threading.Event()

        def read() -> None:
            with picture_bytes(tmp_path / "b") as data:
                assert len(data) == 60
                second.set()

        with picture_bytes(tmp_path / "a") as data:
            assert len(data) == 60
            thread = threading.Thread(target=read)
            thread.start()
            assert not second.wait(0.05)
        assert second.wait(60)
        thread.join(60)


class TestDecodingMemory:
    def test_what_a_picture_takes_is_known_before(self, hostile: ModuleType) -> None:
        for data, kind in (
            (hostile.png(4000, 3000, 16, 6), "PNG"),
            (encoded(Image.new("RGB", (4000, 3000)), "WEBP", method=0), "WEBP"),
        ):
            opened = open_picture(data, kind)
            assert opened.memory(1) > 7 * 12_000_000
            assert opened.memory(1) > opened.memory(4) > 4 * 12_000_000

    def test_threads_decode_one_after_the_other_where_both_do_not_fit(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = encoded(Image.new("RGB", (500, 400)), "PNG")
        at_once, most, lock = [0], [0], threading.Lock()
        whole = images.rgb_pixels

        def counted(*args: object) -> np.ndarray:
            with lock:
                at_once[0] += 1
                most[0] = max(most[0], at_once[0])
            pixels = whole(*args)
            with lock:
                at_once[0] -= 1
            return pixels

        needed = len(data) + open_picture(data, "PNG").memory(1)
        monkeypatch.setattr(images, "_decoding", MemoryBudget(2 * needed - 1))
        monkeypatch.setattr(images, "rgb_pixels", counted)
        threads = [threading.Thread(target=decode, args=(data, 400)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert most == [1]

    def test_a_picture_that_does_not_fit_is_averaged_or_refused(
        self, render: Render, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = encoded(Image.fromarray(render(5, width=1600, height=1200)), "PNG")
        opened = open_picture(data, "PNG")
        exact = decode(data, 64)
        monkeypatch.setattr(images, "MAX_DECODING_BYTES", len(data) + opened.memory(4))
        got = decode(data, 64)
        assert np.abs(got.astype(int) - exact).mean() < 1
        reason = decode(data, 1000)
        assert isinstance(reason, str) and "MB to be decoded, over the limit of" in reason

    def test_the_memory_of_a_large_picture_goes_back_to_the_system(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread's C library would keep it, and every thread has its own."""
        calls: list[int] = []
        monkeypatch.setattr(images, "release_memory", lambda: calls.append(1))
        small = encoded(Image.new("RGB", (400, 300)), "PNG")
        decode(small, 16)
        assert calls == []
        monkeypatch.setattr(images, "_LARGE_PICTURE_BYTES", 1_000_000)
        decode(small, 16)
        assert calls == [1, 1]  # before and after

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "I;16", "F", "CMYK"])
    def test_strips_are_the_whole(
        self, render: Render, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = Image.fromarray(render(5, width=203, height=151))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
        else:
            image = image.quantize(8) if mode == "P" else image.convert(mode)
        options = {"transparency": 3} if mode == "P" else {}
        kind = "TIFF" if mode in ("F", "CMYK") else "PNG"
        data = encoded(image, kind, **options)
        whole = decode(data, 64)
        monkeypatch.setattr(pillow, "_STRIP", 1000)
        assert np.array_equal(decode(data, 64), whole)

    def test_squares_are_averaged_at_the_edges_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pillow, "_STRIP", 4000)
        image = Image.new("RGB", (801, 603), (10, 200, 30))
        pixels = rgb_pixels(image, 8)
        assert pixels.shape == (76, 101, 3) and (pixels == [10, 200, 30]).all()


class TestMetadata:
    """Metadata costs a picture nothing: it is left out before the decoder, or it is counted."""

    TINY = Image.new("RGB", (60, 40), (200, 30, 30))

    def test_large_texts_and_profiles_of_a_png(self) -> None:
        data = encoded(self.TINY, "PNG")
        packed = zlib.compress(bytes(30_000_000))
        for more in (
            chunk(b"tEXt", b"a\0" + b"x" * 5_000_000),
            chunk(b"zTXt", b"a\0\0" + packed),
            chunk(b"iTXt", b"a\0\1\0\0\0" + packed),
            chunk(b"iCCP", b"a\0\0" + packed),
            chunk(b"zTXt", b"Raw profile type exif\0\0" + packed),
            chunk(b"zTXt", b"a\0\0" + b"not packed"),
        ):
            assert np.array_equal(decode(in_png(data, more), 16), decode(data, 16))

    @pytest.mark.parametrize("packed", [False, True])
    def test_the_orientation_of_an_imagemagick_png_counts(
        self, render: Render, packed: bool
    ) -> None:
        image = Image.fromarray(render(3, width=64, height=48))
        tags = Image.Exif()
        tags[0x0112] = 6
        text = f"\nexif\n    {len(tags.tobytes())}\n{tags.tobytes().hex()}\n".encode()
        if packed:
            more = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
        else:
            more = chunk(b"tEXt", b"Raw profile type exif\0" + text)
        data = encoded(image, "PNG")
        expected = decode(encoded(image, "PNG", exif=tags), 16)
        assert np.array_equal(decode(in_png(data, more), 16), expected)
        assert not np.array_equal(decode(data, 16), expected)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
    def test_directories_that_name_the_same_bytes(self, hostile: ModuleType, kind: str) -> None:
        bomb = hostile.directory(3000, 30_000, 7)
        if kind == "TIFF":
            data = bomb
        elif kind == "JPEG":
            plain = encoded(self.TINY, "JPEG")
            data = plain[:2] + hostile.segment(0xE1, b"Exif\0\0" + bomb[:65_000]) + plain[2:]
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = encoded(self.TINY, kind, exif=b"Exif\0\0" + bomb)
        got = decode(data, 16)
        if kind in ("AVIF", "TIFF"):
            assert got == "damaged: its directory names the same bytes again and again"
        else:
            assert isinstance(got, np.ndarray)

    def test_more_tags_behind_the_end_than_any_file_has(self, hostile: ModuleType) -> None:
        bomb = hostile.directory(3000, 1_000_000, 7)[:40_000]
        assert decode(bomb, 16) == "damaged: its directory names bytes behind its end"

    @pytest.mark.parametrize("what", [b"!\xfe\1a\0", b"\0", b"!\x01\1a\0"])
    def test_what_lies_before_the_first_frame_of_a_gif(self, what: bytes) -> None:
        data = encoded(self.TINY.quantize(4), "GIF")
        start = 13 + (3 << (data[10] & 7) + 1)
        some, many = (data[:start] + what * n + data[start:] for n in (1000, 500_000))
        assert np.array_equal(decode(some, 16), decode(data, 16))
        assert decode(many, 16) == "damaged: too many comments before its first frame"

    def test_chunks_of_a_png_are_counted(self) -> None:
        data = encoded(self.TINY, "PNG")
        assert isinstance(decode(in_png(data, *[chunk(b"IDAT", b"")] * 1000), 16), np.ndarray)
        many = in_png(data, chunk(b"IDAT", b"") * 200_001)
        assert decode(many, 16) == "damaged: more than 200,000 chunks"

    def test_a_large_run_length_encoded_bmp(self, hostile: ModuleType) -> None:
        reason = "a large compressed BMP picture, which is not read (save it as PNG)"
        assert decode(hostile.run_lengths(9000), 16) == reason

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize(
        ("kind", "form"), [(1, "B3x"), (3, "H2x"), (4, "I"), (6, "b3x"), (8, "h2x"), (9, "i")]
    )
    def test_orientation(self, order: str, kind: int, form: str) -> None:
        start = b"II*\0" if order == "<" else b"MM\0*"
        tags = struct.pack(f"{order}IH", 8, 1) + struct.pack(f"{order}HHI", 0x0112, kind, 1)
        exif = start + tags + struct.pack(order + form, 6)
        assert exif_orientation(exif) == exif_orientation(b"Exif\0\0" + exif) == 6
        assert exif_orientation(exif[:-4]) == exif_orientation(b"") == 1
        assert exif_orientation(b"", b'<a tiff:Orientation="8"/>') == 8
        assert exif_orientation(exif, b'<a tiff:Orientation="8"/>') == 6
        assert exif_orientation(b"", b"<tiff:Orientation>9</tiff:Orientation>") == 1

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("number", [2, 3])
    def test_the_first_of_several_orientations_counts(self, order: str, number: int) -> None:
        """As for Pillow; three do not fit into the entry, which then says where they are."""
        start = b"II*\0" if order == "<" else b"MM\0*"
        tags = struct.pack(f"{order}IHHHI", 8, 1, 0x0112, 3, number)
        values = struct.pack(f"{order}{number}H", 6, 3, 3)[: 2 * number] if number == 3 else b""
        inline = struct.pack(f"{order}2H", 6, 3) if number == 2 else struct.pack(f"{order}I", 26)
        exif = start + tags + inline + bytes(4) + values
        assert exif_orientation(exif) == 6
        assert exif_orientation(exif[:20]) == 1


@pytest.mark.filterwarnings("ignore")
def test_mutated_pictures_never_raise(hostile: ModuleType) -> None:
    results: dict[str, list[object]] = {}
    for name, data in hostile.mutated(160, seed=0, scale=0.03):
        got = decode(data, 24)
        assert isinstance(got, str) or (got.shape, got.dtype) == ((24, 24, 3), np.uint8)
        assert isinstance(got, np.ndarray) or (got and "\n" not in got)
        assert type(decode_grey(data, 24)) is type(got)
        results.setdefault(name.partition("_")[0], []).append(got)
    assert all(isinstance(got, np.ndarray) for got in results["whole"])
    assert {type(got) for got in results["changed"]} == {str, np.ndarray}
