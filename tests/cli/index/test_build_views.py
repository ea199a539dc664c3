"""build-index --flip and --scales: another embedder, which queries of the index then use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from lmk.embed.extract.embedder import Embedder
from lmk.rerank.recognizer import Recognizer

Run = Callable[..., object]


@pytest.mark.parametrize(
    ("words", "flip", "scales"),
    [
        (("--flip",), True, (1.0,)),
        (("--scales", "1,0.75"), False, (1.0, 0.75)),
        (("--scales", "0.75", "--flip"), True, (0.75,)),
    ],
)
def test_the_index_keeps_the_views(
    lmk: Run, here: Path, tiny: Path, words: tuple[str, ...], flip: bool, scales: tuple[float, ...]
) -> None:
    done = lmk("build-index", "gallery", "-o", "v.lmk", "--model", tiny, *words, "--json")
    assert done.code == 0, done.err
    expected = Embedder.load(tiny).with_views(flip=flip, scales=scales)
    embedder = Recognizer.open(Path("v.lmk")).embedder
    assert embedder.fingerprint == expected.fingerprint != Embedder.load(tiny).fingerprint


def test_a_mirror_image_is_the_picture_itself(lmk: Run, here: Path, tiny: Path) -> None:
    """With --flip its cosine to the original is 1, without it is not."""
    picture = cv2.imread("gallery/tower/0.jpg")
    cv2.imwrite("mirrored.png", picture[:, ::-1])
    cosines = []
    for words in (("--flip",), ()):
        index = f"v{len(words)}.lmk"
        assert lmk("build-index", "gallery", "-o", index, "--model", tiny, *words).code == 0
        vectors = (
            Recognizer.open(Path(index))
            .embedder.embed([Path("gallery/tower/0.jpg"), Path("mirrored.png")])[0]
            .vectors
        )
        cosines.append(float(vectors[0] @ vectors[1]))
    assert cosines[0] > 0.9999 and cosines[1] < 0.999


def test_views_of_an_embedder_with_a_whitening_are_refused(
    lmk: Run, here: Path, tiny: Path
) -> None:
    import numpy as np

    from lmk.embed.network.whitening import Whitening

    dim = Embedder.load(tiny).feature_dim
    Path("white").mkdir()
    whitening = Whitening(np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32))
    Embedder.load(tiny).with_whitening(whitening).save(Path("white"))
    done = lmk("build-index", "gallery", "-o", "w.lmk", "--model", "white", "--flip")
    assert done.code != 0 and len(done.complaints) == 1
    assert "its whitening was fitted on single views" in done.err
    assert json.loads(Path("white/config.json").read_text())["config"]["flip"] is False
