"""Picture sources: whatever holds the same pixels gives the same vector, anything else is named."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmk.embed.data.images import decode
from lmk.embed.data.sources import PictureSource, picture_source, picture_sources, url_reason
from lmk.embed.errors import UsageError
from lmk.embed.extract.embedder import Embedder


@pytest.fixture
def photo(tmp_path: Path, render: Callable[..., np.ndarray]) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(render(3)).save(path)
    return path


class Pathish:
    """An os.PathLike that is no Path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


def test_all_sources_of_one_picture_give_one_vector(photo: Path, tiny: Embedder) -> None:
    image, data = Image.open(photo), photo.read_bytes()
    pixels = np.asarray(image)
    sources = [str(photo), Pathish(photo), data, bytearray(data), memoryview(data), image, pixels]
    expected, _ = tiny.embed([photo])
    assert expected.ids == (str(photo),)
    for number, source in enumerate(sources):
        alone, skipped = tiny.embed(source)
        np.testing.assert_array_equal(alone.vectors, expected.vectors)
        assert not skipped
        assert alone.ids == ((str(photo),) if number < 2 else ("picture 0",))
    together, skipped = tiny.embed(iter([*sources, pixels[None][0], photo]))
    assert together.ids == (str(photo), *(f"picture {n}" for n in range(2, 8))) and not skipped
    batch, _ = tiny.embed(np.stack([pixels, pixels[:, ::-1]]))
    assert batch.ids == ("picture 0", "picture 1")
    np.testing.assert_array_equal(batch.vectors[0], expected.vectors[0])
    assert not np.allclose(batch.vectors[1], expected.vectors[0], atol=1e-3)
    assert len(tiny.embed([])[0]) == 0
    assert tiny.embed(np.array([str(photo)]))[0].ids == (str(photo),)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I", "F"]
)
def test_images_of_any_mode_are_what_their_file_is(
    render: Callable[..., np.ndarray], mode: str
) -> None:
    image = Image.fromarray(render(5))
    image = image.convert("I").convert(mode) if mode.startswith("I;") else image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(render(6)).convert("L"))
    data = picture_source(image).read()
    assert isinstance(data, bytes)
    got = decode(data, 64)
    file = io.BytesIO()
    if mode in ("I;16B", "I", "F"):
        image.save(file, "TIFF")
    else:
        expected = image if mode in ("1", "L", "LA", "P", "RGBA", "I;16") else image.convert("RGB")
        expected.save(file, "PNG")
    np.testing.assert_array_equal(got, decode(file.getvalue(), 64))


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_images_are_on_white(render: Callable[..., np.ndarray], mode: str) -> None:
    clear = Image.fromarray(render(5)).convert("RGBA" if mode == "RGBa" else "LA")
    clear.putalpha(0)
    got = decode(picture_source(clear.convert(mode)).read(), 48)  # type: ignore[arg-type]
    assert (np.asarray(got) == 255).all()


def test_a_float_image_of_0_to_1_is_not_black() -> None:
    grey = Image.fromarray(np.full((20, 30), 0.5, np.float32))
    assert decode(picture_source(grey).read(), 8)[0, 0].tolist() == [127] * 3  # type: ignore


def test_names_that_no_file_can_have_are_skipped(photo: Path, tiny: Embedder) -> None:
    for name, reason in (("a\0b.jpg", "no such file"), ("a" * 5000, "file name too long")):
        assert reason in tiny.embed(name)[1][0].reason
        embeddings, skipped = tiny.embed([name, photo])
        assert embeddings.ids == (str(photo),) and reason in skipped[0].reason
    assert "no pixels" in tiny.embed(Image.new("RGB", (0, 5)))[1][0].reason


def test_grey_and_transparent_arrays(render: Callable[..., np.ndarray]) -> None:
    pixels = render(5)
    grey = decode(picture_source(pixels[..., 0]).read(), 48)  # type: ignore[arg-type]
    np.testing.assert_array_equal(*(grey[..., channel] for channel in (0, 2)))  # type: ignore[call-overload]
    clear = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    white = decode(picture_source(clear).read(), 48)  # type: ignore[arg-type]
    assert (np.asarray(white) == 255).all()
    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 0] = 200
    assert decode(picture_source(red).read(), 8)[0, 0].tolist() == [200, 0, 0]  # type: ignore


def test_an_image_is_turned_as_its_file_would_be(render: Callable[..., np.ndarray]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(render(5)).save(file, "PNG", exif=exif)
    turned = picture_source(Image.open(file)).read()
    got, expected = decode(turned, 48), decode(file.getvalue(), 48)  # type: ignore[arg-type]
    # One turns before the picture is made smaller, one after: they round differently.
    np.testing.assert_allclose(np.asarray(got, float), np.asarray(expected, float), atol=1)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (None, "NoneType None"),
        (3, "int 3"),
        (b"x".hex, "builtin_function_or_method"),
        ({"a.jpg": 1}, "dict"),
        (io.BytesIO(b"x"), "BytesIO"),
        (np.zeros((4, 4, 3)), r"an array of float64 \[4, 4, 3\]"),
        (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (np.uint8(3), "uint8"),
        ([3], "int 3"),
        ([["a.jpg"]], r"list \['a.jpg'\]"),
        (os.fsencode("x")[0:0].__class__, "type"),
    ],
)
def test_a_wrong_type_is_told_what_is_accepted(wrong: object, told: str) -> None:
    with pytest.raises(TypeError, match=told) as caught:
        picture_sources(wrong)
    assert "give a path, the bytes of a picture file, a PIL image or a uint8 array" in str(
        caught.value
    )


def test_folders_urls_and_what_gives_no_picture(photo: Path, tiny: Embedder) -> None:
    for folder in (photo.parent, str(photo.parent)):
        with pytest.raises(UsageError, match=r"is a folder, not a picture.*glob"):
            tiny.embed(folder)
    cut = Image.open(io.BytesIO(photo.read_bytes()[:400]))
    given = [
        photo.parent,
        "https://a.example/b.jpg",
        Path("http://a/b.jpg"),
        b"",
        b"no",
        cut,
        photo,
    ]
    embeddings, skipped = tiny.embed(given)
    assert embeddings.ids == (str(photo),)
    assert [skip.path for skip in skipped[:2]] == [str(photo.parent), "https://a.example/b.jpg"]
    reasons = [skip.reason for skip in skipped]
    assert reasons[0] == "is a folder, not a picture"
    assert all("is a URL" in reason and "download" in reason for reason in reasons[1:3])
    assert reasons[3:5] == ["no bytes", "not a picture that can be decoded"]
    assert reasons[5].startswith("damaged: ")
    assert url_reason("C:/photos/a.jpg") is None and url_reason("a:b/c.jpg") is None


def test_a_source_may_be_handed_on(photo: Path) -> None:
    source = picture_source(photo)
    assert picture_sources(source) == [source] and isinstance(source, PictureSource)
