"""Safe decoding: a picture file becomes an array, or a Skipped with the reason.

A bad file never raises in the middle of a run. The picture is turned as its EXIF says, flattened
onto white where it is transparent, and squashed to a square: the whole picture counts, the shape
is lost (for retrieval of landmarks that did no harm and needs no crop).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lmk.embed.decode.formats import NOT_A_PICTURE, Unreadable, picture_format
from lmk.embed.decode.jpeg import FACTORS, JpegHeader, decode_jpeg, read_header, without_extras
from lmk.embed.decode.orientation import exif_orientation, turned
from lmk.embed.decode.pillow import open_picture, rgb_pixels
from lmk.embed.memory_budget import MemoryBudget, release_memory
from lmk.embed.memory_errors import memory_error
from lmk.embed.plain_files import NotPlainError, open_plain

IMAGES_VERSION = 1  # part of every embedder's fingerprint: raise it when pixels change

MAX_FILE_BYTES = 200_000_000  # of one file, and of all files that threads hold at once
MAX_DECODING_BYTES = 900_000_000  # of one picture, and of all that threads decode at once

NO_MEMORY = "needs more memory than there is"
_MUCH = 64_000_000

_files = MemoryBudget(MAX_FILE_BYTES)
_decoding = MemoryBudget(MAX_DECODING_BYTES)

Picture = NDArray[np.uint8]


def _new_budgets() -> None:
    """Frees both budgets in a forked process, which has none of the threads that held bytes."""
    global _files, _decoding
    _files, _decoding = MemoryBudget(_files.total), MemoryBudget(_decoding.total)


os.register_at_fork(after_in_child=_new_budgets)


@dataclass(frozen=True)
class Skipped:
    """A file that gave no vector, and why."""

    path: str
    reason: str


def read_bytes(path: Path) -> bytes | str:
    """The content of a file, or the reason why it cannot be read."""
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                return (
                    f"a file of {size / 1e6:,.0f} MB, over the limit of "
                    f"{MAX_FILE_BYTES // 1_000_000} MB"
                )
            data = file.read()
    except (FileNotFoundError, ValueError):  # ValueError: a NUL in its name
        return "no such file"
    except IsADirectoryError:
        return "is a folder, not a picture"
    except NotPlainError:
        return "is no plain file"  # reading a pipe would wait for ever
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    return data if data else "empty file (0 bytes)"


@contextmanager
def picture_bytes(path: Path) -> Iterator[bytes | str]:
    """The result of `read_bytes`, for threads: together they hold MAX_FILE_BYTES at most.

    The block must let go of the bytes, and must not read a second file.
    """
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        size = 0
    with _files.hold(size):
        yield read_bytes(path)


def decode(data: bytes, size: int) -> Picture | str:
    """Decodes a picture and squashes it to a square.

    Args:
        data: the content of a JPEG, PNG, WebP, GIF (first frame), TIFF, BMP, AVIF or HEIF file.
        size: side of the square, in pixels.

    Returns:
        uint8 [size, size, 3], RGB; or the reason why there is no picture.
    """
    return _decoded(data, size, lambda pixels: _squashed(pixels, size))


def decode_grey(data: bytes, longest: int) -> Picture | str:
    """Decodes a picture to grey and shrinks it, its shape kept.

    Args:
        data: as for `decode`.
        longest: pixels its longer side has at most; a smaller picture stays as it is.

    Returns:
        uint8 [height, width]; or the reason why there is no picture.
    """

    def shrunk(pixels: Picture) -> Picture:
        height, width = pixels.shape[:2]
        share = longest / max(height, width)
        if share < 1:
            smaller = (max(round(width * share), 1), max(round(height * share), 1))
            pixels = np.asarray(cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA), np.uint8)
        return pixels

    pixels = _decoded(data, longest, shrunk)
    if isinstance(pixels, str):
        return pixels
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)


def _decoded(data: bytes, size: int, resize: Callable[[Picture], Picture]) -> Picture | str:
    """The picture at not less than twice `size` where it has that many pixels, resized, turned."""
    try:
        kind = picture_format(data)
        if kind == "JPEG":
            return _decoded_jpeg(data, size, resize)
        return _decoded_by_pillow(data, kind, size, resize)
    except Unreadable as reason:
        return str(reason)
    except UnidentifiedImageError:
        return NOT_A_PICTURE
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return "more pixels than Pillow's limit allows"
    except Exception as error:
        if memory_error(error) is not None:
            return NO_MEMORY
        # Pillow's plugins raise nearly anything on damaged files (struct.error, AttributeError...);
        # one bad file must not end a run over a million.
        return f"damaged: {' '.join(str(error).split()) or type(error).__name__}"


def _decoded_jpeg(data: bytes, size: int, resize: Callable[[Picture], Picture]) -> Picture:
    header = read_header(data)
    factor = _factors((header.width, header.height), size)[-1]
    turn = exif_orientation(header.exif, header.xmp)
    with _room_for(len(data) + header.memory(factor)):
        pixels = decode_jpeg(data, header, factor)
        if pixels is not None:
            return turned(resize(pixels), turn)
    return _jpeg_by_pillow(data, header, size, lambda pixels: turned(resize(pixels), turn))


def _jpeg_by_pillow(
    data: bytes, header: JpegHeader, size: int, use: Callable[[Picture], Picture]
) -> Picture:
    """A JPEG that `decode_jpeg` does not read, such as one of unusual sampling."""
    image = open_picture(without_extras(data, header), "JPEG").image
    image.draft("RGB", (2 * size, 2 * size))  # decodes at a fraction of the size
    with _room_for(len(data) + 12 * image.width * image.height + header.memory(8)):
        picture = use(rgb_pixels(image))
        del image
        return picture


def _decoded_by_pillow(
    data: bytes, kind: str, size: int, resize: Callable[[Picture], Picture]
) -> Picture:
    opened = open_picture(data, kind)
    factors = _factors(opened.image.size, size)
    fitting = (each for each in factors if len(data) + opened.memory(each) <= MAX_DECODING_BYTES)
    factor = next(fitting, factors[-1])
    with _room_for(len(data) + opened.memory(factor)):
        picture = turned(resize(rgb_pixels(opened.image, factor)), opened.orientation)
        del opened  # before others get its room
        return picture


def _factors(shape: tuple[int, int], size: int) -> list[int]:
    """The fractions (1 / factor) of a picture that are not smaller than twice `size`, or whole."""
    return [each for each in FACTORS if each == 1 or min(shape) >= 2 * size * each]


@contextmanager
def _room_for(memory: int) -> Iterator[None]:
    """Waits until so many bytes may be used for decoding.

    Raises:
        Unreadable: they never may.
    """
    if memory > MAX_DECODING_BYTES:
        raise Unreadable(
            f"needs {memory / 1e6:,.0f} MB to be decoded, over the limit of "
            f"{MAX_DECODING_BYTES // 1_000_000:,} MB"
        )
    with _decoding.hold(memory):
        if memory > _MUCH:
            release_memory()
        yield
        if memory > _MUCH:
            release_memory()


def thumbnail(
    path: Path, side: int, *, quality: int = 80, sha256: str | None = None
) -> bytes | None:
    """A JPEG of a picture, turned as EXIF says, its longer side at most `side` pixels.

    None where the file cannot be read as a picture (it may have been removed since), or where its
    content has not the SHA-256 that is given.
    """

    def shrunk(pixels: Picture) -> Picture:
        small = Image.fromarray(pixels)
        small.thumbnail((side, side))
        return np.asarray(small)

    with picture_bytes(path) as data:
        if isinstance(data, str) or sha256 not in (None, hashlib.sha256(data).hexdigest()):
            return None
        pixels = _decoded(data, side, shrunk)
    if isinstance(pixels, str):
        return None
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def stored_size(path: Path) -> tuple[int, int] | None:
    """The width and height of a picture file; None where it cannot be read as a picture."""
    with picture_bytes(path) as data:
        if isinstance(data, str):
            return None
        try:
            kind = picture_format(data)
            if kind == "JPEG":
                header = read_header(data)
                return header.width, header.height
            return open_picture(data, kind).image.size
        except Exception:  # see _decoded
            return None


def _squashed(pixels: Picture, size: int) -> Picture:
    """Resizes to [size, size, 3]: area averaging on a side that shrinks, linear where it grows."""
    height, width = pixels.shape[:2]
    if height > size or width > size:
        smaller = (min(width, size), min(height, size))
        pixels = np.asarray(cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA), np.uint8)
    if pixels.shape[:2] != (size, size):
        pixels = np.asarray(
            cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8
        )
    return pixels
