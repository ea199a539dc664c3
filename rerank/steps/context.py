"""PipelineContext: the values of a gallery that the steps of a pipeline need."""

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
    """The values of a gallery that steps need; a step whose value is missing does nothing.

    Attributes:
        label_names: the name of each label code.
        label_offsets, label_codes: the labels of each row (see voting.vote).
        penalty: float32 [rows], the penalty of each row; None without distractors.
        background: mean cosine of two pictures of different landmarks (see RescaleStep).
        vectors: the vectors of the gallery, for DbaStep.
        neighbourhoods: the nearest pictures of each gallery picture.
        distractor_similarity: float32 [rows], mean of the largest cosines of each gallery picture
            to the distractors (DistractorSimilarityStep); None without distractors.
        distractor_searcher: a search over the distractors; None without distractors.
        row_features: returns local features of a gallery row, or the reason why there are none.
        pictures: bool [rows], the rows of gallery pictures; distractors may have labels, too.
            None stands for all rows.
    """

    label_names: tuple[str, ...]
    label_offsets: NDArray[np.int64]
    label_codes: NDArray[np.int32]
    penalty: NDArray[np.float32] | None = None
    background: float = 0.0
    vectors: Vectors | None = None
    neighbourhoods: Neighbourhoods | None = None
    distractor_similarity: NDArray[np.float32] | None = None
    distractor_searcher: Searcher | None = None
    row_features: Callable[[int], LocalFeatures | str] | None = None
    pictures: NDArray[np.bool_] | None = None

    @classmethod
    def of_labels(
        cls,
        labels: Sequence[tuple[str, ...]],
        penalty: NDArray[np.float32] | None = None,
        background: float = 0.0,
    ) -> PipelineContext:
        """Returns the context of rows numbered from 0, with the labels of each."""
        names = tuple(sorted({name for row in labels for name in row}))
        code = {name: i for i, name in enumerate(names)}
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in labels])]).astype(np.int64)
        codes = np.array([code[name] for row in labels for name in row], np.int32)
        return cls(names, offsets, codes, penalty, background)

    @cached_property
    def label_pictures(self) -> NDArray[np.int64]:
        """The number of gallery pictures with each label, int64 [labels]."""
        codes = self.label_codes
        if self.pictures is not None:
            codes = codes[np.repeat(self.pictures, np.diff(self.label_offsets))]
        return np.bincount(codes, minlength=len(self.label_names)).astype(np.int64)
