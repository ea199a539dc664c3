"""Settings of a training run, from presets, JSON files and changes of single values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from lmk.embed.errors import UsageError
from lmk.embed.network.config import TRAINING_SUFFIX
from lmk.embed.train.task_config import (
    RENAMED,
    Classes,
    Contrast,
    Distillation,
    Neighbours,
    Repulsion,
    Settings,
    Tags,
    Task,
)

_TASKS = ("classes", "distillation", "neighbours", "repulsion", "contrast", "tags")
_KINDS = (*_TASKS, "rank", "power", "bce", "focal", "tencent", "softmax")  # of unions
NONE = "none"  # of model.weights: random


class Model(Settings):
    """Settings of the network.

    Attributes:
        backbone: name of the timm model.
        weights: the initial weights: "none" (random), "hub" (downloaded from timm's hub),
            "package:NAME", a weights file of the backbone, or an embedder's folder (with its neck
            if both have one).
        mean, std: normalisation of the pixels (0 to 1). Default: timm's values of the backbone.
        pooling, gem_p, neck, neck_form, neck_activation, global_context: see EmbedderConfig.
        whitening_power: a centred neck starts as the PCA-whitening of this power, fitted on the
            features of the training pictures (unless `weights` is a folder with such a neck).
        train_gem: whether the power of GeM is trained.
    """

    backbone: str
    weights: str = NONE
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    pooling: Literal["gem", "avg"] = "gem"
    gem_p: float = Field(default=3.0, gt=0)
    train_gem: bool = True
    neck: int | None = Field(default=512, ge=1)
    neck_form: Literal["norm", "centred"] = "norm"
    neck_activation: Literal["prelu"] | None = "prelu"
    whitening_power: float = Field(default=0.5, ge=0, le=1)
    global_context: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.neck_form == "centred" and (self.neck is None or self.neck_activation):
            raise ValueError("a centred neck needs its width `neck`, and neck_activation null")
        return self


class Stage(Settings):
    """A number of epochs with one size of pictures, in pixels."""

    epochs: int = Field(ge=1)
    size: int = Field(ge=16, le=2048)


class Optimizer(Settings):
    """Settings of the optimizer.

    Attributes:
        lr: the peak learning rate for the given batch size.
        backbone_lr, head_lr: learning rates of the backbone and of the tasks' weights (such as the
            centres of classes), as multiples of `lr`.
        weight_decay: does not apply to biases, norms and the power of GeM.
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    backbone_lr: float = Field(default=1.0, ge=0)
    head_lr: float = Field(default=1.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=1e-4, ge=0)


class Schedule(Settings):
    """Schedule of the learning rate: linear warm-up, then cosine or steps.

    Attributes:
        warmup: number of epochs, may be a fraction.
        warmup_growth: the warm-up grows by this factor after each epoch, instead of linearly.
        floor: the end of the cosine as a fraction of the peak.
        milestones: epochs after which `gamma` multiplies the rate.
    """

    kind: Literal["cosine", "multistep"] = "cosine"
    warmup: float = Field(default=1.0, ge=0)
    warmup_growth: float | None = Field(default=None, gt=1)
    floor: float = Field(default=0.0, ge=0, le=1)
    milestones: tuple[float, ...] = ()
    gamma: float = Field(default=0.1, gt=0)


class Augment(Settings):
    """Random changes of a training picture; 0 disables a change.

    Attributes:
        crop: smallest fraction of the picture's area in a crop (1: no crop).
        ratio: largest aspect ratio of a crop; its inverse is the smallest.
        flip, perspective, grey, erase: probability, 0 to 1.
        rotate: largest angle in degrees.
        rotate_often, light_often: probability, 0 to 1.
        light: largest relative change of brightness, contrast and saturation.
        hue: largest change as a fraction of the colour circle. Default: a quarter of `light`.
        corners: standard deviation of the shift of each corner, relative to the side. The outside
            is filled with the mirrored picture.
        blur: probability of a Gaussian blur of .5 to 1.5 pixels.
        coarse: probability of a reduction to 36 to 71 % of the side and an enlargement.
    """

    crop: float = Field(default=0.5, gt=0, le=1)
    ratio: float = Field(default=4 / 3, ge=1)
    flip: float = Field(default=0.5, ge=0, le=1)
    rotate: float = Field(default=10.0, ge=0, le=180)
    rotate_often: float = Field(default=1.0, ge=0, le=1)
    light: float = Field(default=0.2, ge=0, le=1)
    light_often: float = Field(default=1.0, ge=0, le=1)
    hue: float | None = Field(default=None, ge=0, le=0.5)
    perspective: float = Field(default=0.0, ge=0, le=1)
    grey: float = Field(default=0.0, ge=0, le=1)
    erase: float = Field(default=0.0, ge=0, le=1)
    corners: float = Field(default=0.0, ge=0, le=0.2)
    blur: float = Field(default=0.0, ge=0, le=1)
    coarse: float = Field(default=0.0, ge=0, le=1)


class Groups(Settings):
    """Composition of a batch by classes, instead of a random order of all pictures.

    Attributes:
        classes: number of different landmarks in a batch, drawn by `sampling`.
        pictures: number of pictures of each landmark, different ones if there are enough.
        unlabelled: number of different pictures without a label in a batch.
        views: number of random views of each of them in the batch.
        micro_batches: number of batches in an epoch.
    """

    classes: int = Field(ge=1)
    pictures: int = Field(default=2, ge=1)
    unlabelled: int = Field(default=0, ge=0)
    views: int = Field(default=2, ge=1)
    micro_batches: int = Field(ge=1)

    @property
    def batch(self) -> int:
        """The number of pictures in a batch."""
        return self.classes * self.pictures + self.unlabelled * self.views


class TrainConfig(Settings):
    """All settings of a training run.

    Attributes:
        name: name of the resulting embedder.
        tasks: the training tasks; the loss is their sum, weighted by loss_weight.
        sampling: "natural": every picture once per epoch; "sqrt": classes drawn by the square root
            of their size; "balanced": all classes equally often.
        stages: stages of epochs, in order.
        size: picture size of the resulting embedder. Default: the size of the last stage.
        groups: composition of each batch, which determines its size.
        memory_keep: weight of the old embedding of a picture in the memory when it is updated. A
            memory exists only if a task needs one.
        batch: number of pictures in a micro-batch, over all processes. A step has `accumulate`
            micro-batches.
        precision: "auto" is bf16 on GPUs that support it and on CPUs with AMX, else fp16 on GPUs,
            else fp32.
        clip: largest norm of the gradient, or None.
        ema: decay of the moving average of the weights, or None.
        keep_start: weight of the initial weights in the embedder, a mean of both: Wortsman et al.,
            "Robust fine-tuning of zero-shot models" (WiSE-FT), 2022.
        freeze: prefixes of names of the weights that are not trained.
        freeze_norms: do not update the running means and variances of BatchNorms.
        best_by: the validation figure that selects the best epoch: "tag_map", the mean over tags
            of their average precision, for a task of tags; one of the others for other tasks.
        seed: seed of all random numbers.
        workers: number of processes that read pictures; 0 for none. Default: one per core.
        save_minutes: minutes between checkpoints within an epoch; 0 saves after each step.
    """

    name: str
    model: Model
    tasks: tuple[Task, ...] = Field(min_length=1)
    sampling: Literal["natural", "sqrt", "balanced"] = "natural"
    stages: tuple[Stage, ...] = Field(min_length=1)
    size: int | None = Field(default=None, ge=16, le=2048)
    groups: Groups | None = None
    memory_keep: float = Field(default=0.5, ge=0, lt=1)
    batch: int = Field(default=64, ge=1)
    accumulate: int = Field(default=1, ge=1)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    clip: float | None = Field(default=None, gt=0)
    ema: float | None = Field(default=None, gt=0, lt=1)
    keep_start: float = Field(default=0.0, ge=0, lt=1)
    freeze: tuple[str, ...] = ()
    freeze_norms: bool = False
    best_by: Literal["gap", "map", "accuracy", "tag_map"] = "gap"
    seed: int = Field(default=0, ge=0)
    workers: int | None = Field(default=None, ge=0)
    save_minutes: float = Field(default=10.0, ge=0)

    @property
    def remembers(self) -> bool:
        """True if a task needs the memory of all pictures' embeddings."""
        return any(
            isinstance(task, Contrast | Neighbours)
            or (isinstance(task, Classes) and task.start == "means")
            for task in self.tasks
        )

    @property
    def epochs(self) -> int:
        """The number of epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def embedder_size(self) -> int:
        """Side of the pictures of the resulting embedder, in pixels."""
        return self.size or self.stages[-1].size

    def size_of(self, epoch: int) -> int:
        """Returns the side of the pictures in an epoch, which is counted from 0."""
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage.size
            epoch -= stage.epochs
        raise ValueError("there is no such epoch")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.schedule.warmup >= self.epochs and self.schedule.kind == "cosine":
            raise ValueError(
                f"{self.schedule.warmup} epochs of warm-up leave none of {self.epochs}"
            )
        classes = [task for task in self.tasks if isinstance(task, Classes)]
        tags = [task for task in self.tasks if isinstance(task, Tags)]
        if self.sampling != "natural" and not classes and not tags and self.groups is None:
            raise ValueError(
                f"sampling {self.sampling!r} needs a task of classes or tags, or groups"
            )
        self._check_tags(tags)
        repelled = any(isinstance(task, Repulsion) for task in self.tasks)
        fit = [task.loss != "softmax" and task.unlabelled == "skip" for task in classes]
        if repelled and fit != [True]:
            raise ValueError(
                "repulsion needs one task of classes, not softmax, whose unlabelled is skip"
            )
        if self.groups is not None and self.batch != self.groups.batch:
            raise ValueError(f"the groups make a batch of {self.groups.batch}, not {self.batch}")
        if self.groups is not None and self.groups.micro_batches % self.accumulate:
            raise ValueError("groups.micro_batches must be a multiple of accumulate")
        return self

    def _check_tags(self, tags: Sequence[Tags]) -> None:
        if (self.best_by == "tag_map") != bool(tags):
            raise ValueError("best_by 'tag_map' is for a task of tags, which takes no other")
        if not tags:
            return
        if self.tasks[0] is not tags[0] or not all(
            isinstance(task, Distillation) for task in self.tasks[1:]
        ):
            raise ValueError(
                "a task of tags comes first, and only distillation beside it: labels are tags "
                "or landmarks"
            )
        if self.groups is not None:
            raise ValueError("groups are of landmarks, not of tags")
        if self.keep_start:
            raise ValueError("keep_start would take the network away from what its tags learnt")
        if self.sampling != "natural" and tags[0].repeat is not None:
            raise ValueError("give one of sampling and repeat")


def training_presets() -> tuple[str, ...]:
    """Returns the names of the shipped training presets."""
    names = (file.name for file in (resources.files("lmk.embed") / "presets").iterdir())
    presets = (name for name in names if name.endswith(TRAINING_SUFFIX))
    return tuple(sorted(name.removesuffix(TRAINING_SUFFIX) for name in presets))


def training_config(source: str, changes: Sequence[str] = ()) -> TrainConfig:
    """Returns the settings of a preset or a JSON file.

    Args:
        source: the name of a preset, or a file.
        changes: changes of single values, such as "optimizer.lr=0.01" or "tasks.0.margin=0.4". A
            value that is not JSON is a text.

    Raises:
        UsageError: the preset or file does not exist, a key is unknown, or a value is invalid.
    """
    values = json_object(_text(source), source)
    for change in changes:
        _apply(values, change)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
        reason = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        what = f"{key}: {reason}" if key else reason
        remedy = "docs/training.md lists all keys"
        raise UsageError(what, where=source, remedy=remedy) from None


def json_object(text: str, source: str) -> dict[str, Any]:
    """Returns the object in a JSON text; raises UsageError for anything else."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UsageError(f"is no JSON: {error}", where=source, remedy="mend it") from None
    if not isinstance(values, dict):
        raise UsageError("holds no settings", where=source, remedy="write one JSON object")
    return values


def _text(source: str) -> str:
    if source in training_presets():
        preset = resources.files("lmk.embed") / "presets" / f"{source}{TRAINING_SUFFIX}"
        return preset.read_text("utf-8")
    try:
        return Path(source).read_text("utf-8")
    except (OSError, ValueError):
        what = f"is neither a training preset ({', '.join(training_presets())}) nor a readable file"
        remedy = "check the spelling"
        raise UsageError(what, where=source, remedy=remedy) from None


def _other_names(key: str) -> set[str]:
    """Returns the other names of a key that was renamed."""
    pair = next((pair for pair in RENAMED.items() if key in pair), ())
    return {name for name in pair if name != key}


def _apply(values: dict[str, Any], change: str) -> None:
    """Applies one change, such as "optimizer.lr=0.01", in place."""
    path, equals, text = change.partition("=")
    *parents, last = path.strip().split(".")
    target: Any = values
    try:
        for name in parents:
            target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
        key: Any = int(last) if isinstance(target, list) else last
        if not equals or not last or not isinstance(target, dict | list):
            raise KeyError
        if isinstance(target, dict):
            for other in _other_names(key):
                target.pop(other, None)
        try:
            target[key] = json.loads(text)
        except ValueError:
            target[key] = text
    except (KeyError, IndexError, ValueError, AttributeError):
        raise UsageError(
            f"{change!r} changes no setting", where="--set", remedy="write KEY=VALUE"
        ) from None
