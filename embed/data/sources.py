"""Picture sources: whatever a caller may hand over as a picture, made into the bytes of a file.

A source is a path (str or os.PathLike), the bytes of a picture file, a PIL image, or an array
uint8 [height, width, 3] in RGB order (also [height, width] grey and [height, width, 4] RGBA).
Pixels are written into a lossless file in memory, so that all sources are decoded, measured and
hashed in one way.
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
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,2}[^/]")  # a Path has lost one of the two slashes
_FILE_URL = re.compile(r"file:/*(/[^/].*)", re.IGNORECASE | re.DOTALL)
_PLAIN_MODES = ("L", "RGB")
_PNG_MODES = ("1", "I;16", "LA", "P", "RGBA")
_TRANSPARENT_MODES = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}  # and those that files have


@dataclass(frozen=True, eq=False)
class PictureSource:
    """One picture that was handed over.

    Attributes:
        id: the path as text; "picture N" for anything else, N counted from 0.
        content: the path, the bytes of a file, or what holds the pixels.
    """

    id: str
    content: Path | bytes | Image.Image | NDArray[np.uint8]

    def read(self) -> bytes | str:
        """The bytes of a picture file, or the reason why there are none."""
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
        """The result of `read`, for threads: see images.picture_bytes."""
        if isinstance(self.content, Path) and url_reason(self.content) is None:
            with picture_bytes(self.content) as data:
                yield data
        else:
            yield self.read()


def picture_source(picture: object, number: int = 0) -> PictureSource:
    """The source of one picture.

    Args:
        picture: see the module.
        number: its place among the pictures given, for the id of what has no path.

    Raises:
        TypeError: for anything else; it says what is accepted.
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
    """The sources of one picture or several; a path that is given twice counts once.

    Args:
        pictures: one picture (see the module), or an iterable of pictures; an array
            [n, height, width, 3] holds several.

    Raises:
        TypeError: for anything else; it says what is accepted.
        UsageError: for a folder that is given in the place of one picture.
    """
    single = isinstance(
        pictures,
        str | os.PathLike | bytes | bytearray | memoryview | Image.Image | PictureSource,
    )
    if single or (isinstance(pictures, np.ndarray) and pictures.ndim in (0, 2, 3)):
        source = picture_source(pictures)
        if isinstance(source.content, Path) and _is_folder(source.content):
            raise UsageError(
                "is a folder, not a picture",
                where=source.content,
                remedy="give the paths of its pictures, as in sorted(Path(folder).glob('*.jpg'))",
            )
        return [source]
    # A dict would be taken by its keys, an open file by its lines.
    if not isinstance(pictures, Iterable) or isinstance(pictures, Mapping | io.IOBase):
        raise TypeError(f"no picture: {_described(pictures)}; give {ACCEPTED}, or several of them")
    found: dict[str, PictureSource] = {}
    for number, picture in enumerate(pictures):
        source = picture_source(picture, number)
        found.setdefault(source.id, source)
    return list(found.values())


def url_reason(path: str | os.PathLike[str]) -> str | None:
    """The reason why a URL is no picture, where the path is one."""
    text = os.fspath(path)
    if local := _FILE_URL.match(text):
        return f"is a URL, which lmk does not read: name the path itself, {unquote(local[1])}"
    if _URL.match(text):
        return "is a URL, which lmk does not read: download the picture and name the file"
    return None


def url_text(path: str | os.PathLike[str]) -> str:
    """A URL as it was given, where a Path has lost one of its slashes."""
    text = os.fspath(path)
    local = _FILE_URL.match(text)
    return f"file://{local[1]}" if local else re.sub(":/+", "://", text, count=1)


def _file_of(pixels: Image.Image | NDArray[np.uint8]) -> bytes:
    """A lossless picture file with these pixels, turned as their EXIF data says."""
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
    except (OSError, ValueError):  # too long a name, a NUL in it: reading it gives the reason
        return False


def _described(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
