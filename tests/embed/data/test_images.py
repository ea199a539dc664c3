"""Decoding: every kind of picture as Pillow shows it, every bad file a reason."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lmk.embed.data import images
from lmk.embed.data.images import decode, decode_grey, read_bytes, stored_size, thumbnail
from lmk.embed.decode import pillow

Render = Callable[..., np.ndarray]


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def reference(data: bytes, size: int) -> np.ndarray:
    """What Pillow alone makes of it."""
    with Image.open(io.BytesIO(data)) as image:
        turned = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(turned.resize((size, size), Image.Resampling.BOX))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(render: Render, kind: str, orientation: int) -> None:
    picture = Image.fromarray(render(3, width=128, height=64))
    data = encoded(picture, kind, exif=exif(orientation))
    got = decode(data, 32)
    assert isinstance(got, np.ndarray)
    assert got.shape == (32, 32, 3) and got.dtype == np.uint8 and got.flags.c_contiguous
    assert difference(got, reference(data, 32)) < 4
    square = picture.resize((32, 32), Image.Resampling.BOX)
    turns = [np.asarray(square), *(np.asarray(square.transpose(t)) for t in Image.Transpose)]
    assert sum(difference(got, turn) < 10 for turn in turns) == 1


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_counts_as_none(render: Render, orientation: int) -> None:
    picture = Image.fromarray(render(3))
    turned = decode(encoded(picture, "JPEG", exif=exif(orientation)), 32)
    assert np.array_equal(turned, decode(encoded(picture, "JPEG"), 32))


@pytest.mark.parametrize(
    "tags", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01", b"Exif\0\0II*\0\xff\xff\xff"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_with_broken_exif_is_decoded(render: Render, tags: bytes, kind: str) -> None:
    picture = Image.fromarray(render(3))
    got = decode(encoded(picture, kind, exif=tags), 32)
    assert np.array_equal(got, decode(encoded(picture, kind), 32))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_path_agrees_with_pillow(
    render: Render, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.fromarray(render(5, width=400, height=300)).convert(mode)
    data = encoded(picture, "JPEG", quality=95)
    fast = decode(data, 96)
    monkeypatch.setattr(images, "decode_jpeg", lambda *args: None)
    slow = decode(data, 96)
    assert isinstance(fast, np.ndarray) and isinstance(slow, np.ndarray)
    assert difference(fast, slow) < 1
    assert difference(fast, reference(data, 96)) < 2


def test_a_progressive_jpeg(render: Render) -> None:
    picture = Image.fromarray(render(5, width=200, height=300))
    data = encoded(picture, "JPEG", quality=95, progressive=True)
    got = decode(data, 64)
    assert isinstance(got, np.ndarray) and difference(got, reference(data, 64)) < 2


def test_a_large_jpeg_is_decoded_at_a_fraction(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.fromarray(render(5, width=2000, height=1600)), "JPEG")
    seen: list[tuple[int, ...]] = []
    squash = images._squashed
    monkeypatch.setattr(
        images,
        "_squashed",
        lambda pixels, size: (seen.append(pixels.shape), squash(pixels, size))[1],
    )
    got = decode(data, 64)
    assert seen == [(200, 250, 3)]
    assert isinstance(got, np.ndarray) and difference(got, reference(data, 64)) < 2


def test_cmyk_jpeg(render: Render) -> None:
    picture = Image.fromarray(render(7, width=120, height=90))
    data = encoded(picture.convert("CMYK"), "JPEG", quality=95)
    got = decode(data, 32)
    assert isinstance(got, np.ndarray)
    assert difference(got, np.asarray(picture.resize((32, 32), Image.Resampling.BOX))) < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey(kind: str) -> None:
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    got = decode(encoded(Image.fromarray(values), kind), 32)
    assert isinstance(got, np.ndarray)
    assert np.abs(got[..., 0] - values / 257).max() <= 1
    assert (got == got[..., :1]).all()


@pytest.mark.parametrize(("top", "dtype"), [(1.0, np.float32), (255, np.float32), (200, np.int32)])
def test_deep_tiff(top: float, dtype: type) -> None:
    values = np.linspace(0, top, 256).reshape(16, 16).astype(dtype)
    got = decode(encoded(Image.fromarray(values), "TIFF"), 16)
    full = 1.0 if top == 1 else 255.0
    assert isinstance(got, np.ndarray)
    assert np.abs(got[..., 1] - values * 255 / full).max() <= 1


def test_a_float_tiff_with_nan() -> None:
    values = np.full((8, 8), np.nan, np.float32)
    values[0] = 0.5
    got = decode(encoded(Image.fromarray(values), "TIFF"), 8)
    assert isinstance(got, np.ndarray)
    assert got[0, 0, 0] == 127 and got[1, 0, 0] == 0


def test_animated_gif_gives_its_first_frame() -> None:
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    got = decode(encoded(red, "GIF", save_all=True, append_images=[blue]), 8)
    assert isinstance(got, np.ndarray)
    assert (got == [255, 0, 0]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "WEBP"])
def test_what_is_transparent_is_white(mode: str) -> None:
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 16, 8))
    if mode == "P":
        flat = Image.new("P", (16, 16), 1)
        flat.putpalette([0, 0, 0, 9, 9, 9])
        flat.paste(0, (0, 0, 16, 8))
        data = encoded(flat, "PNG", transparency=1)
    elif mode == "WEBP":
        data = encoded(picture, "WEBP", lossless=True)
    else:
        data = encoded(picture.convert(mode), "PNG")
    got = decode(data, 16)
    assert isinstance(got, np.ndarray)
    assert (got[:8] == 0).all() and (got[8:] == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_strange_shapes(shape: tuple[int, int]) -> None:
    got = decode(encoded(Image.new("RGB", shape, (10, 200, 30)), "PNG"), 24)
    assert isinstance(got, np.ndarray)
    assert got.shape == (24, 24, 3) and (got == [10, 200, 30]).all()


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_file_is_refused(render: Render, kind: str, kept: float) -> None:
    data = encoded(Image.fromarray(render(5, width=300, height=300)), kind)
    reason = decode(data[: int(len(data) * kept)], 32)
    assert isinstance(reason, str)
    assert reason.startswith("damaged: ") or reason == "not a picture that can be decoded"


def test_a_jpeg_cut_in_the_scan_is_not_filled_with_grey(render: Render) -> None:
    data = encoded(Image.fromarray(render(5, width=300, height=300)), "JPEG")
    reason = decode(data[: len(data) // 2], 32)
    assert isinstance(reason, str) and "truncated" in reason


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_a_bomb_is_refused_without_its_pixels(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(50_000, 50_000))
    code = (
        "import sys, resource; from lmk.embed.data.images import decode, thumbnail, read_bytes\n"
        "from pathlib import Path; path = Path(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(decode(read_bytes(path), 64)); print(thumbnail(path, 64))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, tmp_path / "bomb.png"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    reason, small, grown = done.stdout.splitlines()
    assert reason == "50000 x 50000 pixels, over the limit of 178 million" and small == "None"
    assert int(grown) < 100_000  # kB; its pixels are 7.5 GB


def test_the_limit_in_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (100, 100)), "PNG")
    monkeypatch.setattr(pillow, "MAX_PIXELS", 9_999)
    assert decode(data, 8) == "100 x 100 pixels, over the limit of 0 million"
    monkeypatch.setattr(pillow, "MAX_PIXELS", 10_000)
    assert isinstance(decode(data, 8), np.ndarray)


@pytest.mark.parametrize(
    "error", [MemoryError(), struct.error("odd"), AttributeError("x"), ZeroDivisionError()]
)
def test_whatever_a_plugin_raises_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(images, "rgb_pixels", fail)
    reason = decode(encoded(Image.new("RGB", (4, 4)), "PNG"), 8)
    expected = {"MemoryError": "needs more memory than there is", "error": "damaged: odd"}
    expected |= {"AttributeError": "damaged: x", "ZeroDivisionError": "damaged: ZeroDivisionError"}
    assert reason == expected[type(error).__name__]


def test_read_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "日本 tower.jpg").write_bytes(b"content")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert read_bytes(tmp_path / "empty.jpg") == "empty file (0 bytes)"
    assert read_bytes(tmp_path / "folder.jpg") == "is a folder, not a picture"
    assert read_bytes(tmp_path / "none.jpg") == "no such file"
    assert read_bytes(tmp_path / "日本 tower.jpg") == b"content"
    assert "symbolic links" in str(read_bytes(tmp_path / "loop.jpg"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    assert read_bytes(tmp_path / "x.jpg") == "is no plain file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    assert read_bytes(path) == "cannot be read: permission denied"


def test_text_is_no_picture() -> None:
    assert decode(b"just some words\n" * 10, 32) == "not a picture that can be decoded"


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_random_bytes_never_raise(data: bytes) -> None:
    assert isinstance(decode(data, 16), str)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_pictures_never_raise(render: Render, kind: str, tmp_path: Path) -> None:
    whole = encoded(
        Image.fromarray(render(5)), kind, **({"exif": exif(6)} if kind == "JPEG" else {})
    )
    chance = random.Random(kind)
    results = []
    for _ in range(120):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 3, 20])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        result = decode(bytes(data), 24)
        results.append(isinstance(result, np.ndarray))
        assert isinstance(result, str) or (result.shape, result.dtype) == ((24, 24, 3), np.uint8)
        assert isinstance(result, np.ndarray) or (result and "\n" not in result)
    path = tmp_path / "x"
    path.write_bytes(bytes(data))
    assert thumbnail(path, 16) is None or Image.open(io.BytesIO(thumbnail(path, 16) or b"")).size
    assert not all(results)


class TestThumbnail:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_turned_and_small(self, render: Render, tmp_path: Path, orientation: int) -> None:
        path = tmp_path / "a.jpg"
        Image.fromarray(render(3, width=160, height=80)).save(path, exif=exif(orientation))
        with Image.open(io.BytesIO(thumbnail(path, 40) or b"")) as small, Image.open(path) as full:
            expected = ImageOps.exif_transpose(full).resize(small.size, Image.Resampling.BOX)
            upside_down = expected.transpose(Image.Transpose.ROTATE_180)
            assert small.format == "JPEG"
            assert difference(np.asarray(small), np.asarray(upside_down)) > 30
            assert small.size == ((40, 20) if orientation < 5 else (20, 40))
            assert difference(np.asarray(small), np.asarray(expected)) < 12

    def test_16_bits_and_transparency(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(path)
        with Image.open(io.BytesIO(thumbnail(path, 8) or b"")) as small:
            assert abs(int(np.asarray(small).mean()) - 127) <= 1
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(path)
        with Image.open(io.BytesIO(thumbnail(path, 8) or b"")) as small:
            assert np.asarray(small).min() > 250

    def test_none_where_there_is_no_picture(self, tmp_path: Path) -> None:
        (tmp_path / "text.jpg").write_text("words")
        assert thumbnail(tmp_path / "text.jpg", 8) is None
        assert thumbnail(tmp_path / "none.jpg", 8) is None


def test_no_decoder_prints_a_line(render: Render, tmp_path: Path) -> None:
    """A line of libjpeg's or Pillow's would name no file."""
    photo = encoded(Image.fromarray(render(5, width=300, height=300)), "JPEG")
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01"
    contents = [
        photo[: len(photo) // 2] + b"\xff\xd9",
        photo[:-30] + b"\xff\xd9",
        encoded(Image.fromarray(render(5)), "JPEG", exif=broken),
        encoded(Image.fromarray(render(5)).convert("CMYK"), "JPEG", exif=broken),
        encoded(Image.fromarray(render(5)), "PNG", exif=broken),
        encoded(Image.fromarray(render(5)), "TIFF", compression="jpeg").replace(
            b"\xff\xda", b"\0" * 2
        ),
    ]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    code = (
        "import sys; from lmk.embed.data.images import decode; from PIL import Image\n"
        "from pathlib import Path; Image.MAX_IMAGE_PIXELS = 50_000\n"
        "for name in sys.argv[1:]: print(type(decode(Path(name).read_bytes(), 8)).__name__)\n"
    )
    files = [tmp_path / str(number) for number in range(len(contents))]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *files], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["str", "ndarray", "ndarray", "ndarray", "ndarray", "str"]
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_grey_keeps_the_shape(render: Render, kind: str, orientation: int) -> None:
    picture = Image.fromarray(render(3, width=160, height=80))
    got = decode_grey(encoded(picture, kind, exif=exif(orientation)), 40)
    assert isinstance(got, np.ndarray) and got.dtype == np.uint8 and got.flags.c_contiguous
    assert got.shape == ((20, 40) if orientation < 5 else (40, 20))
    with Image.open(io.BytesIO(encoded(picture, "PNG", exif=exif(orientation)))) as image:
        turned = ImageOps.exif_transpose(image).convert("L")
    expected = np.asarray(turned.resize(got.shape[::-1], Image.Resampling.BOX))
    assert difference(got, expected) < 3


def test_a_small_or_thin_picture_in_grey(render: Render) -> None:
    same = decode_grey(encoded(Image.fromarray(render(3, width=30, height=20)), "PNG"), 40)
    assert isinstance(same, np.ndarray) and same.shape == (20, 30)
    thin = decode_grey(encoded(Image.new("RGB", (400, 2)), "PNG"), 40)
    assert isinstance(thin, np.ndarray) and thin.shape == (1, 40)
    large = decode_grey(encoded(Image.fromarray(render(3, width=1600, height=1200)), "JPEG"), 100)
    assert isinstance(large, np.ndarray) and large.shape == (75, 100)
    assert decode_grey(b"no picture", 40) == "not a picture that can be decoded"


def test_the_size_of_a_file_is_read_as_its_pixels_are(tmp_path: Path) -> None:
    """No pipe is waited for, no limit of Pillow ends a run, nothing but pictures is opened."""
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        (tmp_path / kind).write_bytes(encoded(Image.new("RGB", (60, 40)), kind))
        assert stored_size(tmp_path / kind) == (60, 40)
    large = bytearray((tmp_path / "JPEG").read_bytes())
    at = large.index(b"\xff\xc0") + 5
    large[at : at + 4] = b"\x5d\xc0\x5d\xc0"
    (tmp_path / "large").write_bytes(large)
    assert stored_size(tmp_path / "large") == (24_000, 24_000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("pipe", "eps", "none"):
        assert stored_size(tmp_path / name) is None
