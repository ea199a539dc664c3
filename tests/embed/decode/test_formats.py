"""Formats: what is a picture by its ending and by its content, and what others are told."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmk.embed.data.images import decode, thumbnail
from lmk.embed.data.manifest import read_manifest
from lmk.embed.decode.formats import FORMATS, PICTURE_SUFFIXES, Unreadable, picture_format

Render = Callable[..., np.ndarray]

NOT_PICTURES = {
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
    "dos eps": (b"\xc5\xd0\xd3\xc6" + bytes(40), "a PostScript file"),
    "pdf": (b"%PDF-1.7\n", "a PDF file"),
    "psd": (b"8BPS\0\1" + bytes(40), "a Photoshop file"),
    "wmf": (b"\xd7\xcd\xc6\x9a" + bytes(40), "a Windows metafile"),
    "emf": (b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(40), "a Windows metafile"),
    "svg": (b"<?xml version='1.0'?>\n<svg xmlns='x'></svg>", "an SVG drawing"),
    "html": (b"\n<!DOCTYPE HTML><html>", "a web page"),
    "jxl": (b"\xff\x0a" + bytes(20), "a JPEG XL picture"),
    "jxl in a box": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "a JPEG XL picture"),
    "jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20), "a JPEG 2000 picture"),
    "cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(20), "a camera raw file"),
    "cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera raw file"),
    "raf": (b"FUJIFILMCCD-RAW 0201" + bytes(20), "a camera raw file"),
    "rw2": (b"IIU\0\x18\0\0\0" + bytes(20), "a camera raw file"),
    "video": (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "a video"),
    "zip": (b"PK\3\4" + bytes(20), "a ZIP archive"),
    "ppm": (b"P6 2 2 255 " + bytes(12), "not a picture"),
    "xbm": (b"#define im_width 8\n#define im_height 8\n", "not a picture"),
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").from_pillow(image).save(file, **options)
    else:
        image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", NOT_PICTURES)
def test_what_is_no_picture_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    data, reason = NOT_PICTURES[name]
    for content in (data, data + bytes(3000)):
        got = decode(content, 16)
        assert isinstance(got, str) and got.startswith(reason) and "\n" not in got
    (tmp_path / "renamed.jpg").write_bytes(data)
    assert thumbnail(tmp_path / "renamed.jpg", 16) is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_bmp_without_its_file_header_is_read(render: Render, mode: str) -> None:
    """Some programs write .dib files so."""
    image = Image.fromarray(render(3, width=40, height=30)).convert(mode)
    got = decode(encoded(image, "DIB"), 30)
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, decode(encoded(image, "BMP"), 30))


def test_a_picture_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow runs Ghostscript for an EPS, whatever the file is called."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: started.append(args))
    monkeypatch.setattr("subprocess.check_call", lambda *args, **options: started.append(args))
    monkeypatch.setattr("os.system", lambda *args: started.append(args))
    data = encoded(Image.new("RGB", (20, 20), "red"), "EPS")
    (tmp_path / "a.jpg").write_bytes(data)
    assert isinstance(decode(data, 16), str) and thumbnail(tmp_path / "a.jpg", 16) is None
    assert started == []


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_a_picture_is_read_by_its_content(render: Render, kind: str) -> None:
    image = Image.fromarray(render(3, width=128, height=64))
    data = encoded(image, kind)
    assert picture_format(data) == kind
    got = decode(data, 32)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BOX)).astype(int)
    assert isinstance(got, np.ndarray)
    assert np.abs(got - expected).mean() < (25 if kind == "GIF" else 6)


def test_raw_files_that_are_tiff_are_not_taken_for_their_preview(render: Render) -> None:
    image = Image.fromarray(render(3))
    for tags in ({50706: b"\1\4\0\0"}, {254: 1, 330: 8}, {262: 32803}):
        data = encoded(image, "TIFF", tiffinfo=tags)
        if 262 in tags:  # Pillow writes its own value there
            data = data.replace(b"\6\1\3\0\1\0\0\0\2\0", b"\6\1\3\0\1\0\0\0\x23\x80")
        assert decode(data, 16) == "a camera raw file, which is not read (export it as JPEG)"


class TestHeif:
    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_it_is_turned_once(self, render: Render, orientation: int) -> None:
        heif = pytest.importorskip("pillow_heif")
        image = Image.fromarray(render(3, width=128, height=64))
        tags = Image.Exif()
        tags[0x0112] = orientation
        file = io.BytesIO()
        heif.from_pillow(image).save(file, exif=tags.tobytes(), quality=95)
        got = decode(file.getvalue(), 32)
        turned = {3: 180, 6: 270, 8: 90}
        expected = image.rotate(turned.get(orientation, 0), expand=True)
        square = np.asarray(expected.resize((32, 32), Image.Resampling.BOX)).astype(int)
        assert isinstance(got, np.ndarray)
        assert np.abs(got - square).mean() < 6

    def test_transparent_parts_are_white(self) -> None:
        clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        got = decode(encoded(clear, "HEIF", quality=95), 16)
        assert isinstance(got, np.ndarray) and got.min() > 250

    def test_a_cut_one_and_zeros_are_refused(self, render: Render) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
        data = encoded(Image.fromarray(noise), "HEIF", quality=95)
        half = len(data) // 2
        assert "damaged" in str(decode(data[:half], 16))
        assert "its last bytes are zeros" in str(decode(data[:half] + bytes(len(data) - half), 16))

    def test_the_extra_is_named_where_it_is_missing(
        self, render: Render, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = encoded(Image.fromarray(render(3)), "HEIF")
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        assert decode(data, 16) == "a HEIF picture, which needs pip install 'lmk-landmarks[heif]'"


def test_a_folder_takes_every_everyday_ending(tmp_path: Path) -> None:
    everyday = ["jpg", "JPEG", "jpe", "jfif", "jif", "pjpeg", "pjp", "png", "webp", "gif", "bmp"]
    everyday += ["tif", "TIFF", "avif", "heic", "HEIF", "hif", "jxl"]
    for number, ending in enumerate(everyday):
        (tmp_path / f"{number}.{ending}").write_bytes(b"x")
    for name in ("a.txt", "b.nef", "c.CR2", "d", "e.psd"):
        (tmp_path / name).write_bytes(b"x")
    manifest = read_manifest(tmp_path)
    assert len(manifest) == len(everyday)
    reasons = {skip.path: skip.reason for skip in manifest.skipped}
    raw = "a camera raw file, which is not read (export it as JPEG)"
    assert reasons == {
        "a.txt": "not a picture (.txt)",
        "b.nef": raw,
        "c.CR2": raw,
        "d": "not a picture (no file ending)",
        "e.psd": "not a picture (.psd)",
    }


def test_endings_are_in_lower_case_and_have_their_dot() -> None:
    assert all(suffix[0] == "." and suffix == suffix.lower() for suffix in PICTURE_SUFFIXES)


@pytest.mark.parametrize("data", [b"", b"B", b"RIFF", b"\0\0\0\x18ftyp", b"RIFF1234WEB"])
def test_short_files(data: bytes) -> None:
    with pytest.raises(Unreadable):
        picture_format(data)
