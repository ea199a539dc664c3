"""PipelineContext: what the steps of a pipeline know of the gallery they answer from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lmk.embed.local.features import LocalFeatures
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.vectors import Vectors
from lmk.rerank.steps.augmentation import Neighbourhoods


@dataclass(frozen=True, eq=False)
class PipelineContext:
    """What the steps need to know of a gallery; a step whose fact is missing does nothing.

    Attributes:
        label_names: by label code.
        label_offsets, label_codes: the labels of each row (see voting.vote).
        penalty: float32 [rows] taken off the scores of each row; None without a bank.
        background: mean cosine of two pictures of different landmarks (see RescaleStep).
        vectors: the gallery's, for DbaStep.
        neighbourhoods: the nearest pictures of each gallery picture.
        bank_means: float32 [rows], mean of the largest cosines of each gallery picture to the
            bank (DistractorSimilarityStep); None without a bank.
        bank: searches the distractors, for the likeness of a query to them; None without a bank.
        row_features: local features of a gallery row, or the reason why there are none.
        pictures: bool [rows], which rows are its pictures, as distractors may have labels too; all
            are for None.
    """

    label_names: tuple[str, ...]
    label_offsets: NDArray[np.int64]
    label_codes: NDArray[np.int32]
    penalty: NDArray[np.float32] | None = None
    background: float = 0.0
    vectors: Vectors | None = None
    neighbourhoods: Neighbourhoods | None = None
    bank_means: NDArray[np.float32] | None = None
    bank: Searcher | None = None
    row_features: Callable[[int], LocalFeatures | str] | None = None
    pictures: NDArray[np.bool_] | None = None

    @classmethod
    def of_labels(
        cls,
        labels: Sequence[tuple[str, ...]],
        penalty: NDArray[np.float32] | None = None,
        background: float = 0.0,
    ) -> PipelineContext:
        """Facts of rows numbered from 0, by the labels of each."""
        names = tuple(sorted({name for row in labels for name in row}))
        code = {name: i for i, name in enumerate(names)}
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in labels])]).astype(np.int64)
        codes = np.array([code[name] for row in labels for name in row], np.int32)
        return cls(names, offsets, codes, penalty, background)

    @cached_property
    def label_pictures(self) -> NDArray[np.int64]:
        """int64 [labels], the gallery pictures that carry each."""
        codes = self.label_codes
        if self.pictures is not None:
            codes = codes[np.repeat(self.pictures, np.diff(self.label_offsets))]
        return np.bincount(codes, minlength=len(self.label_names)).astype(np.int64)
