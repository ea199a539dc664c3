"""Safe decoding of picture files: each becomes an array, or a text with the reason why not.

A bad file never raises an exception in the middle of a run. `decode` rotates the picture by its
EXIF orientation, puts transparent pictures on white, and resizes the whole picture to a square.
The aspect ratio is lost; this does not harm the retrieval of landmarks and needs no crop.
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

IMAGES_VERSION = 1  # part of every embedder's fingerprint; increase it when pixels change

MAX_FILE_BYTES = 200_000_000  # limit for one file, and for all files that threads hold
MAX_DECODING_BYTES = 900_000_000  # limit for one picture, and for all that threads decode

NO_MEMORY = "needs more memory than there is"
_LARGE_PICTURE_BYTES = 64_000_000  # above it, freed memory goes back to the system

_files = MemoryBudget(MAX_FILE_BYTES)
_decoding = MemoryBudget(MAX_DECODING_BYTES)

Picture = NDArray[np.uint8]


def _new_budgets() -> None:
    """Resets both budgets in a forked process, where the threads that used them do not exist."""
    global _files, _decoding
    _files, _decoding = MemoryBudget(_files.total), MemoryBudget(_decoding.total)


os.register_at_fork(after_in_child=_new_budgets)


@contextmanager
def one_thread_opencv() -> Iterator[None]:
    """Limits OpenCV to the calling thread, and restores its process-wide setting at the end.

    Callers have threads of their own, and those of OpenCV cost more time than they save on small
    pictures.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@dataclass(frozen=True)
class Skipped:
    """A file without a vector, and the reason."""

    path: str
    reason: str


def read_bytes(path: Path) -> bytes | str:
    """Returns the content of a file, or the reason why it cannot be read."""
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
    """Yields the result of `read_bytes`; all threads together hold at most MAX_FILE_BYTES.

    The block must release the bytes, and must not read a second file.
    """
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        size = 0
    with _files.hold(size):
        yield read_bytes(path)


def decode(data: bytes, size: int) -> Picture | str:
    """Returns a picture, resized to a square without regard to its aspect ratio.

    Args:
        data: the content of a JPEG, PNG, WebP, GIF (first frame), TIFF, BMP, AVIF or HEIF file.
        size: side of the square, in pixels.

    Returns:
        uint8 [size, size, 3] in RGB order, or the reason why the file cannot be decoded.
    """
    return _decoded(data, size, lambda pixels: _squashed(pixels, size))


def decode_grey(data: bytes, longest: int) -> Picture | str:
    """Returns a picture in grey, reduced in size with its aspect ratio.

    Args:
        data: as for `decode`.
        longest: largest length of the longer side, in pixels. Smaller pictures keep their size.

    Returns:
        uint8 [height, width], or the reason why the file cannot be decoded.
    """

    def shrunk(pixels: Picture) -> Picture:
        height, width = pixels.shape[:2]
        scale = longest / max(height, width)
        if scale < 1:
            smaller = (max(round(width * scale), 1), max(round(height * scale), 1))
            pixels = np.asarray(cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA), np.uint8)
        return pixels

    pixels = _decoded(data, longest, shrunk)
    if isinstance(pixels, str):
        return pixels
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)


def _decoded(data: bytes, size: int, resize: Callable[[Picture], Picture]) -> Picture | str:
    """Returns the picture, decoded at twice `size` or more if it is that large, then resized."""
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
        # Pillow's plugins raise many exceptions on damaged files (struct.error, AttributeError...).
        # One bad file must not end a run over a million files.
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
    """Decodes a JPEG that `decode_jpeg` cannot read, such as one with unusual subsampling."""
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
        del opened  # before its memory is given to other threads
        return picture


def _factors(shape: tuple[int, int], size: int) -> list[int]:
    """Returns the factors by which a picture may shrink and keep twice `size`; 1 is always one."""
    return [each for each in FACTORS if each == 1 or min(shape) >= 2 * size * each]


@contextmanager
def _room_for(memory: int) -> Iterator[None]:
    """Reserves bytes of the decoding budget, or raises Unreadable if it is too small for them."""
    if memory > MAX_DECODING_BYTES:
        raise Unreadable(
            f"needs {memory / 1e6:,.0f} MB to be decoded, over the limit of "
            f"{MAX_DECODING_BYTES // 1_000_000:,} MB"
        )
    with _decoding.hold(memory):
        if memory > _LARGE_PICTURE_BYTES:
            release_memory()
        yield
        if memory > _LARGE_PICTURE_BYTES:
            release_memory()


def thumbnail(
    path: Path, side: int, *, quality: int = 80, sha256: str | None = None
) -> bytes | None:
    """Returns a JPEG of a picture whose longer side has at most `side` pixels.

    The result is None if the file cannot be decoded (it may have been removed), or if `sha256` is
    given and is not the SHA-256 of the content. EXIF orientation is applied.
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
    """Returns the width and height of a picture file, or None if it cannot be decoded."""
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
    """Resizes to [size, size, 3]: by area averaging to shrink a side, linearly to enlarge it."""
    height, width = pixels.shape[:2]
    if height > size or width > size:
        smaller = (min(width, size), min(height, size))
        pixels = np.asarray(cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA), np.uint8)
    if pixels.shape[:2] != (size, size):
        pixels = np.asarray(
            cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8
        )
    return pixels
