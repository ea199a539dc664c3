"""The threshold of "none of these", fitted to answers with known verdicts.

The threshold maximises the share of right answers above it plus the share of wrong answers below it
(Youden's J), both weighted. A wrong answer is one to a query that shows no landmark of the gallery.

From MANY answers of each kind on, Gaussian kernels smooth the two shares first. The raw curve is
flat and jagged where answers of both kinds are rare, so that a single answer moves its maximum far
(Fluss, Faraggi and Reiser, "Estimation of the Youden Index and its associated cutoff point",
Biometrical Journal 2005, compare both).

Without right answers the threshold refuses 95 % of the wrong ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.rerank.fit.calibration import ScoredAnswers

_GRID = 1001  # cuts compared where shares are smoothed
MANY = 30  # answers of a kind, the copies of one photo counted once
REFUSED = 0.95  # share of wrong answers below the threshold if there are no right ones


def fit_threshold(answers: ScoredAnswers) -> float:
    """Returns the threshold for answers of one pipeline.

    Returns:
        The threshold; -inf (no query is refused) without a wrong answer: the gallery has one
        landmark only and no distractors, or no picture with a landmark.
    """
    given = np.isfinite(answers.confidence)
    right, wrong = (
        _Sample(answers.confidence[some], answers.weight[some])
        for some in (given & answers.right, given & ~answers.landmark)
    )
    widths = right.kernel_width(), wrong.kernel_width()
    if min(right.count(), wrong.count()) < MANY or not min(widths) > 0:
        return _cut(right.values, wrong.values, wrong.weight, right.weight)
    ends = np.concatenate([right.values, wrong.values])
    cuts = np.linspace(ends.min(), ends.max(), _GRID)
    refused, lost = wrong.smoothed(cuts, widths[1]), right.smoothed(cuts, widths[0])
    return float(cuts[np.argmax(refused - lost)])


@dataclass(frozen=True, eq=False)
class _Sample:
    """Confidences float32 [n] and their weights float64 [n]."""

    values: NDArray[np.float32]
    weight: NDArray[np.float64]

    def count(self) -> float:
        """Returns Kish's effective sample size."""
        squares = float((self.weight**2).sum())
        return float(self.weight.sum()) ** 2 / squares if squares else 0.0

    def kernel_width(self) -> float:
        """Returns the bandwidth by Silverman's rule of thumb; 0 if more than half are equal.

        Silverman, "Density Estimation for Statistics and Data Analysis" (1986), formula 3.31.
        """
        if not self.values.size:
            return 0.0
        order = np.argsort(self.values)
        below = np.cumsum(self.weight[order]) / self.weight.sum()
        low, high = np.interp([0.25, 0.75], below, self.values[order])
        mean = np.average(self.values, weights=self.weight)
        deviation = np.sqrt(np.average((self.values - mean) ** 2, weights=self.weight))
        return float(0.9 * min(deviation, (high - low) / 1.34) * self.count() ** -0.2)

    def smoothed(self, cuts: NDArray[np.float64], width: float) -> NDArray[np.float64]:
        """Returns the weighted share below each cut, with a Gaussian kernel of this width."""
        from scipy.special import ndtr  # takes a tenth of a second to import

        below = ndtr((cuts[:, None] - self.values) / width) @ self.weight
        return np.asarray(below / self.weight.sum(), np.float64)


def _cut(
    right: NDArray[np.float32],
    wrong: NDArray[np.float32],
    weight: NDArray[np.float64],
    right_weight: NDArray[np.float64],
) -> float:
    """Returns the cut between two values with most of `right` and least of `wrong` above it."""
    if not wrong.size:
        return float("-inf")
    values = np.unique(np.concatenate([right, wrong]))
    cuts = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2, values[-1:]])
    refused = _share_below(wrong, weight, cuts)
    if not right.size:
        enough = int(np.searchsorted(refused, REFUSED))
        return float(cuts[min(enough, len(cuts) - 1)])
    above = 1 - _share_below(right, right_weight, cuts)
    return float(cuts[np.argmax(above + refused)])


def _share_below(
    values: NDArray[np.float32], weight: NDArray[np.float64], cuts: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Returns the weighted share of the values below each cut."""
    order = np.argsort(values)
    below = np.concatenate([[0], np.cumsum(weight[order])]) / weight.sum()
    return np.asarray(below[np.searchsorted(values[order], cuts)], np.float64)
