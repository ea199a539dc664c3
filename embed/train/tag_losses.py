"""Losses of tags, of which a picture has none, one or several.

All losses take logits [n, t] of n pictures and t tags and compute in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmk.embed.train.task_config import Tencent


def binary_cross_entropy(logits: Tensor, values: Tensor) -> Tensor:
    """Returns the mean over tags of -[y log p + (1 - y) log(1 - p)], p the sigmoid: float32 [n].

    Args:
        logits: float [n, t].
        values: float [n, t], 1 for positive, 0 for negative, a probability between them; -1 for
            unknown, which adds 0.
    """
    return (_terms(logits, values) * (values >= 0)).mean(dim=1)


def focal(logits: Tensor, values: Tensor, gamma: float, alpha: float) -> Tensor:
    """Returns the mean over tags of -a_t (1 - p_t)^gamma log p_t: float32 [n].

    p_t is p and a_t is alpha if the picture has the tag, else 1 - p and 1 - alpha: Lin et al.,
    "Focal Loss for Dense Object Detection", 2017.

    Args:
        logits, values: see binary_cross_entropy.
        gamma: 0 gives a weighted binary cross entropy; with alpha .5 it is half of the plain one.
        alpha: weight of positives.
    """
    terms = _terms(logits, values)
    # 1 - exp(-x) loses all digits for a small x, and the slope of its power is then infinite.
    easy = (-torch.expm1(-terms)).clamp(min=1e-12) ** gamma
    weight = torch.where(values > 0, alpha, 1 - alpha) * (values >= 0)
    return (weight * easy * terms).mean(dim=1)


def weighted_softmax(logits: Tensor, weights: Tensor) -> Tensor:
    """Returns -sum over tags of w log softmax: float32 [n].

    With weights of 1 this is the multi-label loss, with others the label-weighted loss of Yan et
    al., "Rethinking Model Pretraining for Noisy Image Classification" (WebVision 2020). The
    weights are not normalised.

    Args:
        logits: float [n, t].
        weights: float [n, t], 0 or more.
    """
    return -(weights * functional.log_softmax(logits.float(), dim=1)).sum(dim=1)


def _terms(logits: Tensor, values: Tensor) -> Tensor:
    """Returns -log p_t of each tag, or the cross entropy of a probability: float32 [n, t]."""
    wanted = values.float().clamp(min=0)
    return functional.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")


class TencentLoss(nn.Module):
    """Weighted cross entropy whose weights depend on the previous steps.

    Wu et al., "Tencent ML-Images: A Large-Scale Multi-Label Image Database for Visual
    Representation Learning", 2019. A tag is present in a step if one of its pictures has it. `run`
    counts the steps in a row in which a tag had its current state; both are part of checkpoints.

    Args:
        settings: the form of the loss and its parameters.
        tags: number of tags.
    """

    state: Tensor
    run: Tensor

    def __init__(self, settings: Tencent, tags: int) -> None:
        super().__init__()
        self._settings = settings
        self.register_buffer("state", torch.full((tags,), -1))  # 1 present, 0 absent, -1 none yet
        self.register_buffer("run", torch.zeros(tags, dtype=torch.int64))

    def coefficients(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Returns the weight of each term in this step, float32 [n, t], and updates the state.

        Args:
            values: float [n, t] of all pictures of the step: 1 positive, 0 negative, -1 unknown.
            generator: the random generator, on the device of `values`.
        """
        positive, known = values > 0, values >= 0
        present = positive.any(dim=0)
        lucky = torch.rand(len(present), generator=generator, device=values.device)
        chosen = present | (lucky < self._settings.absent)
        steps = torch.ones_like(self.run)
        if self._settings.form == "code":  # counts only the steps that trained an absent tag
            steps = chosen.to(steps)
        same = (self.state >= 0) & (present == (self.state > 0))
        # In place, as DistributedDataParallel and checkpoints hold these tensors.
        self.run.copy_(torch.where(same, self.run, 0) + steps)
        self.state.copy_(present)
        used = known & chosen
        if self._settings.form == "paper":
            decay = self._settings.decay ** (self.run - 1).float()
            used &= positive | self._drawn_negatives(positive, known, generator)
        else:
            decay = code_decay(self.run, present)
        return torch.where(positive, self._settings.eta, 1.0) * decay * used

    def _drawn_negatives(
        self, positive: Tensor, known: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Returns `negatives` random negatives per positive of a present tag, all of the others."""
        times = self._settings.negatives
        negative = known & ~positive
        if times is None:
            return negative
        wanted = (positive.sum(dim=0) * times).round()
        wanted = torch.where(positive.any(dim=0), wanted, len(positive))
        order = torch.rand(positive.shape, generator=generator, device=positive.device)
        order = order.masked_fill(~negative, 2).argsort(dim=0, stable=True)  # negatives first
        place = torch.arange(len(positive), device=positive.device)[:, None]
        first = torch.zeros_like(positive).scatter(0, order, place < wanted)
        return first & negative

    def forward(self, logits: Tensor, values: Tensor, coefficients: Tensor) -> Tensor:
        """Returns losses float32 [n]: the mean over tags (paper) or the sum (code)."""
        terms = coefficients * _terms(logits, values)
        return terms.mean(dim=1) if self._settings.form == "paper" else terms.sum(dim=1)


def code_decay(run: Tensor, present: Tensor) -> Tensor:
    """Returns the weights of tags in the released code of Tencent ML-Images: float32 [t].

    Present: -log10((.01 + run) / 10), at least .01. Absent: -log10((8 + run) / 10), or .001 if that
    is not above .01.

    Args:
        run: int64 [t], steps in a row in which the tag was present, or absent and trained.
        present: bool [t], True for a present tag.
    """
    seen = (-torch.log10((0.01 + run) / 10)).clamp(min=0.01)
    unseen = -torch.log10((8 + run) / 10)
    return torch.where(present, seen, torch.where(unseen > 0.01, unseen, 0.001))
