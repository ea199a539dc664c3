from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from lmk.embed.data.images import one_thread_opencv
from lmk.eval.check.same_photo import READ_SIDE, SAME_PHOTO, alikeness, read_grey

Change = Callable[[Image.Image], Image.Image]


def stretched(image: Image.Image) -> Image.Image:
    return image.resize((image.width, image.height * 4 // 3))


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def brighter(image: Image.Image) -> Image.Image:
    return image.point(lambda value: value * 1.2 + 10)


def cropped(image: Image.Image) -> Image.Image:
    w, h = image.size
    return image.crop((w // 10, h // 20, w // 10 + w * 3 // 4, h // 20 + h * 3 // 4))


def mirrored_crop(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(cropped(image))


TOLERATED: list[Change] = [
    stretched,
    half,
    brighter,
    ImageOps.grayscale,
    ImageOps.mirror,
    cropped,
    mirrored_crop,
]


def written(path: Path, image: Image.Image, quality: int = 90) -> np.ndarray:
    image.convert("RGB").save(path, quality=quality)
    grey = read_grey(path)
    assert grey is not None
    return grey


@pytest.fixture
def photo(render) -> Callable[..., Image.Image]:
    def make(seed: int, view: int = 0) -> Image.Image:
        return Image.fromarray(render(seed, view, 400, 300))

    return make


@pytest.mark.parametrize("change", TOLERATED, ids=lambda change: change.__name__)
def test_changed_copies_are_one_photo_in_both_orders(tmp_path, photo, change):
    for seed in (1, 2, 3):
        original = written(tmp_path / "a.jpg", photo(seed))
        copy = written(tmp_path / "b.jpg", change(photo(seed)))
        assert alikeness(original, copy) >= SAME_PHOTO
        assert alikeness(copy, original) >= SAME_PHOTO


def test_strong_compression_is_tolerated(tmp_path, photo):
    original = written(tmp_path / "a.jpg", photo(4))
    assert alikeness(original, written(tmp_path / "b.jpg", photo(4), quality=15)) >= SAME_PHOTO


def test_other_pictures_are_not_one_photo(tmp_path, photo):
    greys = [written(tmp_path / f"{seed}.jpg", photo(seed)) for seed in range(8)]
    values = [alikeness(a, b) for i, a in enumerate(greys) for b in greys[:i]]
    assert max(values) < 0.7


def test_a_quarter_turn_is_not_tolerated(tmp_path, photo):
    original = written(tmp_path / "a.jpg", photo(1))
    assert alikeness(original, written(tmp_path / "b.jpg", photo(1).rotate(90, expand=True))) < 0.7


def test_a_picture_agrees_with_itself(tmp_path, photo):
    grey = written(tmp_path / "a.jpg", photo(1))
    assert alikeness(grey, grey) == pytest.approx(1)


def test_flat_pictures_agree_with_nothing():
    grey = np.full((96, 128), 90, np.uint8)
    assert alikeness(grey, grey) == 0
    assert alikeness(grey, np.random.default_rng(0).integers(0, 255, (96, 96), np.uint8)) < 0.5


def test_extreme_shapes_can_be_compared(render):
    wide = cv2.cvtColor(render(1, width=192, height=3), cv2.COLOR_RGB2GRAY)
    tall = np.ascontiguousarray(wide.T)
    assert -1 <= alikeness(wide, tall) < SAME_PHOTO
    assert alikeness(np.zeros((1, 1), np.uint8), wide) == 0


def test_pictures_are_read_small_and_turned(tmp_path, render):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(render(1, width=400, height=300)).save(tmp_path / "a.jpg", exif=exif)
    grey = read_grey(tmp_path / "a.jpg")
    assert grey is not None
    assert grey.shape == (READ_SIDE, READ_SIDE * 3 // 4)


def test_a_file_that_is_no_picture_gives_none(tmp_path):
    (tmp_path / "a.jpg").write_text("no")
    assert read_grey(tmp_path / "a.jpg") is None


def test_the_number_of_opencv_threads_is_put_back():
    before = cv2.getNumThreads()
    with pytest.raises(ZeroDivisionError), one_thread_opencv():
        assert cv2.getNumThreads() == 1
        raise ZeroDivisionError
    assert cv2.getNumThreads() == before
