"""Checks of a picture file before it is decoded.

Decoders do not limit some parts of a file: a directory of 65,535 tags that all refer to the same
megabytes, a million comments that are joined one by one, or texts that unpack to gigabytes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from lmk.embed.decode.formats import RAW, Unreadable

_MOST_CHUNKS = 200_000  # of a PNG or GIF file
_MOST_COMMENTS = 4096  # blocks of comments before the first frame of a GIF
_MOST_TEXT = 1 << 16  # bytes of a text that may hold the orientation
_MOST_NUMBERS = 4 << 20  # bytes of numbers in a TIFF directory
_MOST_OUTSIDE = 64  # tags of a directory whose bytes lie outside the file
_MOST_DIRECTORIES = 64  # looked at in one file
_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_WEBP_BEFORE_PIXELS = frozenset({b"VP8X", b"ICCP", b"ALPH", b"ANIM"})
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TIFF_SIZES |= {16: 8, 17: 8, 18: 8}
_BYTES = frozenset({1, 2, 6, 7})  # kinds of tag that hold text or blobs
_SUBFILE, _PHOTOMETRIC, _SUB_DIRECTORIES, _DNG_VERSION = 254, 262, 330, 50706
_COLOUR_FILTER = 32803


def plain_png(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Returns a PNG without texts, profiles and further frames, its EXIF block and XMP packet.

    Raises:
        Unreadable: the file has too many chunks.
    """
    parts, exif, xmp = [data[:8]], b"", b""
    at = 8
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            break
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if name in _PNG_NEEDED:
            parts.append(data[at:end])
        elif name == b"eXIf":
            exif = exif or data[at + 8 : end - 4]
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            word, _, text = data[at + 8 : min(end - 4, at + 8 + _MOST_TEXT)].partition(b"\0")
            if word == b"XML:com.adobe.xmp":
                xmp = xmp or text
            elif word == b"Raw profile type exif":
                exif = exif or _raw_profile(text, name == b"zTXt")
        at = end
        if name == b"IEND":
            break
    else:
        raise Unreadable(f"damaged: more than {_MOST_CHUNKS:,} chunks")
    return b"".join(parts), exif, xmp


def webp_size(data: bytes) -> tuple[int, int]:
    """Returns the width and height of a WebP picture.

    Raises:
        Unreadable: the first chunk has no size.
    """
    kind = data[12:16]
    if len(data) >= 30:
        if kind == b"VP8X":
            width, height = data[24:27], data[27:30]
            return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
        if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
            across, down = struct.unpack_from("<HH", data, 26)
            return across & 0x3FFF, down & 0x3FFF
        if kind == b"VP8L" and data[20] == 0x2F:
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise Unreadable("damaged: no size in its first chunk")


def zero_tail(data: bytes) -> int:
    """Returns the number of zero bytes at the end of a file, or of a WebP file's pixels."""
    end = len(data)
    if data[8:12] == b"WEBP":
        at = 12
        while at + 8 <= len(data) and data[at : at + 4] in _WEBP_BEFORE_PIXELS:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            at += at & 1
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    part = data[max(end - (1 << 16), 0) : end]
    return len(part) - len(part.rstrip(b"\0"))


def check_gif(data: bytes) -> None:
    """Checks the part of a GIF before its first frame.

    Raises:
        Unreadable: the part would take too long to read.
    """
    coloured = len(data) > 10 and data[10] & 0x80
    at = 13 + (3 << (data[10] & 7) + 1 if coloured else 0)
    blocks = comments = 0
    while at + 1 < len(data) and data[at] not in b",;":  # a frame, the end
        comment = data[at : at + 2] == b"!\xfe"
        at += 2 if data[at] == ord("!") else 1
        while at < len(data) and data[at]:
            at += 1 + data[at]
            blocks += 1
            comments += comment
        blocks += 1
        comments += comment
        at += 1
        if blocks > _MOST_CHUNKS or comments > _MOST_COMMENTS:
            raise Unreadable("damaged: too many comments before its first frame")


@dataclass(frozen=True)
class Tag:
    """An entry of a TIFF directory: its kind and number of values, its value or their offset."""

    kind: int
    count: int
    value: int


def check_directories(data: bytes) -> None:
    """Checks the first directory of every TIFF structure (EXIF block) in a file.

    Raises:
        Unreadable: a directory would take much memory, as it refers to the same bytes repeatedly.
    """
    view = memoryview(data)
    places: list[int] = []
    for signature in _TIFF_STARTS:
        at = data.find(signature)
        while at >= 0 and len(places) < _MOST_DIRECTORIES:
            places.append(at)
            at = data.find(signature, at + 1)
    for at in places:
        _check_directory(view[at:])


def check_tiff(data: bytes) -> None:
    """Checks the first directory of a TIFF file.

    Raises:
        Unreadable: the file is a camera raw file, or would take much memory.
    """
    tags = _check_directory(memoryview(data))
    preview = _SUBFILE in tags and tags[_SUBFILE].value & 1 and _SUB_DIRECTORIES in tags
    filtered = _PHOTOMETRIC in tags and tags[_PHOTOMETRIC].value == _COLOUR_FILTER
    if _DNG_VERSION in tags or preview or filtered:
        raise Unreadable(RAW)


def _check_directory(tiff: memoryview) -> dict[int, Tag]:
    """Returns the tags of the first directory of a TIFF structure.

    Raises:
        Unreadable: the tags refer to bytes behind the end, or to the same bytes repeatedly.
    """
    tags = {}
    texts = numbers = outside = 0
    for number, tag in _first_directory(tiff):
        size = _TIFF_SIZES.get(tag.kind, 0) * tag.count
        if size > 4 and tag.value + size <= len(tiff):
            texts += size if tag.kind in _BYTES else 0
            numbers += size if tag.kind not in _BYTES else 0
        elif size > 8:
            outside += 1
        tags[number] = tag
    if outside > _MOST_OUTSIDE:
        raise Unreadable("damaged: its directory names bytes behind its end")
    if numbers > _MOST_NUMBERS or texts > len(tiff):
        raise Unreadable("damaged: its directory names the same bytes again and again")
    return tags


def _first_directory(tiff: memoryview) -> list[tuple[int, Tag]]:
    """Returns the entries of the first directory of a TIFF or BigTIFF structure."""
    little = bytes(tiff[:2]) == b"II"
    order = "<" if little else ">"
    big = 0x2B in tiff[2:4]
    start_form, count_form, entry_form = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    entry = struct.Struct(order + entry_form)
    try:
        (start,) = struct.unpack_from(order + start_form, tiff, 8 if big else 4)
        (count,) = struct.unpack_from(order + count_form, tiff, start)
    except struct.error:
        return []
    begin = start + struct.calcsize(order + count_form)
    count = min(count, 65_535, (len(tiff) - begin) // entry.size)
    tags = []
    for at in range(begin, begin + count * entry.size, entry.size):
        number, kind, values, raw = entry.unpack_from(tiff, at)
        size = _TIFF_SIZES.get(kind, 0)
        value = raw[:size] if size * values <= len(raw) else raw
        tags.append(
            (number, Tag(kind, values, int.from_bytes(value, "little" if little else "big")))
        )
    return tags


def _raw_profile(text: bytes, packed: bool) -> bytes:
    r"""An EXIF block as ImageMagick writes it into a text: "\nexif\n   LENGTH\nHEX"."""
    try:
        if packed:
            text = zlib.decompressobj().decompress(text[1:], 4 * _MOST_TEXT)
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except (ValueError, zlib.error):
        return b""
