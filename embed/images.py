"""Safe decoding: a picture file becomes an array, or a Skipped with the reason.

A bad file never raises in the middle of a run. The picture is turned as its EXIF says, flattened
onto white where it is transparent, and squashed to a square: the whole picture counts, the shape
is lost (for retrieval of landmarks that did no harm and needs no crop).
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

IMAGES_VERSION = 1  # part of every embedder's fingerprint: raise it when pixels change

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs
_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_END_OF_JPEG = b"\xff\xd9"
_CV2_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Skipped:
    """A file that gave no vector, and why."""

    path: str
    reason: str


def read_bytes(path: Path) -> bytes | str:
    """The content of a file, or the reason why it cannot be read."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return "is a folder, not a picture"
        if not stat.S_ISREG(mode):
            return "is no plain file"  # reading a pipe would wait for ever
        data = path.read_bytes()
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    return data if data else "empty file (0 bytes)"


def decode(data: bytes, size: int) -> Picture | str:
    """Decodes a picture and squashes it to a square.

    Args:
        data: the content of a JPEG, PNG, WebP, GIF (first frame), TIFF, BMP or AVIF file.
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
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return _too_large(f"{image.width} x {image.height}")
            pixels = _fast_jpeg(data, image, size)
            if pixels is None:
                pixels = _any_format(image, size)
            # Asked after decoding: some plugins (TIFF) turn the picture themselves, and say so.
            return _turned(resize(pixels), _orientation(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return _too_large("too many")
    except UnidentifiedImageError:
        return "not a picture that can be decoded"
    except MemoryError:
        return "needs more memory than there is"
    except Exception as error:
        # Pillow's plugins raise nearly anything on damaged files (struct.error, AttributeError...);
        # one bad file must not end a run over a million.
        return f"damaged: {' '.join(str(error).split()) or type(error).__name__}"


def thumbnail(path: Path, side: int, *, quality: int = 80) -> bytes | None:
    """A JPEG of a picture, turned as EXIF says, its longer side at most `side` pixels.

    None where the file cannot be read as a picture (it may have been removed since).
    """
    try:
        with Image.open(path) as image:
            flat = Image.fromarray(_any_format(image, side))
            turn = _TRANSPOSES.get(_orientation(image))
        flat.thumbnail((side, side))
        file = io.BytesIO()
        (flat if turn is None else flat.transpose(turn)).save(file, "JPEG", quality=quality)
        return file.getvalue()
    except Exception:  # see _decoded
        return None


def ignore_large_picture_warnings() -> None:
    """Silences Pillow's warnings about pictures of 89 to 179 million pixels (phones make them).

    And about broken EXIF, which costs a picture its turn at most. Filters are process-wide, so
    only a program's start may call it, never an import.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _too_large(pixels: str) -> str:
    return f"{pixels} pixels, over the limit of {MAX_PIXELS // 1_000_000} million"


def _fast_jpeg(data: bytes, image: Image.Image, size: int) -> Picture | None:
    """OpenCV decodes a whole RGB or grey JPEG in half of Pillow's time; None for anything else.

    A JPEG that does not end as it should goes to Pillow, which refuses a cut file; libjpeg
    alone would fill it up with grey.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    if not data.rstrip(b"\0").endswith(_END_OF_JPEG):
        return None
    factor = max(f for f in _CV2_REDUCED if f == 1 or min(image.size) >= 2 * size * f)
    flags = _CV2_REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if pixels is None else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)


def _any_format(image: Image.Image, size: int) -> Picture:
    """Pillow decodes everything else, with the first frame, 16 bits, CMYK and alpha seen to."""
    image.draft("RGB", (2 * size, 2 * size))  # JPEG only: decodes at a fraction of the size
    if image.mode.startswith(("I", "F")):
        return _from_deep(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _from_deep(values: NDArray[np.generic]) -> Picture:
    """Grey values of more than 8 bits, scaled by their range: 16 bits, or 0..1 for floats."""
    deep = np.nan_to_num(values.astype(np.float32))
    top = 1.0 if values.dtype.kind == "f" and deep.max() <= 1 else 65535.0
    top = 255.0 if values.dtype.kind != "u" and 1 < deep.max() <= 255 else top
    grey = np.clip(deep * (255.0 / top), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or it cannot be read."""
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF in a good picture
        return 1
    return turn if turn in _TRANSPOSES else 1


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


def _turned(pixels: Picture, orientation: int) -> Picture:
    """Applies an EXIF orientation (1 to 8; anything else counts as 1)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
