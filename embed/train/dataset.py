"""Training pictures: the list of files, and the reading and random change of one picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lmk.embed.data.images import Skipped, decode, read_bytes
from lmk.embed.data.manifest import Manifest
from lmk.embed.errors import ManifestError
from lmk.embed.train.config import Augment

_MARGIN = 1.25  # pictures are decoded larger by this factor, so that crops keep detail
_MOST_BAD = 100  # unreadable pictures in a row
_GREY = 127
_BLUR = (0.5, 1.5)  # pixels
_COARSE = (0.36, 0.71)  # parts of the side


@dataclass(frozen=True, eq=False)
class TrainingPictures:
    """The pictures of one or more manifests, in order.

    Attributes:
        files: bytes [n], paths in the file system's encoding (an array, which worker processes
            share without a copy).
        labels: the labels of each picture.
    """

    files: NDArray[np.bytes_]
    labels: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, manifests: Sequence[Manifest]) -> TrainingPictures:
        """Returns the pictures of all manifests, in order.

        Raises:
            ManifestError: the manifests have no picture.
        """
        rows = [(manifest.file(row), row.labels) for manifest in manifests for row in manifest.rows]
        if not rows:
            raise ManifestError(
                "there are no pictures to learn from", where="--data", remedy="name some"
            )
        files, labels = zip(*rows, strict=True)
        return cls(np.array([os.fsencode(file) for file in files]), labels)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, picture: int) -> Path:
        """Returns the path of a picture."""
        return Path(os.fsdecode(self.files[picture]))

    @property
    def digest(self) -> str:
        """The SHA-256 of all paths and labels, in order."""
        digest = hashlib.sha256()
        for file, labels in zip(self.files.tolist(), self.labels, strict=True):
            digest.update(file + b"\0" + " ".join(labels).encode() + b"\n")
        return digest.hexdigest()


class Reader(Dataset[Any]):
    """Dataset that reads a picture by (its number, the seed of its changes)."""

    def __init__(self, files: NDArray[np.bytes_], size: int, augment: Augment) -> None:
        self._files = files
        self._size = size
        self._change = augmentation(augment, size)
        cropped = augment.crop < 1
        self._decoded = round(size * _MARGIN) if cropped else size

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, list[Skipped]]:
        wanted, seed = key
        skipped = []
        for step in range(min(_MOST_BAD, len(self._files))):
            number = (wanted + step) % len(self._files)
            path = Path(os.fsdecode(self._files[number]))
            data = read_bytes(path)
            picture = data if isinstance(data, str) else decode(data, self._decoded)
            if isinstance(picture, str):
                skipped.append(Skipped(str(path), picture))
                continue
            channels_first = torch.from_numpy(picture).permute(2, 0, 1)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                changed = self._change(channels_first)
            return changed.permute(1, 2, 0).contiguous(), number, skipped
        return torch.empty(0), -1, skipped


class _Corners(torch.nn.Module):
    """Shifts each corner by a normal deviate, relative to the side; fills by mirroring."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self._spread = spread

    def forward(self, picture: Tensor) -> Tensor:
        side = picture.shape[2]
        corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
        moved = corners + side * self._spread * torch.randn(4, 2).numpy()
        matrix = cv2.getPerspectiveTransform(moved.astype(np.float32), corners)
        pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
        seen = cv2.warpPerspective(pixels, matrix, (side, side), borderMode=cv2.BORDER_REFLECT)
        return torch.from_numpy(np.ascontiguousarray(seen)).permute(2, 0, 1)


class _Coarse(torch.nn.Module):
    """Reduces and enlarges a picture, as was done to many pictures on the web."""

    def forward(self, picture: Tensor) -> Tensor:
        side = picture.shape[2]
        less = max(round(side * float(torch.empty(1).uniform_(*_COARSE))), 1)
        pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
        small = cv2.resize(pixels, (less, less), interpolation=cv2.INTER_AREA)
        again = cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)
        return torch.from_numpy(again).permute(2, 0, 1)


def augmentation(augment: Augment, size: int) -> v2.Transform:
    """Returns the changes as one transform: uint8 [3, side, side] -> uint8 [3, size, size]."""
    steps: list[torch.nn.Module] = []
    if augment.rotate:
        turn = v2.RandomRotation(augment.rotate, v2.InterpolationMode.BILINEAR, fill=_GREY)
        steps.append(_often(turn, augment.rotate_often))
    if augment.perspective:
        steps.append(v2.RandomPerspective(0.3, augment.perspective, fill=_GREY))
    if augment.corners:
        steps.append(_Corners(augment.corners))
    if augment.crop < 1:
        ratio = (1 / augment.ratio, augment.ratio)
        steps.append(v2.RandomResizedCrop((size, size), (augment.crop, 1.0), ratio, antialias=True))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    light = augment.light
    hue = light / 4 if augment.hue is None else augment.hue
    if light or hue:
        steps.append(_often(v2.ColorJitter(light, light, light, hue), augment.light_often))
    if augment.grey:
        steps.append(v2.RandomGrayscale(augment.grey))
    if augment.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(9, _BLUR)], augment.blur))
    if augment.coarse:
        steps.append(v2.RandomApply([_Coarse()], augment.coarse))
    if augment.erase:
        # A square of 40 % of the side, as in the winning solutions of 2020 and 2021.
        steps.append(v2.RandomErasing(augment.erase, (0.16, 0.16), (1.0, 1.0), value=_GREY))
    return v2.Compose(steps) if steps else v2.Identity()


def _often(change: torch.nn.Module, often: float) -> torch.nn.Module:
    return change if often == 1 else v2.RandomApply([change], often)
