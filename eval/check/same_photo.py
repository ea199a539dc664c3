"""Detection of copies of one photo: recompressed, resized, mirrored or cropped.

Embeddings of two photos of one landmark are similar too, so embeddings cannot detect copies. This
module aligns the pictures and compares them point by point: people, clouds and shadows differ
between two photos of one place and agree between two copies of one photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import thumbnail

# Chosen by hand on real photos (docs/data-check.md): the six pairs of 1,099 photos above it are
# copies or frames of one series; from 0.82 down there are pairs of different photos too.
SAME_PHOTO = 0.85

READ_SIDE = 192  # longer side of the pictures compared, in pixels
_FRAME_SIDE = 96  # side of the square in which two whole frames are compared
_COARSE_SIDE, _FINE_SIDE = 64, 160  # longer sides for the search of one picture in another
_MIDDLE = 0.7  # part of each side that is searched for, without borders and captions
_ZOOMS = tuple(0.6 * 1.03**i for i in range(29))  # ratios of the two scales: 0.6..1.37
_FINE_STEPS = tuple(1 + 0.005 * i for i in range(-6, 7))
_COARSE_ENOUGH = 0.5  # a coarse correlation below it skips the fine search
_COARSE_BLUR, _FINE_BLUR = 1 / 42, 1 / 64  # sigma of the blur over the longer side
_NOISE = 6.0  # grey levels: flatter neighbourhoods count less, since compression adds noise there

Grey = NDArray[np.uint8]
_Floats = NDArray[np.float32]


def read_grey(path: Path) -> Grey | None:
    """Returns a picture as uint8 [h, w], longer side at most READ_SIDE; None if unreadable."""
    data = thumbnail(path, READ_SIDE, quality=95)
    if data is None:
        return None
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8)


def alikeness(a: Grey, b: Grey) -> float:
    """Returns the correlation of two pictures at their best overlap; 1 for the same picture.

    Different pictures have a correlation of about 0. The compared values are locally normalised
    detail (difference to a Gaussian blur, divided by its local deviation). The comparison covers
    the original and mirrored pictures, the whole frames resized to one square, and the middle of
    one picture aligned in the other (normalised cross-correlation, scales 0.6 to 1.4).

    Copies are detected after recompression, resizing, stretching, mirroring, conversion to grey,
    brightening, most crops to at least 0.6 of each side at one scale, and many borders and
    captions. Rotations and large watermarks are not detected.

    Args:
        a, b: uint8 [h, w] grey pictures.
    """
    mirrored = np.ascontiguousarray(a[:, ::-1])
    frames = max(_frames_alike(a, b), _frames_alike(mirrored, b))
    if frames >= SAME_PHOTO:
        return frames
    orders = [(a, b), (b, a), (mirrored, b), (b, mirrored)]
    coarse = [_find(one, other, _COARSE_SIDE, _COARSE_BLUR, _ZOOMS) for one, other in orders]
    best = int(np.argmax([place.correlation for place in coarse]))
    if coarse[best].correlation < _COARSE_ENOUGH:
        return frames
    one, other = orders[best]
    zooms = [coarse[best].zoom * step for step in _FINE_STEPS]
    place = _find(one, other, _FINE_SIDE, _FINE_BLUR, zooms)
    return max(frames, _overlap_alike(one, other, place))


class _Place(NamedTuple):
    """The place of one picture in another: correlation, zoom, and upper left corner."""

    correlation: float
    zoom: float
    x: int
    y: int


def _frames_alike(a: Grey, b: Grey) -> float:
    square = (_FRAME_SIDE, _FRAME_SIDE)
    sigma = _FRAME_SIDE * _FINE_BLUR
    one, other = (
        _normalised(np.asarray(cv2.resize(grey, square, interpolation=cv2.INTER_AREA)), sigma)
        for grey in (a, b)
    )
    return _correlation(one, other)


def _find(one: Grey, other: Grey, side: int, blur: float, zooms: Sequence[float]) -> _Place:
    """Returns the best place of the middle of `one` in `other`; `one` is scaled by each zoom."""
    sigma = side * blur
    field = _detail(_scaled(other, side), sigma)
    best = _Place(-1.0, 1.0, 0, 0)
    for zoom in zooms:
        whole = _detail(_scaled(one, side * zoom), sigma)
        height, width = whole.shape
        top, left = round(height * (1 - _MIDDLE) / 2), round(width * (1 - _MIDDLE) / 2)
        middle = whole[top : height - top, left : width - left]
        if middle.shape[0] > field.shape[0] or middle.shape[1] > field.shape[1]:
            continue
        scores = cv2.matchTemplate(field, middle, cv2.TM_CCOEFF_NORMED)
        _, correlation, _, (x, y) = cv2.minMaxLoc(scores)
        if correlation > best.correlation:
            best = _Place(float(correlation), zoom, x - left, y - top)
    return best


def _overlap_alike(one: Grey, other: Grey, place: _Place) -> float:
    """Returns the correlation of the area that both aligned pictures show."""
    sigma = _FINE_SIDE * _FINE_BLUR
    under, over = _scaled(other, _FINE_SIDE), _scaled(one, _FINE_SIDE * place.zoom)
    top, left = max(0, place.y), max(0, place.x)
    bottom = min(under.shape[0], place.y + over.shape[0])
    right = min(under.shape[1], place.x + over.shape[1])
    seen = under[top:bottom, left:right]
    laid = over[top - place.y : bottom - place.y, left - place.x : right - place.x]
    return _correlation(_normalised(seen, sigma), _normalised(laid, sigma))


def _scaled(grey: Grey, side: float) -> Grey:
    """Returns the picture resized so that its longer side is `side` pixels."""
    height, width = grey.shape
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey, size, interpolation=how), np.uint8)


def _detail(grey: NDArray[Any], sigma: float) -> _Floats:
    values = grey.astype(np.float32)
    return values - np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float32)


def _normalised(grey: NDArray[Any], sigma: float) -> _Floats:
    detail = _detail(grey, sigma)
    energy = np.asarray(cv2.GaussianBlur(detail * detail, (0, 0), 2 * sigma), np.float32)
    return np.asarray(detail / (np.sqrt(energy) + _NOISE), np.float32)


def _correlation(a: _Floats, b: _Floats) -> float:
    """Returns Pearson's correlation of two arrays of one shape; 0 if one is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum(dtype=np.float64) * (b * b).sum(dtype=np.float64)))
    return float((a * b).sum(dtype=np.float64)) / norm if norm > 1e-6 else 0.0
