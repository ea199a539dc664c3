"""Decodes pictures with Pillow into RGB, without a second copy of the pixels."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from lmk.embed.decode.formats import Unreadable
from lmk.embed.decode.headers import (
    check_directories,
    check_gif,
    check_tiff,
    plain_png,
    webp_size,
    zero_tail,
)
from lmk.embed.decode.orientation import exif_orientation
from lmk.embed.memory_errors import raise_system_cause

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs
HEIF_EXTRA = "pip install 'lmk-landmarks[heif]'"

_STRIP = 1 << 20  # pixels that are converted at a time
_STRIP_BYTES = 24  # that each of them takes meanwhile
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # others: 4
_DECODER = {"WEBP": 12, "AVIF": 12, "HEIF": 12}  # bytes a pixel that a decoder needs beside
_SLOW_BMP = 2 << 20  # bytes, and pixels by 8: Pillow reads run-length encoded ones in Python
_ZERO_TAIL = 4096  # bytes: compressed pixels do not end in so many zeros
_TRANSPARENT = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})

Pixels = NDArray[np.uint8]


def _silence_libtiff() -> None:
    """Stops libtiff from printing messages without a file name; Pillow raises errors."""
    with suppress(AttributeError, OSError):  # a Pillow without libtiff, or with it built in
        library = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = library[name]
            setter.argtypes, setter.restype = (ctypes.c_void_p,), ctypes.c_void_p
            setter(None)


_silence_libtiff()


@dataclass(frozen=True)
class OpenedPicture:
    """A picture whose header has been read, but not its pixels.

    Attributes:
        image: the Pillow image.
        orientation: EXIF's, 1 to 8, that is still to be applied; None to ask after decoding.
        decoder_bytes: that decoding takes beside the picture in Pillow's memory.
    """

    image: Image.Image
    orientation: int
    decoder_bytes: int

    def memory(self, factor: int) -> int:
        """Returns an upper bound for the bytes that `rgb_pixels` needs with this factor."""
        pixels = self.image.width * self.image.height
        stored = pixels * _STORED.get(self.image.mode, 4)
        result = 3 * -(-self.image.width // factor) * -(-self.image.height // factor)
        strip = min(pixels, max(_STRIP, self.image.width * factor)) * _STRIP_BYTES
        return stored + self.decoder_bytes + result + strip


def open_picture(data: bytes, kind: str) -> OpenedPicture:
    """Returns a picture whose header has been read.

    Args:
        data: the content of the file.
        kind: its format, one of picture_formats.FORMATS; a JPEG without metadata.

    Raises:
        Unreadable: the picture cannot be decoded, or needs too much data.
        Exception: any error of Pillow for a damaged header.
    """
    if kind in _DECODER and zero_tail(data) >= _ZERO_TAIL:
        raise Unreadable("damaged: image file is truncated (its last bytes are zeros)")
    opened = _OPENERS[kind](data)
    image = opened.image
    if image.width * image.height > MAX_PIXELS and kind != "JPEG":  # drafts of those are small
        raise Unreadable(
            f"{image.width} x {image.height} pixels, over the limit of "
            f"{MAX_PIXELS // 1_000_000} million"
        )
    return opened


def rgb_pixels(image: Image.Image, factor: int = 1) -> Pixels:
    """Returns the first frame as RGB: on white, 16 bits scaled, without its orientation.

    Args:
        image: an open image, which is decoded here.
        factor: squares of factor x factor pixels are averaged into one.

    Returns:
        uint8 [ceil(height / factor), ceil(width / factor), 3].
    """
    image.load()
    to_rgb = _converter(image)
    width, height = image.size
    result = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for top, part in _strips(image, factor):
        rows = to_rgb(part)
        if factor > 1:
            smaller = (result.shape[1], -(-len(rows) // factor))
            rows = np.asarray(cv2.resize(rows, smaller, interpolation=cv2.INTER_AREA), np.uint8)
        result[top // factor : top // factor + len(rows)] = rows
    return result


def _strips(image: Image.Image, factor: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yields strips of a picture with their first row; each has a multiple of `factor` rows."""
    width, height = image.size
    rows = max(_STRIP // width // factor * factor, factor)
    if rows >= height:
        yield 0, image
        return
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _converter(image: Image.Image) -> Callable[[Image.Image], Pixels]:
    """Returns a strip of the picture as RGB."""
    if image.mode.startswith(("I", "F")):
        top = _white_value(image)
        return lambda part: _from_deep(np.asarray(part), top)
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        return _on_white
    return lambda part: np.asarray(part.convert("RGB"))


def _on_white(part: Image.Image) -> Pixels:
    rgba = part.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def _white_value(image: Image.Image) -> float:
    """Returns the grey value of white in a picture of more than 8 bits.

    White is 255 if wider numbers hold values of 8 bits, 1 if floats do not exceed 1, else 65535.
    """
    highest = max(
        float(np.nan_to_num(np.asarray(part).astype(np.float32)).max())
        for _, part in _strips(image)
    )
    kind = np.asarray(image.crop((0, 0, 1, 1))).dtype.kind
    if kind != "u" and 1 < highest <= 255:
        return 255.0
    return 1.0 if kind == "f" and highest <= 1 else 65535.0


def _from_deep(values: NDArray[np.generic], white: float) -> Pixels:
    """Returns grey values of more than 8 bits, scaled by their range."""
    deep = np.nan_to_num(values.astype(np.float32))
    grey = np.clip(deep * (255.0 / white), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _jpeg(data: bytes) -> OpenedPicture:
    return OpenedPicture(JpegImagePlugin.JpegImageFile(io.BytesIO(data)), 1, 0)


def _png(data: bytes) -> OpenedPicture:
    plain, exif, xmp = plain_png(data)
    image = PngImagePlugin.PngImageFile(io.BytesIO(plain))
    return OpenedPicture(image, exif_orientation(exif, xmp), 0)


def _gif(data: bytes) -> OpenedPicture:
    check_gif(data)
    return OpenedPicture(GifImagePlugin.GifImageFile(io.BytesIO(data)), 1, 0)


def _bmp(data: bytes) -> OpenedPicture:
    read = BmpImagePlugin.BmpImageFile if data[:2] == b"BM" else BmpImagePlugin.DibImageFile
    image = read(io.BytesIO(data))
    large = len(data) > _SLOW_BMP or image.width * image.height > 8 * _SLOW_BMP
    if large and any(tile[0] != "raw" for tile in image.tile):
        raise Unreadable("a large compressed BMP picture, which is not read (save it as PNG)")
    return OpenedPicture(image, 1, 0)


def _tiff(data: bytes) -> OpenedPicture:
    check_tiff(data)
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    tags = image.tag_v2
    bits = sum(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    rows = min(tags.get(TiffImagePlugin.ROWSPERSTRIP, image.height), image.height)
    strip = image.width * rows
    if TiffImagePlugin.TILEWIDTH in tags:
        strip = tags[TiffImagePlugin.TILEWIDTH] * tags.get(TiffImagePlugin.TILELENGTH, image.height)
    compressed = any(tile[0] != "raw" for tile in image.tile)
    # Pillow applies the orientation while it decodes.
    return OpenedPicture(image, 1, compressed * 2 * strip * max(bits, 8) // 8)


def _webp(data: bytes) -> OpenedPicture:
    width, height = webp_size(data)
    if width * height > MAX_PIXELS:  # before the decoder makes two canvases of this size
        raise Unreadable(
            f"{width} x {height} pixels, over the limit of {MAX_PIXELS // 1_000_000} million"
        )
    return _with_info(WebPImagePlugin.WebPImageFile(io.BytesIO(data)), "WEBP")


def _avif(data: bytes) -> OpenedPicture:
    check_directories(data)
    return _with_info(AvifImagePlugin.AvifImageFile(io.BytesIO(data)), "AVIF")


def _heif(data: bytes) -> OpenedPicture:
    try:
        import pillow_heif
    except ImportError as error:
        raise_system_cause(error)
        raise Unreadable(f"a HEIF picture, which needs {HEIF_EXTRA}") from None
    # The orientation of its pixels is applied already.
    image = pillow_heif.HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    return OpenedPicture(image, 1, _DECODER["HEIF"] * image.width * image.height)


def _with_info(image: Image.Image, kind: str) -> OpenedPicture:
    turn = exif_orientation(image.info.get("exif", b""), image.info.get("xmp", b""))
    return OpenedPicture(image, turn, _DECODER[kind] * image.width * image.height)


_OPENERS: dict[str, Callable[[bytes], OpenedPicture]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
    "WEBP": _webp,
    "AVIF": _avif,
    "HEIF": _heif,
}
