"""Picture sources: everything that a caller may pass as a picture, as the bytes of a file.

A source is a path (str or os.PathLike), the bytes of a picture file, a PIL image, or an array
uint8 [height, width, 3] in RGB order (also [height, width] grey and [height, width, 4] RGBA).
Pixels are written into a lossless file in memory, so that all sources are decoded, measured and
hashed in the same way.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lmk.embed.data.images import NO_MEMORY, picture_bytes, read_bytes
from lmk.embed.errors import UsageError
from lmk.embed.memory_errors import memory_error

Source: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]
)

ACCEPTED = (
    "a path, the bytes of a picture file, a PIL image or a uint8 array [height, width, 3] in RGB"
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,2}[^/]")  # a Path drops one of the two slashes
_FILE_URL = re.compile(r"file:/*(/[^/].*)", re.IGNORECASE | re.DOTALL)
_PLAIN_MODES = ("L", "RGB")
_PNG_MODES = ("1", "I;16", "LA", "P", "RGBA")
_TRANSPARENT_MODES = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}  # and the equivalent mode of a file


@dataclass(frozen=True, eq=False)
class PictureSource:
    """One picture that a caller has passed.

    Attributes:
        id: the path as text, or "picture N" for anything else, with N counted from 0.
        content: the path, the bytes of a file, or the object with the pixels.
    """

    id: str
    content: Path | bytes | Image.Image | NDArray[np.uint8]

    def read(self) -> bytes | str:
        """Returns the bytes of a picture file, or the reason why there are none."""
        if isinstance(self.content, bytes):
            return self.content if self.content else "no bytes"
        if isinstance(self.content, Path):
            return url_reason(self.content) or read_bytes(self.content)
        try:
            return _file_of(self.content)
        except Exception as error:  # PIL decodes here; see images._decoded
            if memory_error(error) is not None:
                return NO_MEMORY
            return f"damaged: {' '.join(str(error).split()) or type(error).__name__}"

    @contextmanager
    def opened(self) -> Iterator[bytes | str]:
        """Yields the result of `read` within the memory budget; see images.picture_bytes."""
        if isinstance(self.content, Path) and url_reason(self.content) is None:
            with picture_bytes(self.content) as data:
                yield data
        else:
            yield self.read()


def picture_source(picture: object, number: int = 0) -> PictureSource:
    """Returns the source of one picture.

    Args:
        picture: a picture of one of the types in the module's docstring.
        number: its position among the given pictures, for the id of a picture without a path.

    Raises:
        TypeError: the picture has another type; the message lists the accepted ones.
    """
    name = f"picture {number}"
    if isinstance(picture, PictureSource):
        return picture
    if isinstance(picture, str | os.PathLike):
        path = os.fspath(picture)
        if isinstance(path, str):
            return PictureSource(path, Path(path))
    if isinstance(picture, bytes | bytearray | memoryview):
        return PictureSource(name, bytes(picture))
    if isinstance(picture, Image.Image):
        return PictureSource(name, picture)
    if isinstance(picture, np.ndarray):
        shape = picture.shape
        known = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
        if picture.dtype == np.uint8 and known and all(shape):
            return PictureSource(name, picture)
        raise TypeError(f"no picture: an array of {picture.dtype} {list(shape)}; give {ACCEPTED}")
    raise TypeError(f"no picture: {_described(picture)}; give {ACCEPTED}")


def picture_sources(pictures: object) -> list[PictureSource]:
    """Returns the sources of one or more pictures; a path that is given twice counts once.

    Args:
        pictures: one picture, or an iterable of pictures. An array [n, height, width, 3] holds n
            pictures.

    Raises:
        TypeError: a picture has another type; the message lists the accepted ones.
        UsageError: a folder is given as a picture.
    """
    single = isinstance(
        pictures, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | PictureSource
    )
    if single or (isinstance(pictures, np.ndarray) and pictures.ndim in (0, 2, 3)):
        source = picture_source(pictures)
        if isinstance(source.content, Path) and _is_folder(source.content):
            remedy = "give the paths of its pictures, as in sorted(Path(folder).glob('*.jpg'))"
            raise UsageError("is a folder, not a picture", where=source.content, remedy=remedy)
        return [source]
    # An iteration would give the keys of a dict or the lines of an open file.
    if not isinstance(pictures, Iterable) or isinstance(pictures, Mapping | io.IOBase):
        raise TypeError(f"no picture: {_described(pictures)}; give {ACCEPTED}, or several of them")
    sources: dict[str, PictureSource] = {}
    for number, picture in enumerate(pictures):
        source = picture_source(picture, number)
        sources.setdefault(source.id, source)
    return list(sources.values())


def url_reason(path: str | os.PathLike[str]) -> str | None:
    """Returns the reason why a URL is not a picture, or None if the path is not a URL."""
    text = os.fspath(path)
    if local := _FILE_URL.match(text):
        return f"is a URL, which lmk does not read: name the path itself, {unquote(local[1])}"
    if _URL.match(text):
        return "is a URL, which lmk does not read: download the picture and name the file"
    return None


def url_text(path: str | os.PathLike[str]) -> str:
    """Returns a URL as it was given, with the slash that a Path drops."""
    text = os.fspath(path)
    local = _FILE_URL.match(text)
    return f"file://{local[1]}" if local else re.sub(":/+", "://", text, count=1)


def _file_of(pixels: Image.Image | NDArray[np.uint8]) -> bytes:
    """Returns a lossless picture file with these pixels, rotated by their EXIF orientation."""
    if isinstance(pixels, Image.Image):
        turned = ImageOps.exif_transpose(pixels)
        if not all(turned.size):
            raise ValueError("no pixels")
        if turned.mode in _TRANSPARENT_MODES:
            turned = turned.convert(_TRANSPARENT_MODES[turned.mode])
        if turned.mode.startswith(("I", "F")) and turned.mode not in _PNG_MODES:
            return _written(turned, "TIFF")
        if turned.mode not in _PLAIN_MODES or "transparency" in turned.info:
            return _written(turned if turned.mode in _PNG_MODES else turned.convert("RGB"))
        pixels = np.asarray(turned)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _written(Image.fromarray(pixels))
    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(".bmp", bgr)
    if not written:
        raise ValueError("these pixels cannot be written")
    return data.tobytes()


def _written(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"compress_level": 1} if kind == "PNG" else {}))
    return file.getvalue()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # an invalid name; reading it gives the reason
        return False


def _described(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
