"""Detectors of objects with boxes; their classes assign tags of small objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lmk.embed.data.images import Picture
from lmk.embed.errors import DownloadError, ModelError, UsageError
from lmk.embed.memory_errors import raise_system_cause
from lmk.embed.tables.csv_file import CsvFile
from lmk.embed.tables.label_text import plain_name
from lmk.embed.tables.text_lines import at

if TYPE_CHECKING:
    import torch

HUB = "hub"
_SIDE = 320  # of the pictures that SSDLite takes


@dataclass(frozen=True)
class Box:
    """One detected object.

    Attributes:
        label: its class, by the detector's name.
        score: 0 to 1.
        corners: left, top, right, bottom, relative to the picture's sides.
    """

    label: str
    score: float
    corners: tuple[float, float, float, float]


class Detector(Protocol):
    """Detects objects in pictures."""

    @property
    def size(self) -> int:
        """Side of the square that pictures are resized to, in pixels."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the detector, without repetition."""
        ...

    def boxes(self, picture: Picture) -> list[Box]:
        """Returns the boxes in a picture uint8 [size, size, 3], by descending score."""
        ...


class SsdLite:
    """torchvision's SSDLite320 on MobileNetV3, of the 80 classes of COCO, on the CPU.

    Args:
        weights: the weights file (torchvision's .pth or a .safetensors file), or "hub" to download
            it once (14 MB).

    Raises:
        ModelError: the file does not exist, or has the weights of another network.
        DownloadError: the weights cannot be downloaded.
    """

    def __init__(self, weights: str) -> None:
        from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights as Published
        from torchvision.models.detection import ssdlite320_mobilenet_v3_large

        from lmk.embed.weights import load_weights

        published = Published.COCO_V1
        self._classes = tuple(published.meta["categories"])
        state = _fetched(published) if weights == HUB else _read(Path(weights))
        self._network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        what = "are no weights of ssdlite320_mobilenet_v3_large"
        remedy = f"take those of {published.url}"
        load_weights(self._network, state, weights, what=what, remedy=remedy)
        self._network.eval()

    @property
    def size(self) -> int:
        """Side of the square that pictures are resized to, in pixels."""
        return _SIDE

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of COCO, without the gaps of its list."""
        return tuple(name for name in self._classes if name not in ("__background__", "N/A"))

    def boxes(self, picture: Picture) -> list[Box]:
        """Returns the boxes in a picture uint8 [size, size, 3], by descending score."""
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255
            result = self._network([pixels])[0]
        height, width = picture.shape[:2]
        sides = np.array([width, height, width, height], np.float64)
        return [
            Box(self._classes[label], score, tuple((corners / sides).tolist()))
            for label, score, corners in zip(
                result["labels"].tolist(),
                result["scores"].tolist(),
                result["boxes"].numpy().astype(np.float64),
                strict=True,
            )
        ]


def _fetched(published: Any) -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = published.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError, a wrong hash the other
        raise_system_cause(error)
        what = f"cannot be fetched: {error}"
        remedy = "fetch it elsewhere and name the file"
        raise DownloadError(what, where=published.url, remedy=remedy) from error
    return state


def _read(path: Path) -> dict[str, torch.Tensor]:
    from lmk.embed.weights import read_state

    if not path.is_file():
        remedy = "name a file of weights, or fetch them with: --detector hub"
        raise ModelError("no such file", where=path, remedy=remedy)
    return read_state(path)


def tag_of_class(
    labels: Sequence[str], tags: Sequence[str], chosen: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Returns the tag that each class of boxes assigns.

    Args:
        labels: the classes of a detector.
        tags: the tags of a tagger.
        chosen: tags by class, if names differ or the tagger lacks the tags. Other classes assign
            the tag with their own name ("_" for blanks), if it exists.

    Raises:
        UsageError: `chosen` has a class that the detector lacks.
    """
    if chosen is None:
        own = {label: "_".join(label.split()) for label in labels}
        return {label: tag for label, tag in own.items() if tag in set(tags)}
    for label in chosen:
        if label not in labels:
            known = ", ".join(labels)
            raise UsageError(f"the detector knows no {label!r}", remedy=f"it knows {known}")
    return dict(chosen)


def read_classes(path: Path) -> dict[str, str]:
    """Returns tags by the class of a detector, from a CSV with the columns class and tag.

    Raises:
        UsageError: the file or a column does not exist, or a class is repeated.
    """
    tags: dict[str, str] = {}
    with CsvFile(path, ("class", "tag"), error=UsageError, pad=True) as rows:
        rows.require("class", "tag")
        class_, tag = (rows.columns.index(name) for name in ("class", "tag"))
        for row in rows:
            label, named = row.cells[class_].strip(), plain_name(row.cells[tag])
            if label in tags:
                raise UsageError(f"the class {label!r} stands twice", where=at(path, row.line))
            if not named:
                raise UsageError(f"the tag of {label!r} is empty", where=at(path, row.line),
                                 remedy="as in: cell phone,phone")  # fmt: skip
            tags[label] = named
    return tags
