"""Settings of what is learnt: the tasks of a training run."""

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

    m(n) = low + (high - low) (n^-power - min) / (max - min), as the 3rd place of Google Landmark
    Recognition 2020 had it (power 1/4, low .05, high .5). Where all classes have the same size
    all margins are `low`.
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
    """Learn to tell the landmarks of the labels apart.

    Attributes:
        loss: "softmax" is a plain linear classifier.
        scale: s of the margin losses.
        margin: in radians; of cosface a difference of cosines.
        sub_centers: of "subcenter", for each class.
        dynamic_margin: a margin for each class by its number of pictures, instead of `margin`.
        class_weights: weigh each class by 1 / log(1 + n).
        start: the classes' centres are random at first, or the "means" of their pictures'
            embeddings by the starting network (of arcface and cosface).
        unlabelled: pictures without a label count for nothing here ("skip"), or are one more
            class ("background").
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
    """One network of the ensemble: its unit features at all sizes are summed."""

    model: str
    sizes: tuple[int, ...] = Field(min_length=1)


class Taught(Settings):
    """An ensemble to learn from.

    The teachers' features are concatenated, then PCA-whitened to the embedding's dimension.

    Attributes:
        teachers: presets with their sizes in pixels.
        power: of the whitening, learnt on the training pictures.
        loss_weight: the weight of this loss in the sum of all tasks.
    """

    teachers: tuple[Teacher, ...] = Field(min_length=1)
    power: float = Field(default=0.5, ge=0, le=1)
    loss_weight: float = Field(default=1.0, gt=0)


class Distillation(Taught):
    """Learn the vectors of an ensemble, without labels.

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
    """Keep what an ensemble says about which everyday pictures are near.

    The Kullback-Leibler divergence between two distributions over the pictures without a label:
    softmax(cosines / temperature), of the teacher and of the network against the memory. Fang et
    al., "SEED: Self-supervised Distillation for Visual Representation", 2021.

    Attributes:
        temperature: divides the cosines.
    """

    task: Literal["neighbours"]
    temperature: float = Field(default=0.1, gt=0)


class Repulsion(Settings):
    """Keep pictures without a label away from all landmarks' centres, those of the classes task.

    softplus(s (log(sum_c exp(s cos_c)) / s - margin)) / s: a smooth largest cosine, over a margin.

    Attributes:
        scale: s.
        margin: the cosine from which on it counts.
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
    own, which a batch should show more than once (groups.views).

    Attributes:
        temperature: divides the cosines.
        loss_weight: the weight of this loss in the sum of all tasks.
    """

    task: Literal["contrast"]
    temperature: float = Field(default=0.1, gt=0)
    loss_weight: float = Field(default=1.0, gt=0)


class CrossEntropy(Settings):
    """Binary cross entropy of each tag, the mean over tags."""

    kind: Literal["bce"] = "bce"


class Focal(Settings):
    """Focal loss: Lin et al., "Focal Loss for Dense Object Detection", 2017.

    Attributes:
        gamma: how little tags count that are right already; 0 counts all alike.
        alpha: weight of a tag that the picture has; of the others 1 - alpha.
    """

    kind: Literal["focal"]
    gamma: float = Field(default=2.0, ge=0)
    alpha: float = Field(default=0.25, ge=0, le=1)


class Tencent(Settings):
    """Weighted cross entropy of Tencent ML-Images: Wu et al., 2019.

    Attributes:
        form: as the paper has it, or as the released "code", which weighs terms in another way,
            draws no negatives of a tag that is present, and sums over tags. (It learns the
            confidences of labels themselves; here a label is a yes or a no in either form.)
        eta: weight of a tag that the picture has.
        decay: a tag present (or absent) for the t-th step in a row counts decay^(t - 1).
        negatives: of a tag that is present in a step, so many times its pictures are drawn from
            the others; null takes all.
        absent: how often a tag of no picture of a step is learnt in it.
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
    """Shows pictures of rare tags more often: Mahajan et al., 2018.

    r(tag) = max(1, phi(threshold / f)), f the part of the pictures that have it; a picture is
    shown the largest of its tags' r times an epoch, on average.

    Attributes:
        phi: "uniform" for x, "sqrt" for its root.
        threshold: the part of the pictures below which a tag is rare.
    """

    phi: Literal["uniform", "sqrt"] = "sqrt"
    threshold: float = Field(default=0.01, gt=0, le=1)


class Tags(Settings):
    """Learn which tags a picture has: none, one or several.

    Attributes:
        loss: "bce", "focal" and "tencent" say yes or no to each tag; "softmax" shares one
            probability out among all tags.
        weighted: labels are written "NAME:WEIGHT".
        positive_from: the weight from which on such a label is a yes; a weight below 0 is "not
            known". None, of "bce": weights are probabilities, as another network gave them, and
            learnt as such; a label without one is a yes. For softmax weights count as they are.
        least: tags of fewer pictures are left out.
        unlabelled: a picture without tags has none of them ("negative"), or nobody looked
            ("skip"). For softmax there is nothing to learn from it.
        unit: the tags are read off features of length 1 (times the root of their number), so
            that those an index keeps will do.
        repeat: how often pictures of rare tags are shown, instead of `sampling`.
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
