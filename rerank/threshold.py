"""The threshold of "none of these", learnt from answers with known verdicts.

It is where the share of right answers kept plus the share of wrong ones refused is largest
(Youden's J). Wrong ones are those to queries that show no landmark of the gallery, each as its
weight says. Where there are no right answers to learn from it is where 95 % of the wrong ones are
refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.rerank.calibration import Answers

REFUSED = 0.95  # of wrong answers, where there are no right ones to weigh them against


def learn_threshold(answers: Answers) -> float:
    """The threshold for answers of one pipeline.

    Returns:
        -inf (everything is answered) where there is no wrong answer to learn from: there is one
        landmark only and no bank, or no picture with a landmark.
    """
    given = np.isfinite(answers.confidence)
    wrong = given & ~answers.landmark
    return _cut(
        answers.confidence[given & answers.right],
        answers.confidence[wrong],
        answers.weight[wrong],
    )


def _cut(
    right: NDArray[np.float32], wrong: NDArray[np.float32], weight: NDArray[np.float64]
) -> float:
    """The cut between two values that keeps most of `right` and least of `wrong`.

    The lowest value keeps all, for confidences that say nothing; above the highest nothing is
    better than there.
    """
    if not wrong.size:
        return float("-inf")
    values = np.unique(np.concatenate([right, wrong]))
    cuts = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2, values[-1:]])
    order = np.argsort(wrong)
    below = np.concatenate([[0], np.cumsum(weight[order])]) / weight.sum()
    refused = below[np.searchsorted(wrong[order], cuts)]
    if not right.size:
        enough = int(np.searchsorted(refused, REFUSED))
        return float(cuts[min(enough, len(cuts) - 1)])
    kept = 1 - np.searchsorted(np.sort(right), cuts) / right.size
    return float(cuts[np.argmax(kept + refused)])
