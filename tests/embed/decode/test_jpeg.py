"""JPEGs: parts that are missing, scans that are counted, a fraction of the size."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from lmk.embed.data import images
from lmk.embed.data.images import decode
from lmk.embed.decode.formats import Unreadable
from lmk.embed.decode.jpeg import decode_jpeg, read_header, without_extras

Render = Callable[..., np.ndarray]

END = b"\xff\xd9"
KINDS = [
    {"quality": 60},
    {"quality": 95, "subsampling": 0, "optimize": True},
    {"quality": 85, "progressive": True},
    {"quality": 90, "cmyk": True},
    {"quality": 90, "grey": True},
]


def encoded(
    pixels: np.ndarray, *, cmyk: bool = False, grey: bool = False, **options: object
) -> bytes:
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    mode = "CMYK" if cmyk else "L" if grey else "RGB"
    image.convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def hostile(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG of 600 bytes and up, whose scans bring nothing."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"
    return b"".join(
        [
            b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64)) + segment(0xC2, frame),
            segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0"),
            segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0"),
            segment(0xDA, b"\1\1\0\0\0\0"),
            segment(0xDA, b"\1\1\0\1\x3f\0") * scans,
            END,
        ]
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
class TestMissingParts:
    """The same decision for every kind of JPEG, whatever stands in the place of the lost part."""

    @pytest.mark.parametrize("size", [16, 400])
    @pytest.mark.parametrize("tail", ["nothing", "end mark", "zeros", "zeros and end mark", "ones"])
    def test_a_half_is_refused(
        self, render: Render, kind: dict[str, object], tail: str, size: int
    ) -> None:
        data = encoded(render(5, 1, 640, 480), **kind)
        half = len(data) // 2
        tails = {
            "nothing": b"",
            "end mark": END,
            "zeros": bytes(half),
            "zeros and end mark": bytes(half) + END,
            "ones": b"\xff" * half,
        }
        reason = decode(data[:half] + tails[tail], size)
        assert isinstance(reason, str)
        assert reason.startswith("damaged: image file is truncated (")
        assert reason.endswith("missing)")

    def test_a_hole_of_zeros_is_refused(self, render: Render, kind: dict[str, object]) -> None:
        data = encoded(render(5, 1, 640, 480), **kind)
        start, length = len(data) // 2, len(data) // 8
        assert isinstance(decode(data[:start] + bytes(length) + data[start + length :], 100), str)

    @pytest.mark.parametrize("seed", range(4))
    def test_one_that_lacks_its_end_mark_is_whole(
        self, render: Render, kind: dict[str, object], seed: int
    ) -> None:
        data = encoded(render(seed, 1, 203, 151), **kind)
        assert data.endswith(END)
        assert np.array_equal(decode(data[:-2], 64), decode(data, 64))

    def test_some_last_bytes_do_not_matter(self, render: Render, kind: dict[str, object]) -> None:
        data = encoded(render(5, 1, 640, 480), **kind)
        got = decode(data[:-4] + END, 64)
        assert isinstance(got, np.ndarray)
        assert np.abs(got.astype(int) - decode(data, 64)).mean() < 1

    def test_what_follows_the_end_mark_does_not_matter(
        self, render: Render, kind: dict[str, object]
    ) -> None:
        data = encoded(render(5, 1, 203, 151), **kind)
        for more in (bytes(5000), b"a film of a phone" * 99, data):
            assert np.array_equal(decode(data + more, 64), decode(data, 64))


def test_the_reason_says_how_much_is_missing(render: Render) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    data = encoded(noise, quality=90)
    for share in (0.25, 0.5, 0.75):
        reason = decode(data[: int(len(data) * share)] + END, 64)
        assert isinstance(reason, str)
        found = int(reason.partition("(")[2].partition("%")[0])
        assert abs(found - 100 * (1 - share)) <= 3


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("extra", [b"\x12\x34\x56\x78", bytes(12)])
def test_flat_parts_are_no_lost_ones(render: Render, progressive: bool, extra: bytes) -> None:
    """Blocks of one colour are zeros in the file; the camera wrote some bytes before its end."""
    picture = Image.new("RGB", (1600, 1200))
    picture.paste(Image.fromarray(render(5, width=300, height=200)), (600, 900))
    data = encoded(np.asarray(picture), progressive=progressive, optimize=True, subsampling=0)
    assert bytes(64) in data[data.find(b"\xff\xda") :]
    got = decode(data[:-2] + extra + data[-2:], 64)
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, decode(data, 64))


def test_a_grey_border_is_no_missing_part(render: Render) -> None:
    pixels = render(5, 1, 640, 480).copy()
    pixels[240:] = 128
    for kind in KINDS[:3]:
        assert isinstance(decode(encoded(pixels, **kind), 64), np.ndarray)


def test_a_progressive_one_cut_in_its_last_scan_is_judged_by_what_is_missing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    data = encoded(noise, quality=90, progressive=True)
    last = data.rfind(b"\xff\xda")
    early, late = (last + int(share * (len(data) - last)) for share in (0.2, 0.95))
    assert "the detail of" in str(decode(data[:early] + END, 64))
    assert "its last scans are missing" in str(decode(data[: last - 30] + END, 64))
    assert isinstance(decode(data[:late] + END, 64), np.ndarray)


class TestBounds:
    @pytest.mark.parametrize("scans", [2000, 20_000])
    def test_scans_are_counted_before_any_is_decoded(
        self, monkeypatch: pytest.MonkeyPatch, scans: int
    ) -> None:
        monkeypatch.setattr(images, "decode_jpeg", lambda *args: pytest.fail("decoded"))
        monkeypatch.setattr(images, "open_picture", lambda *args: pytest.fail("opened"))
        reason = decode(hostile(4000, 4000, scans), 64)
        assert reason == f"{scans + 1} scans of 4000 x 4000 pixels take too long to decode"

    def test_many_scans_of_a_small_picture_are_none_of_its_faults(self, render: Render) -> None:
        assert "truncated" in str(decode(hostile(64, 64, 2000), 64))

    def test_the_memory_of_a_progressive_one_counts_its_coefficients(self) -> None:
        header = read_header(hostile(16_000, 16_000, 3))
        assert header.several_scans
        assert header.memory(8) > 2 * 16_000**2
        noise = encoded(np.zeros((800, 1600, 3), np.uint8))
        assert read_header(noise).memory(8) < 1_000_000

    def test_one_that_takes_too_much_memory_is_refused(self) -> None:
        reason = decode(hostile(24_000, 24_000, 1), 64)
        assert isinstance(reason, str) and "MB to be decoded, over the limit of 900 MB" in reason

    def test_a_header_of_too_many_segments(self) -> None:
        data = encoded(np.zeros((8, 8, 3), np.uint8))
        assert "segments before its pixels" in str(decode(data[:2] + b"\xff\xe0\0\2" * 9999, 8))
        filled = data[:2] + b"\xff" * 1_000_000 + data[2:]
        assert isinstance(decode(filled, 8), np.ndarray)

    @pytest.mark.parametrize(
        "data",
        [
            b"\xff\xd8\xff",
            b"\xff\xd8\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\1\x11\0",
            b"\xff\xd8\xff\xc0\0\x0b\x08\0\0\0\x08\x01\1\x11\0\xff\xda\0\x08\1\1\0\0\x3f\0",
            b"\xff\xd8\xff\xc0\0\x05\x08\0\x08\xff\xda\0\x08\1\1\0\0\x3f\0",
            b"\xff\xd8\xff\xda\0\x08\1\1\0\0\x3f\0",
            b"\xff\xd8\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\1\x11\0\xff\xda\0\x08\1\2\0\0\x3f\0",
            b"\xff\xd8\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\1\x01\0\xff\xda\0\x08\1\1\0\0\x3f\0",
        ],
    )
    def test_headers_that_make_no_sense(self, data: bytes) -> None:
        with pytest.raises(Unreadable, match=r"^damaged: "):
            read_header(data)


@pytest.mark.slow
def test_200_million_pixels_are_decoded_at_an_eighth() -> None:
    """A phone's largest photos; whole they would take 600 MB."""
    pixels = np.zeros((12_288, 16_384, 3), np.uint8)
    pixels[:6000, :, 0] = 200
    data = encoded(pixels, quality=80)
    got = decode(data, 64)
    assert isinstance(got, np.ndarray)
    assert abs(int(got[5, 5, 0]) - 200) < 4 and got[60, 5, 0] < 4


def test_a_jpeg_over_the_limit_of_other_formats_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is what decoding takes, not the number of pixels."""
    monkeypatch.setattr(images, "MAX_DECODING_BYTES", 500_000)
    data = encoded(np.full((1024, 1024, 3), 90, np.uint8), quality=80)
    assert isinstance(decode(data, 32), np.ndarray)
    assert "over the limit" in str(decode(data, 512))


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_fractions_are_pillows_own(render: Render, kind: dict[str, object], factor: int) -> None:
    data = encoded(render(5, 1, 803, 601), **kind)
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (803 // factor, 601 // factor))
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_jpeg(data, read_header(data), factor), expected)


def test_metadata_is_left_out_of_what_decoders_get(render: Render) -> None:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = 6, "described"
    data = encoded(render(5), exif=tags, comment=b"hello", icc_profile=b"profile")
    header = read_header(data)
    plain = without_extras(data, header)
    assert header.exif.startswith(b"Exif\0\0") and b"described" in data
    assert not any(word in plain for word in (b"described", b"hello", b"profile"))
    with Image.open(io.BytesIO(data)) as one, Image.open(io.BytesIO(plain)) as other:
        assert np.array_equal(one, other)
