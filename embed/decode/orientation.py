"""EXIF orientation: the rotation of the camera, read without a metadata library.

Only one number is needed. A library would copy every tag into memory, and a block of 64 kB can
refer to 65,535 tags of 64 kB each.
"""

from __future__ import annotations

import re
import struct

import numpy as np
from numpy.typing import NDArray

_TAG = 0x0112
_SIZES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}  # bytes of a BYTE, SHORT, LONG, signed or not
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def exif_orientation(exif: bytes, xmp: bytes = b"") -> int:
    """Returns the orientation (1 to 8) of an EXIF block or an XMP packet; 1 if neither has one."""
    turn = _from_exif(exif.removeprefix(b"Exif\0\0"))
    if turn is None and (match := _XMP.search(xmp)):
        turn = int(match[1])
    return turn if turn is not None and 1 <= turn <= 8 else 1


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Returns uint8 [height, width, 3] with an EXIF orientation (1 to 8) applied."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _from_exif(tiff: bytes) -> int | None:
    """Returns the orientation in the first directory of a TIFF structure, or None."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return None
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return None
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    tag = struct.pack(f"{order}H", _TAG)
    entries = tiff[start + 2 : start + 2 + 12 * count]
    for at in range(0, len(entries) - 11, 12):
        if entries[at : at + 2] == tag:
            kind, number = struct.unpack_from(f"{order}HI", entries, at + 2)
            size = _SIZES.get(kind)
            if size is None or not number:
                return None
            value = entries[at + 8 : at + 12]
            if size * number > len(value):  # the first of several, elsewhere in the block
                (where,) = struct.unpack(f"{order}I", value)
                value = tiff[where : where + size]
            return int.from_bytes(value[:size], "little" if order == "<" else "big")
    return None
