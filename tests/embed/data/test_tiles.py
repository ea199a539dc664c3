"""Tiles of a photo."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lmk.embed.data.images import decode
from lmk.embed.data.tiles import tiled


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.mark.parametrize("size", [8, 9])
def test_the_whole_then_overlapping_tiles_by_rows(size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    got = tiled(png(pixels), size)
    assert isinstance(got, list)
    assert [tile.shape for tile in got] == [(size, size, 3)] * 10
    whole, large = decode(png(pixels), size), decode(png(pixels), 2 * size)
    np.testing.assert_array_equal(got[0], whole)
    assert isinstance(large, np.ndarray)
    np.testing.assert_array_equal(got[1], large[:size, :size])
    np.testing.assert_array_equal(got[3], large[:size, size:])
    np.testing.assert_array_equal(got[-1], large[size:, size:])
    middle = size // 2
    np.testing.assert_array_equal(got[5], large[middle : middle + size, middle : middle + size])


def test_one_tile_is_the_whole() -> None:
    data = png(np.zeros((20, 20, 3), np.uint8))
    assert len(tiled(data, 8, 1)) == 1
    assert len(tiled(data, 8, 3)) == 26
    with pytest.raises(ValueError, match="1 tile or more"):
        tiled(data, 8, 0)


def test_what_is_no_picture_has_a_reason() -> None:
    assert tiled(b"no picture", 8) == "not a picture that can be decoded"
