"""TagTargets: the tags of the training pictures, and the repetition of each picture."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import ManifestError
from lmk.embed.train.sampling import class_draws
from lmk.embed.train.task_config import Tags, TagSoftmax

LIKELY = 0.5  # a probability above it is positive


@dataclass(frozen=True, eq=False)
class TagTargets:
    """The tags of the training pictures, as compressed rows.

    Attributes:
        names: the t tags, ascending.
        offsets: int64 [n + 1]; picture i has the entries offsets[i] to offsets[i + 1].
        codes: int32 [entries], the tag of each entry.
        values: float32 [entries], the weight or probability of each entry; for labels without
            weights, 1 for positive and -1 for unknown.
        yes_above: an entry is positive if its value is above this number.
    """

    names: tuple[str, ...]
    offsets: NDArray[np.int64]
    codes: NDArray[np.int32]
    values: NDArray[np.float32]
    yes_above: float = 0.0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> NDArray[np.int64]:
        """The picture of each positive entry: int64 [positives]."""
        pictures = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return pictures[self.values > self.yes_above]

    @property
    def columns(self) -> NDArray[np.int32]:
        """The tag of each positive entry: int32 [positives]."""
        return self.codes[self.values > self.yes_above]

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of pictures of each tag: int64 [t]."""
        return np.bincount(self.columns, minlength=len(self.names)).astype(np.int64)

    @property
    def mass(self) -> NDArray[np.float64]:
        """The sum of the weights, or of the probabilities, of each tag: float64 [t]."""
        weights = np.maximum(self.values, 0)
        sums = np.bincount(self.codes, weights, minlength=len(self.names))
        return sums.astype(np.float64)

    @property
    def labelled(self) -> int:
        """The pictures with a tag, including unlikely ones."""
        pictures = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return len(np.unique(pictures[self.values > 0]))

    def dense(self, pictures: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the values of pictures, 0 without an entry: float32 [m, t]."""
        starts, ends = self.offsets[pictures], self.offsets[pictures + 1]
        result = np.zeros((len(pictures), len(self.names)), np.float32)
        for row, start, end in zip(result, starts, ends, strict=True):
            row[self.codes[start:end]] = self.values[start:end]
        return result


def tag_targets(
    labels: Sequence[tuple[str, ...]],
    *,
    weighted: bool = False,
    positive_from: float | None = None,
    likely: bool = False,
    least: int = 1,
) -> TagTargets:
    """Returns the tags from labels; for a repeated tag the larger weight counts.

    Args:
        labels: the labels of each picture: tags, or "NAME:WEIGHT" if `weighted`.
        weighted: see `labels`.
        positive_from: a weight from this value on is positive, below 0 unknown, else negative.
            None uses weights above 0 unchanged.
        likely: weights are probabilities. A tag without one has probability 1, a weight below 0 is
            unknown, and one above .5 is positive.
        least: tags with fewer pictures are left out.

    Raises:
        ManifestError: fewer than two tags are left, a label has no weight, or a probability is
            above 1.
    """
    yes_above = LIKELY if likely else 0.0

    def values(own: tuple[str, ...]) -> dict[str, float]:
        weights = _weights(own, likely=likely) if weighted else dict.fromkeys(own, 1.0)
        if likely:
            return {name: w if w > 0 else -1.0 for name, w in weights.items() if w}
        if positive_from is None:
            return {name: weight for name, weight in weights.items() if weight > 0}
        signs = {name: 1 if w >= positive_from else -1 * (w < 0) for name, w in weights.items()}
        return {name: float(sign) for name, sign in signs.items() if sign}

    counts = Counter(n for own in labels for n, value in values(own).items() if value > yes_above)
    names = sorted(name for name, count in counts.items() if count >= least)
    if len(names) < 2:
        what = f"{len(names)} tags have {least} pictures or more, but at least two are needed"
        remedy = "give a CSV with a column tags, separated by blanks"
        raise ManifestError(what, where="--data", remedy=remedy)
    number = {name: i for i, name in enumerate(names)}
    codes, weights, offsets = array("i"), array("f"), array("q", [0])
    for own in labels:
        for name, value in values(own).items():
            if name in number:
                codes.append(number[name])
                weights.append(value)
        offsets.append(len(codes))
    return TagTargets(
        tuple(names),
        np.array(offsets, np.int64),
        np.array(codes, np.int32),
        np.array(weights, np.float32),
        yes_above,
    )


def positive_tags(labels: Sequence[str], settings: Tags, where: str) -> set[str]:
    """Returns the tags of a picture from its labels, as a task of tags reads them.

    Args:
        labels: the labels of the picture.
        settings: the settings of the task. For a softmax with weights, every weight above 0 counts.
        where: the source of the labels, for the error.

    Raises:
        ManifestError: a label that needs a weight has none.
    """
    if not settings.weighted:
        return set(labels)
    if settings.positive_from is None:
        weights = _weights(labels, where, likely=True)
        return {name for name, weight in weights.items() if weight > LIKELY}
    weights = _weights(labels, where)
    if isinstance(settings.loss, TagSoftmax):
        return {name for name, weight in weights.items() if weight > 0}
    return {name for name, weight in weights.items() if weight >= settings.positive_from}


def _weights(
    labels: Sequence[str], where: str = "--data", *, likely: bool = False
) -> dict[str, float]:
    """Returns weights by name from labels like "beach:0.77"; optional if `likely`."""
    weights: dict[str, float] = {}
    for label in labels:
        name, _, text = (label if ":" in label or not likely else f"{label}:1").rpartition(":")
        try:
            weight = float(text)
        except ValueError:
            weight = float("nan")
        if likely and weight > 1:
            what = f"the label {label!r} has a probability above 1"
            remedy = "write probabilities as in beach:0.77, or set tasks.0.positive_from"
            raise ManifestError(what, where=where, remedy=remedy)
        if not name or not np.isfinite(weight):
            remedy = "write labels as in beach:0.77, or set tasks.0.weighted=false"
            raise ManifestError(f"the label {label!r} has no weight", where=where, remedy=remedy)
        weights[name] = max(weight, weights.get(name, -np.inf))
    return weights


def repeat_factors(targets: TagTargets, threshold: float, phi: str) -> NDArray[np.float64]:
    """Returns the average occurrences of each picture in an epoch: float64 [n], at least 1.

    r(tag) = max(1, phi(threshold / f)), where f is the fraction of pictures with the tag, and
    r(picture) is the largest r of its tags: Mahajan et al., "Exploring the Limits of Weakly
    Supervised Pretraining", 2018. A picture without tags occurs once.

    Args:
        targets: the tags of the pictures.
        threshold: the fraction of the pictures below which a tag is repeated, above 0.
        phi: "uniform" for x, "sqrt" for its square root.
    """
    frequency = targets.counts / len(targets)
    ratio = threshold / frequency  # every tag has a picture
    by_tag = np.maximum(1.0, np.sqrt(ratio) if phi == "sqrt" else ratio)
    repeats = np.ones(len(targets))
    np.maximum.at(repeats, targets.rows, by_tag[targets.columns])
    return repeats


def tag_draws(targets: TagTargets, sampling: str) -> NDArray[np.float64]:
    """Returns the average occurrences if a tag is drawn first, then one of its pictures.

    Args:
        targets: the tags of the pictures.
        sampling: how tags are drawn, see class_draws. With "natural", each picture occurs once.

    Returns:
        float64 [n]: 1 for a picture without tags; the sum of the others is their number.
    """
    repeats = np.ones(len(targets))
    if sampling == "natural":
        return repeats
    counts = targets.counts.astype(np.float64)
    draws = class_draws(counts, sampling)
    chance = (draws / draws.sum() / counts)[targets.columns]
    drawn = np.bincount(targets.rows, chance, len(targets))
    tagged = drawn > 0
    repeats[tagged] = drawn[tagged] * tagged.sum()
    return repeats
