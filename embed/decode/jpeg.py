"""JPEG: header, decoding at a fraction of the size, and detection of missing parts.

libjpeg fills missing data with grey and only warns. After a warning, the missing part of the
picture is measured; the file is rejected if it is too large.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from lmk.embed.decode.formats import Unreadable

FACTORS = (1, 2, 4, 8)  # a JPEG can be decoded at these fractions of its size
MAX_BLOCKS = 60_000_000  # 8 x 8 blocks, summed over scans: the time that decoding takes
MISSING_AREA = 0.02  # largest missing fraction of a picture
MISSING_DETAIL = 0.25  # largest fraction of a picture without its finest detail

_END = b"\xff\xd9"
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\xff]")
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_MOST_SEGMENTS = 5_000  # before the first scan
_ZEROS = bytes(64)  # compressed pixels have no such run; a lost part of a file often has
_LEFT_OVER = re.compile(r"Corrupt JPEG data: (\d{1,9}) extraneous bytes before marker 0xd9")
_MOST_LEFT_OVER = 16  # bytes before the end mark that some cameras write, and no part of a picture
_GREY = np.uint8(127)  # libjpeg fills with this value, or with one more

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scan:
    """Header of a scan: its position, its components and its coefficients."""

    start: int
    end: int
    components: tuple[int, ...]
    first: int
    last: int
    low_bit: int


@dataclass(frozen=True)
class JpegHeader:
    """A JPEG file's header.

    Attributes:
        width, height: in pixels.
        sampling: horizontal and vertical sampling factor of each component by its id.
        progressive: True for a progressive file.
        scans: all scans if there may be several, else only the first.
        exif, xmp: the blocks that may hold the orientation.
        extras: (start, end) of the segments that no decoder needs.
    """

    width: int
    height: int
    sampling: dict[int, tuple[int, int]]
    progressive: bool
    scans: tuple[Scan, ...]
    exif: bytes
    xmp: bytes
    extras: tuple[tuple[int, int], ...]

    @property
    def several_scans(self) -> bool:
        """True if the decoder holds all coefficients in memory, as scans refine each other."""
        return self.progressive or len(self.scans[0].components) < len(self.sampling)

    def blocks(self, component: int) -> int:
        """Returns the number of 8 x 8 blocks of a component, with padding at the edges."""
        across = max(h for h, _ in self.sampling.values())
        down = max(v for _, v in self.sampling.values())
        h, v = self.sampling[component]
        return -(-self.width // (8 * across)) * h * (-(-self.height // (8 * down)) * v)

    @property
    def work(self) -> int:
        """The number of blocks to decode, summed over scans and components."""
        return sum(self.blocks(each) for scan in self.scans for each in scan.components)

    def memory(self, factor: int) -> int:
        """Returns an upper bound for the bytes that decoding at 1/factor of the size needs."""
        decoded = (20 if len(self.sampling) == 4 else 3) * self._pixels(factor)
        if self.several_scans:
            fine = min(factor, 4)  # the fraction at which missing detail is detected
            decoded += (1 if fine == factor else 2) * 4 * self._pixels(fine)
            decoded += 128 * sum(map(self.blocks, self.sampling))  # coefficients of 16 bits
        return decoded + 300 * self.width

    def _pixels(self, factor: int) -> int:
        return -(-self.width // factor) * -(-self.height // factor)


def read_header(data: bytes) -> JpegHeader:
    """Returns the header of a JPEG file.

    Raises:
        Unreadable: there is no header, or the file has more than MAX_BLOCKS.
    """
    frame: tuple[bool, int, int, dict[int, tuple[int, int]]] | None = None
    exif: list[bytes] = []
    extras: list[tuple[int, int]] = []
    xmp = b""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        match = _MARKER.search(data, at)
        if match is None or match.end() + 2 > len(data):
            raise Unreadable("damaged: image file is truncated (its header ends early)")
        at = match.end() - 2
        marker = data[at + 1]
        if marker == 0 or marker in _NO_LENGTH:
            at += 2
            continue
        if marker == 0xDA:
            break
        body = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        if marker in _FRAMES and frame is None:
            frame = _frame(marker, body)
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            if marker == 0xE1 and body.startswith(b"Exif\0\0"):
                exif.append(body[6:] if exif else body)
            elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                xmp = xmp or body
            if marker != 0xEE:  # Adobe's, which names the colour space
                extras.append((at, at + 4 + len(body)))
        at += 4 + len(body) if len(body) else 4
    else:
        raise Unreadable(f"damaged: more than {_MOST_SEGMENTS} segments before its pixels")
    if frame is None:
        raise Unreadable("damaged: no frame header before its pixels")
    progressive, height, width, sampling = frame
    scans = _scans(data, at, sampling, progressive)
    header = JpegHeader(
        width, height, sampling, progressive, scans, b"".join(exif), xmp, tuple(extras)
    )
    if header.work > MAX_BLOCKS:
        raise Unreadable(
            f"{len(scans)} scans of {width} x {height} pixels take too long to decode"
            if len(scans) > 1
            else f"{width} x {height} pixels take too long to decode"
        )
    return header


def without_extras(data: bytes, header: JpegHeader) -> bytes:
    """Returns the file without the metadata that a decoder does not need."""
    parts, at = [], 0
    for start, end in header.extras:
        parts.append(data[at:start])
        at = end
    return b"".join([*parts, data[at:]])


def decode_jpeg(data: bytes, header: JpegHeader, factor: int) -> Pixels | None:
    """Decodes a JPEG at 1/factor of its size (one of FACTORS), without its orientation.

    A file without an end mark, or with a few extra bytes before it, is complete.

    Returns:
        uint8 [ceil(height / factor), ceil(width / factor), 3] in RGB order, or None for a kind of
        JPEG that only Pillow decodes.

    Raises:
        Unreadable: more than MISSING_AREA of the picture is missing.
    """
    whole = data if data.endswith(_END) else data + _END
    try:
        return _rgb(_decode(whole, header, factor, strict=True))
    except ValueError as warning:  # of libjpeg
        left = _LEFT_OVER.match(str(warning))
    if left and int(left[1]) <= _MOST_LEFT_OVER:  # all blocks exist
        return _rgb(_decode(whole, header, factor, strict=False))
    zeros = whole.find(_ZEROS, header.scans[0].start)
    if zeros >= 0:
        whole = whole[:zeros] + _END
    try:
        pixels = _decode(whole, header, factor, strict=False)
    except ValueError:
        return None
    _check_missing(whole, header, factor, pixels)
    return _rgb(pixels)


def _decode(data: bytes, header: JpegHeader, factor: int, *, strict: bool) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(
        data,
        "CMYK" if len(header.sampling) == 4 else "RGB",
        min_height=-(-header.height // factor),
        min_width=-(-header.width // factor),
        strict=strict,
    )
    return pixels


def _rgb(pixels: Pixels) -> Pixels:
    """Returns RGB pixels from RGB or CMYK pixels (inverted, as Adobe writes them)."""
    if pixels.shape[2] == 3:
        return pixels
    return np.asarray(Image.fromarray(255 - pixels, "CMYK").convert("RGB"))


def _check_missing(data: bytes, header: JpegHeader, factor: int, pixels: Pixels) -> None:
    """Raises Unreadable if too much of a picture is missing."""
    missing = _grey_share(pixels, factor)
    if missing > MISSING_AREA:
        raise _truncated(f"{max(missing, 0.01):.0%} of the picture is missing")
    if not header.several_scans:
        return
    scans = [scan for scan in header.scans if scan.start < len(data)]
    if not _all_coefficients(header, scans):
        raise _truncated("its last scans are missing")
    # The last scan adds the finest detail; where it changes nothing, the detail is missing. Its
    # header stays, as libjpeg smooths areas that no scan has refined.
    fine = min(factor, 4)
    with_last = pixels if fine == factor else _decode(data, header, fine, strict=False)
    before = _decode(data[: scans[-1].end] + _END, header, fine, strict=False)
    height = len(before)
    same = 0
    while same < height and np.array_equal(before[-1 - same], with_last[-1 - same]):
        same += 1
    if same / height > MISSING_DETAIL:
        raise _truncated(f"the detail of {same / height:.0%} of the picture is missing")


def _truncated(what: str) -> Unreadable:
    return Unreadable(f"damaged: image file is truncated ({what})")


def _grey_share(pixels: Pixels, factor: int) -> float:
    """Returns the fraction of a picture that libjpeg has filled, from some block to the end."""
    height, width = len(pixels), len(pixels[0])
    rows = 0
    while rows < height and (pixels[-1 - rows] - _GREY <= 1).all():
        rows += 1
    if rows == height:
        return 1.0
    above = (pixels[-1 - rows] - _GREY <= 1).all(axis=1)[::-1]
    columns = width if above.all() else int(above.argmin())
    missing = rows * width + columns * min(16 // factor, height - rows)
    return missing / (height * width) if missing else 0.0


def _all_coefficients(header: JpegHeader, scans: list[Scan]) -> bool:
    """True if the scans have every bit of every coefficient of every component."""
    if not header.progressive:
        return set(header.sampling) <= {each for scan in scans for each in scan.components}
    missing = {each: np.ones(64, bool) for each in header.sampling}
    for scan in scans:
        for each in scan.components:
            if scan.low_bit == 0:
                missing[each][scan.first : scan.last + 1] = False
    return not any(each.any() for each in missing.values())


def _frame(marker: int, body: bytes) -> tuple[bool, int, int, dict[int, tuple[int, int]]]:
    try:
        _, height, width, count = struct.unpack_from(">BHHB", body)
        parts = [struct.unpack_from("BBB", body, 6 + 3 * i) for i in range(count)]
    except struct.error:
        raise Unreadable("damaged: its frame header is cut") from None
    sampling = {id_: (both >> 4, both & 15) for id_, both, _ in parts}
    odd = len(sampling) != count or any(
        not (0 < h <= 4 and 0 < v <= 4) for h, v in sampling.values()
    )
    if not (height and width and count) or odd:
        raise Unreadable("damaged: its frame header makes no sense")
    return marker in _PROGRESSIVE, height, width, sampling


def _scans(
    data: bytes, start: int, sampling: dict[int, tuple[int, int]], progressive: bool
) -> tuple[Scan, ...]:
    """Returns the scans from `start` on, to the end of the file; only the first if complete."""
    scans: list[Scan] = []
    at = start
    while at >= 0:
        count = data[at + 4] if at + 4 < len(data) else 0
        body = data[at + 5 : at + 8 + 2 * count]
        components = tuple(body[: 2 * count : 2])
        if len(body) == 2 * count + 3 and components and set(components) <= set(sampling):
            first, last, bits = body[-3:]
            scans.append(Scan(at, at + 5 + len(body), components, first, min(last, 63), bits & 15))
            if not progressive and len(components) == len(sampling):
                break
        elif not scans:
            raise Unreadable("damaged: its first scan makes no sense")
        at = data.find(_SCAN, at + 2)
    return tuple(scans)
