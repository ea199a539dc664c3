"""Settings of the tasks of a training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

RENAMED = {"share": "loss_weight", "passes": "micro_batches"}  # old keys, still read


class Settings(BaseModel):
    """Immutable settings; unknown keys are refused, old names of keys are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            key if RENAMED.get(key, key) in values else RENAMED.get(key, key): value
            for key, value in values.items()
        }


class MarginByRank(Settings):
    """Margins between `low` (the largest class) and `high` (the smallest), by n^-power.

    m(n) = low + (high - low) (n^-power - min) / (max - min), as in the 3rd place of Google
    Landmark Recognition 2020 (power 1/4, low .05, high .5). If all classes have the same size, all
    margins are `low`.
    """

    form: Literal["rank"] = "rank"
    power: float = Field(default=0.25, gt=0)
    low: float = Field(default=0.05, ge=0, le=3)
    high: float = Field(default=0.5, ge=0, le=3)


class MarginByPower(Settings):
    """m(n) = a n^-b + c: Ha et al., "Google Landmark Recognition 2020 Competition Third Place"."""

    form: Literal["power"]
    a: float
    b: float
    c: float


class Classes(Settings):
    """Classification of the landmarks.

    Attributes:
        loss: the loss; "softmax" is a plain linear classifier.
        scale: the scale s of the margin losses.
        margin: the margin in radians; a difference of cosines for cosface.
        sub_centers: number of centres per class for "subcenter".
        dynamic_margin: a margin for each class by its number of pictures, instead of `margin`.
        class_weights: weight each class by 1 / log(1 + n).
        start: the initial centres of classes: random, or the "means" of their pictures' embeddings
            by the initial network (for arcface and cosface).
        unlabelled: pictures without a label have no loss ("skip"), or form one more class
            ("background").
        loss_weight: the weight of this loss in the sum of all tasks.
    """

    task: Literal["classes"]
    loss: Literal["softmax", "arcface", "subcenter", "cosface"] = "arcface"
    scale: float = Field(default=30.0, gt=0)
    margin: float = Field(default=0.3, ge=0, lt=3)
    sub_centers: int = Field(default=3, ge=1)
    dynamic_margin: Annotated[MarginByRank | MarginByPower, Field(discriminator="form")] | None = (
        None
    )
    class_weights: bool = False
    start: Literal["random", "means"] = "random"
    unlabelled: Literal["skip", "background"] = "skip"
    loss_weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.dynamic_margin is not None and self.loss not in ("arcface", "subcenter"):
            raise ValueError(f"dynamic_margin is for arcface and subcenter, not {self.loss}")
        if self.start == "means" and self.loss not in ("arcface", "cosface"):
            raise ValueError(f"start 'means' is for arcface and cosface, not {self.loss}")
        return self


class Teacher(Settings):
    """One network of an ensemble; its unit features at all sizes are summed."""

    model: str
    sizes: tuple[int, ...] = Field(min_length=1)


class Taught(Settings):
    """An ensemble of teachers.

    The teachers' features are concatenated, then PCA-whitened to the embedding's dimension.

    Attributes:
        teachers: the presets with their picture sizes in pixels.
        power: the power of the whitening, which is fitted on the training pictures.
        loss_weight: the weight of this loss in the sum of all tasks.
    """

    teachers: tuple[Teacher, ...] = Field(min_length=1)
    power: float = Field(default=0.5, ge=0, le=1)
    loss_weight: float = Field(default=1.0, gt=0)


class Distillation(Taught):
    """Distillation of an ensemble's vectors, without labels.

    Attributes:
        feature: weight of 1 - cosine to the teacher's vector.
        relation: weight of the mean squared difference of the cosines between the pictures of a
            batch: Park et al., "Relational Knowledge Distillation", 2019, with cosines.
    """

    task: Literal["distillation"]
    feature: float = Field(default=1.0, ge=0)
    relation: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.feature + self.relation == 0:
            raise ValueError("feature and relation are both 0")
        return self


class Neighbours(Taught):
    """Distillation of an ensemble's similarities to pictures without a label.

    The loss is the Kullback-Leibler divergence of the distributions softmax(cosines / temperature)
    over the pictures without a label, between the teacher and the network against the memory. Fang
    et al., "SEED: Self-supervised Distillation for Visual Representation", 2021.

    Attributes:
        temperature: divides the cosines.
    """

    task: Literal["neighbours"]
    temperature: float = Field(default=0.1, gt=0)


class Repulsion(Settings):
    """Repulsion of pictures without a label from the centres of the task of classes.

    The loss is softplus(s (log(sum_c exp(s cos_c)) / s - margin)) / s: a smooth maximum of the
    cosines above a margin.

    Attributes:
        scale: the scale s.
        margin: the cosine above which the loss grows.
        loss_weight: the weight of this loss in the sum of all tasks.
    """

    task: Literal["repulsion"]
    scale: float = Field(default=30.0, gt=0)
    margin: float = Field(default=0.2, ge=-1, le=1)
    loss_weight: float = Field(default=1.0, gt=0)


class Contrast(Settings):
    """Supervised contrastive loss against the memory of all pictures and the rest of the batch.

    Khosla et al., "Supervised Contrastive Learning", 2020, with the memory of Wang et al.,
    "Cross-Batch Memory for Embedding Learning", 2020. A picture without a label is a class of its
    own, so a batch should contain several views of it (groups.views).

    Attributes:
        temperature: divides the cosines.
        loss_weight: the weight of this loss in the sum of all tasks.
    """

    task: Literal["contrast"]
    temperature: float = Field(default=0.1, gt=0)
    loss_weight: float = Field(default=1.0, gt=0)


class CrossEntropy(Settings):
    """Mean over tags of the binary cross entropy."""

    kind: Literal["bce"] = "bce"


class Focal(Settings):
    """Focal loss: Lin et al., "Focal Loss for Dense Object Detection", 2017.

    Attributes:
        gamma: reduces the weight of well classified tags; 0 weights all tags equally.
        alpha: weight of the tags that a picture has; the others have 1 - alpha.
    """

    kind: Literal["focal"]
    gamma: float = Field(default=2.0, ge=0)
    alpha: float = Field(default=0.25, ge=0, le=1)


class Tencent(Settings):
    """Weighted cross entropy of Tencent ML-Images: Wu et al., 2019.

    Attributes:
        form: the "paper", or the released "code", which uses other weights, draws no negatives of a
            tag that is present, and sums over tags. (The code learns the confidences of labels;
            here a label is positive or negative in both forms.)
        eta: weight of the tags that a picture has.
        decay: a tag that is present (or absent) for the t-th step in a row has the weight
            decay^(t - 1).
        negatives: number of random negatives per positive of a tag that is present in a step; null
            uses all.
        absent: probability that a tag without a picture in a step is trained in it.
    """

    kind: Literal["tencent"]
    form: Literal["paper", "code"] = "paper"
    eta: float = Field(default=12.0, gt=0)
    decay: float = Field(default=0.9, gt=0, le=1)
    negatives: float | None = Field(default=5.0, ge=0)
    absent: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.form == "code" and (self.decay, self.negatives) != (0.9, 5.0):
            raise ValueError("decay and negatives are of form 'paper', not 'code'")
        return self


class TagSoftmax(Settings):
    """-sum of w log softmax over a picture's tags: Yan et al., WebVision 2020."""

    kind: Literal["softmax"]


class Repeat(Settings):
    """Repetition of pictures with rare tags: Mahajan et al., 2018.

    r(tag) = max(1, phi(threshold / f)), where f is the fraction of pictures with the tag. A picture
    occurs on average as often as the largest r of its tags.

    Attributes:
        phi: "uniform" for x, "sqrt" for its square root.
        threshold: the fraction of the pictures below which a tag is rare.
    """

    phi: Literal["uniform", "sqrt"] = "sqrt"
    threshold: float = Field(default=0.01, gt=0, le=1)


class Tags(Settings):
    """Classification of tags, of which a picture has none, one or several.

    Attributes:
        loss: "bce", "focal" and "tencent" classify each tag by itself; "softmax" distributes one
            probability over all tags.
        weighted: labels have the form "NAME:WEIGHT".
        positive_from: a label with this weight or more is positive; a weight below 0 means unknown.
            None (for "bce"): weights are probabilities, for example of another network, and are the
            targets; a label without a weight is positive. Softmax uses the weights unchanged.
        least: tags with fewer pictures are left out.
        unlabelled: a picture without tags is negative for all tags ("negative") or has no loss
            ("skip"). Softmax always skips it.
        unit: the head uses features of length 1 (times the square root of their dimension), such as
            those that an index stores.
        repeat: repetition of pictures with rare tags, instead of `sampling`.
        loss_weight: the weight of this loss in the sum of all tasks.
    """

    task: Literal["tags"]
    loss: Annotated[CrossEntropy | Focal | Tencent | TagSoftmax, Field(discriminator="kind")] = (
        CrossEntropy()
    )
    weighted: bool = False
    positive_from: float | None = Field(default=0.7, gt=0)
    least: int = Field(default=1, ge=1)
    unlabelled: Literal["negative", "skip"] = "negative"
    unit: bool = False
    repeat: Repeat | None = None
    loss_weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Tags:
        if self.positive_from is None and not (self.weighted and self.loss.kind == "bce"):
            raise ValueError("positive_from: null needs weighted: true and the loss bce")
        return self


Task = Annotated[
    Classes | Distillation | Neighbours | Repulsion | Contrast | Tags, Field(discriminator="task")
]
