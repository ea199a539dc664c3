"""Reading: the same pixels from the same seed, whoever reads; every change can be switched off."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch

from lmk.embed.data.images import decode
from lmk.embed.data.manifest import Manifest
from lmk.embed.train.config import Augment
from lmk.embed.train.dataset import TrainingPictures, augmentation
from lmk.embed.train.reading import Batch, read_micro_batches

NOTHING = Augment(crop=1, flip=0, rotate=0, light=0)
ALL = Augment(
    crop=0.4,
    rotate=20,
    light=0.3,
    perspective=0.5,
    grey=0.3,
    erase=0.5,
    corners=0.05,
    blur=0.5,
    coarse=0.5,
)


def read(manifest: Manifest, augment: Augment, workers: int = 0, size: int = 40) -> list[Batch]:
    numbers = np.arange(12).reshape(3, 4)
    return list(
        read_micro_batches(
            TrainingPictures.of([manifest]),
            numbers,
            size=size,
            augment=augment,
            seeds=numbers + 100,
            workers=workers,
        )
    )


def test_without_changes_it_is_what_the_embedder_sees(gallery: Manifest) -> None:
    batches = read(gallery, NOTHING)
    for i, row in enumerate(gallery.rows[:12]):
        expected = decode(gallery.file(row).read_bytes(), 40)
        assert np.array_equal(batches[i // 4].pictures[i % 4].numpy(), expected)
    assert [batch.numbers.tolist() for batch in batches] == [[*range(i, i + 4)] for i in (0, 4, 8)]


def test_changes_follow_from_the_seed_whoever_reads(gallery: Manifest) -> None:
    torch.manual_seed(1)
    first = read(gallery, ALL)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # the loop's own chance is left alone
    again = read(gallery, ALL, workers=2)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.pictures, other.pictures)
        assert one.pictures.shape == (4, 40, 40, 3) and one.pictures.dtype == torch.uint8
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # torch's would stay
    plain = read(gallery, NOTHING)
    assert not any(torch.equal(a.pictures, b.pictures) for a, b in zip(first, plain, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"crop": 0.3},
        {"flip": 1.0},
        {"rotate": 45.0},
        {"light": 0.5},
        {"hue": 0.4},
        {"perspective": 1.0},
        {"grey": 1.0},
        {"erase": 1.0},
        {"corners": 0.1},
        {"blur": 1.0},
        {"coarse": 1.0},
    ],
)
def test_each_change_changes_something(change: dict[str, float]) -> None:
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    step = augmentation(NOTHING.model_copy(update=change), 64)
    torch.manual_seed(0)
    changed = step(picture)
    assert changed.shape == picture.shape and changed.dtype == torch.uint8
    assert not torch.equal(changed, picture)
    if change == {"flip": 1.0}:
        assert torch.equal(changed, picture.flip(2))
    if change == {"grey": 1.0}:
        assert torch.equal(changed[0], changed[1])
    if change == {"erase": 1.0}:
        share = (changed != picture).float().mean().item()
        assert 0.14 < share < 0.17  # a square of 40 % of the side


@pytest.mark.parametrize("change", [{"rotate": 45.0}, {"light": 0.5}])
def test_some_pictures_are_left_as_they_are(change: dict[str, float]) -> None:
    picture = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    (name,) = change
    step = augmentation(NOTHING.model_copy(update=change | {f"{name}_often": 0.25}), 16)
    torch.manual_seed(0)
    changed = [not torch.equal(step(picture), picture) for _ in range(400)]
    assert np.mean(changed) == pytest.approx(0.25, abs=0.06)


def test_hue_is_a_quarter_of_light_unless_given() -> None:
    """Brightness, contrast and saturation change green and blue of a red picture alike."""
    picture = torch.zeros((3, 8, 8), dtype=torch.uint8)
    picture[0] = 200
    for change, turned in ({"light": 0.4}, True), ({"light": 0.4, "hue": 0}, False):
        step = augmentation(NOTHING.model_copy(update=change), 8)
        torch.manual_seed(0)
        results = [step(picture) for _ in range(20)]
        green_or_blue = [(int(r[1].max()) != int(r[2].max())) for r in results]
        assert any(green_or_blue) == turned


def test_corners_are_a_projection_that_mirrors_the_outside() -> None:
    """A straight edge stays one, and nothing that is not in the picture comes in."""
    picture = torch.full((3, 64, 64), 60, dtype=torch.uint8)
    picture[:, :, 32:] = 200
    torch.manual_seed(3)
    changed = augmentation(NOTHING.model_copy(update={"corners": 0.2}), 64)(picture)
    assert changed.min() >= 60 and changed.max() <= 200
    rows = np.arange(16, 48)
    edges = np.array([np.interp(130, changed[0, y].float(), np.arange(64)) for y in rows])
    line = np.polyval(np.polyfit(rows, edges, 1), rows)
    assert np.ptp(edges) > 0.5 and np.abs(edges - line).max() < 0.6


@pytest.mark.parametrize("change", [{"blur": 1.0}, {"coarse": 1.0}])
def test_fine_detail_goes_and_the_light_stays(change: dict[str, float]) -> None:
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    torch.manual_seed(1)
    changed = augmentation(NOTHING.model_copy(update=change), 64)(picture).float()
    assert changed.std() < 0.8 * picture.float().std()
    assert abs(changed.mean() - picture.float().mean()) < 2


def test_the_training_set(gallery: Manifest, bank: Manifest) -> None:
    both = TrainingPictures.of([gallery, bank])
    assert len(both) == 28 and both.labels[0] == gallery.rows[0].labels and both.labels[-1] == ()
    assert both.path(20) == bank.file(bank.rows[0])
    digests = {TrainingPictures.of(m).digest for m in ([gallery], [gallery, bank], [bank, gallery])}
    assert len(digests) == 3
    renamed = Manifest(gallery.root, tuple(
        type(row)(row.id, row.path, ("x", *row.labels)) for row in gallery.rows
    ))  # fmt: skip
    assert TrainingPictures.of([renamed]).digest != TrainingPictures.of([gallery]).digest
