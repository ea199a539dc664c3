"""The training loop: epochs, checkpoints, logs, validation; the result is an embedder's folder.

All random numbers depend on the seed and the step, and the learning rate on the step alone. A
checkpoint has the weights, the momenta and the step. A resumed run gives the same result as a run
without interruption.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest
from lmk.embed.errors import LmkError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.build import build_network
from lmk.embed.progress import Message, Progress, no_message, no_progress
from lmk.embed.tags.head import TagHead
from lmk.embed.train.build_tasks import build_tasks
from lmk.embed.train.checkpoint import load_checkpoint, part, save_checkpoint
from lmk.embed.train.config import TrainConfig
from lmk.embed.train.dataset import TrainingPictures
from lmk.embed.train.devices import World, chosen_device, chosen_precision, joined
from lmk.embed.train.initialise import prepare_start
from lmk.embed.train.learner import Learner
from lmk.embed.train.log import EPOCHS, STEPS, Log
from lmk.embed.train.network import embedder_config, lr_factor, start_network
from lmk.embed.train.reading import Batch, Shape, read_micro_batches, usable_workers
from lmk.embed.train.run_folder import RunFolder
from lmk.embed.train.sampling import (
    epoch_order,
    grouped_micro_batches,
    micro_batches_of,
    rank_slice,
)
from lmk.embed.train.tasks import class_codes

Validate = Callable[[Embedder, TagHead | None], Mapping[str, float]]
FIGURES = ("gap", "map", "accuracy")  # of a validation
TAG_FIGURES = ("tag_map",)  # of a validation of tags
_FLUSHED = 20  # number of steps whose losses stay on the device before they are logged
_CHANGES = 1  # part of the seed of the pictures' random changes


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training run.

    Attributes:
        folder: the folder of the embedder, with training/ in it.
        epochs: the rows of epochs.csv, in order.
        best: the epoch, counted from 1, whose weights the embedder has.
        skipped: the pictures that could not be read.
    """

    folder: Path
    epochs: tuple[dict[str, str], ...]
    best: int
    skipped: tuple[Skipped, ...]


@dataclass
class _Position:
    """Position of a run; checkpoints contain all of it."""

    epoch: int = 0
    step: int = 0  # within the epoch
    sums: list[float] = field(default_factory=list)  # of each task's losses in this epoch
    seconds: float = 0.0  # of this epoch
    best: int = 0  # from 1; 0 is none
    best_value: float = float("-inf")
    skipped: dict[str, str] = field(default_factory=dict)


def train(
    config: TrainConfig,
    manifests: Sequence[Manifest],
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    features: Path | None = None,
    validate: Validate | None = None,
    on_progress: Progress = no_progress,
    epoch_done: Callable[[Mapping[str, Any]], None] = lambda row: None,
    on_message: Message = no_message,
) -> TrainingResult:
    """Trains an embedder. Under torchrun each process calls this, and the first one writes.

    Args:
        config: all settings.
        manifests: the training set.
        out: the folder of the run and of the embedder.
        resume: continue from the last checkpoint, if there is one.
        device: "auto", "cpu" or "cuda".
        features: the folder for the teachers' features. Default: a folder below `out`.
        validate: called after each epoch with the current embedder and its tags, if any. It returns
            FIGURES or TAG_FIGURES; config.best_by names the one that selects the best epoch.
        on_progress: called with (stage, done, total).
        epoch_done: called after each epoch with its row of epochs.csv.
        on_message: called with a line for the user.

    Raises:
        LmkError: the run cannot start or continue; see its subclasses.
    """
    place = chosen_device(device)
    precision = chosen_precision(config.precision, place)
    pictures = TrainingPictures.of(manifests)
    with joined(place) as world:
        if config.batch % world.size:
            what = f"{config.batch} pictures cannot be divided among {world.size} processes"
            remedy = f"choose a multiple of {world.size}"
            raise UsageError(what, where="batch", remedy=remedy)
        folder = RunFolder(out)
        network = start_network(config)
        checkpoint = folder.start(config, pictures.digest, resume=resume, write=world.first)
        world.wait()
        features = features or folder.training / "features"
        begun = prepare_start(
            config,
            network,
            manifests,
            stored=folder.start_state,
            features=features,
            device=place,
            world=world,
            on_progress=on_progress,
        )
        tasks, unread = build_tasks(
            config,
            manifests,
            pictures,
            network.dim,
            teacher=folder.teacher,
            features=features,
            world=world,
            memory=begun.memory,
            on_progress=on_progress,
        )
        start = network.state_dict() if config.keep_start else {}
        start = {name: tensor.clone() for name, tensor in start.items()}
        learner = Learner(
            config,
            network,
            tasks,
            device=place,
            precision=precision,
            world=world,
            memory=begun.memory,
        )
        calls = (validate, on_progress, epoch_done, on_message)
        run = _Run(config, pictures, folder, learner, start, world, *calls)
        if checkpoint is not None:
            run.load(*checkpoint)
        run.skip((*begun.skipped, *unread))
        return run.finish()


@dataclass(eq=False)
class _Run:
    """One run; `finish` trains the epochs that are left."""

    config: TrainConfig
    pictures: TrainingPictures
    folder: RunFolder
    learner: Learner
    start: Mapping[str, Tensor]
    world: World
    validate: Validate | None
    on_progress: Progress
    epoch_done: Callable[[Mapping[str, Any]], None]
    on_message: Message

    def __post_init__(self) -> None:
        tasks = self.learner.tasks
        self._last_message: str | None = None
        self._repeats = tasks[0].repeats(self.config.sampling)
        self._codes = class_codes(self.pictures.labels, background=False)[1]
        self._figures = FIGURES if self.learner.tag_task is None else TAG_FIGURES
        self._names = _different([task.name for task in tasks])
        self._at = _Position(sums=[0.0] * len(tasks))
        # The number of steps is the same in every epoch.
        self._steps = len(self._micro_batches(0)) // self.config.accumulate
        self._waiting: list[tuple[int, float, Tensor]] = []
        self._saved = time.monotonic()

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self.learner.load(tensors, state["learner"])
        self._at = _Position(**state["position"])

    def skip(self, unread: Sequence[Skipped]) -> None:
        """Records pictures that cannot be read."""
        self._at.skipped.update({skip.path: skip.reason for skip in unread})

    def finish(self) -> TrainingResult:
        """Trains the epochs that are left, and writes the embedder."""
        rows: tuple[dict[str, str], ...] = ()
        if self.world.first:
            self._open_logs()
        for epoch in range(self._at.epoch, self.config.epochs):
            self._train_epoch(epoch)
            self._end_epoch(epoch)
        if self.world.first:
            self._steps_log.close()
            self._epochs_log.close()
            self._publish()
            rows = tuple(self._epochs_log.rows())
        self.world.wait()
        skipped = tuple(Skipped(path, reason) for path, reason in self._at.skipped.items())
        return TrainingResult(self.folder.out, rows, self._at.best or self._at.epoch, skipped)

    def _open_logs(self) -> None:
        training, at = self.folder.training, self._at
        board = training / "tensorboard"
        done = at.epoch * self._steps + at.step
        self._steps_log = Log(training / STEPS, ("step", "rate", *self._names), done, board)
        columns = ("epoch", "size", *self._names, "seconds", *self._figures)
        self._epochs_log = Log(training / EPOCHS, columns, at.epoch + 1, board)

    def _micro_batches(self, epoch: int) -> NDArray[np.int64]:
        config = self.config
        if config.groups is not None:
            return grouped_micro_batches(
                self._codes, config.groups, config.sampling, config.seed, epoch
            )
        order = epoch_order(self._repeats, config.seed, epoch)
        return micro_batches_of(order, config.batch * config.accumulate).reshape(-1, config.batch)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """This process's slice of the micro-batches that are left in an epoch."""
        config, world = self.config, self.world
        micro_batches = self._micro_batches(epoch)
        rng = np.random.default_rng([config.seed, epoch, _CHANGES])
        seeds = rng.integers(0, 2**62, micro_batches.shape)
        left = slice(self._at.step * config.accumulate, None)
        return read_micro_batches(
            self.pictures,
            rank_slice(micro_batches, world.rank, world.size)[left],
            size=config.size_of(epoch),
            augment=config.augment,
            seeds=rank_slice(seeds, world.rank, world.size)[left],
            workers=self._workers(config.size_of(epoch)),
        )

    def _workers(self, size: int) -> int:
        """Returns the number of reading processes that the shared memory has room for."""
        config, world = self.config, self.world
        batch = Shape(config.batch // world.size, size, config.accumulate, world.local_size)
        workers, note = usable_workers(config.workers, batch)
        if note is not None and note != self._last_message:
            self._last_message = note
            self.on_message(note)
        return workers

    def _train_epoch(self, epoch: int) -> None:
        config, at = self.config, self._at
        total = self._steps * config.epochs
        batches = self._batches(epoch)
        while at.step < self._steps:
            began = time.monotonic()
            done = epoch * self._steps + at.step
            micro_batches = [next(batches) for _ in range(config.accumulate)]
            for each in micro_batches:
                at.skipped.update({skip.path: skip.reason for skip in each.skipped})
            factor = lr_factor(config.schedule, (done + 0.5) / self._steps, config.epochs)
            losses = self.learner.step(done, micro_batches, factor)
            self._waiting.append((done, factor, losses))
            at.step += 1
            at.seconds += time.monotonic() - began
            if len(self._waiting) >= _FLUSHED:
                self._flush()
            self.on_progress("training", done + 1, total)
            if time.monotonic() - self._saved >= 60 * config.save_minutes:
                self._save()

    def _flush(self) -> None:
        """Checks and logs the losses of the last steps."""
        if not self._waiting:
            return
        steps, factors, losses = zip(*self._waiting, strict=True)
        self._waiting.clear()
        values = torch.stack(losses).double().cpu().numpy()
        if not np.isfinite(values).all():
            first = steps[int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])]
            what = f"the loss is not finite at step {first}"
            remedy = "train anew with a smaller optimizer.lr, with clip, or in fp32"
            raise LmkError(what, where=self.folder.out, remedy=remedy)
        for row in values.tolist():  # one by one, so that the sums do not depend on the flushes
            self._at.sums = [a + b for a, b in zip(self._at.sums, row, strict=True)]
        if self.world.first:
            rows = [
                {"step": step, "rate": f"{factor:.9g}"}
                | {name: f"{value:.9g}" for name, value in zip(self._names, row, strict=True)}
                for step, factor, row in zip(steps, factors, values.tolist(), strict=True)
            ]
            self._steps_log.add(rows)

    def _end_epoch(self, epoch: int) -> None:
        config, at = self.config, self._at
        self._flush()
        for skipped in self.world.gather(at.skipped):
            at.skipped.update(skipped)
        figures: Mapping[str, float] = {}
        if self.world.first and self.validate is not None:
            figures = self.validate(*self._embedder(self.learner.result()))
            if figures[config.best_by] > at.best_value:
                at.best, at.best_value = epoch + 1, figures[config.best_by]
                save_checkpoint(self.folder.best, self.learner.result(), {})
        if self.world.first:
            row: dict[str, Any] = {"epoch": epoch + 1, "size": config.size_of(epoch)}
            row |= {n: f"{s / self._steps:.6g}" for n, s in zip(self._names, at.sums, strict=True)}
            row |= {"seconds": f"{at.seconds:.1f}"}
            row |= {n: f"{figures[n]:.4f}" if n in figures else "" for n in self._figures}
            self._epochs_log.add([row])
            self.epoch_done(row)
        at.epoch, at.step, at.seconds = epoch + 1, 0, 0.0
        at.sums = [0.0] * len(at.sums)
        self._save()
        self.world.wait()

    def _save(self) -> None:
        self._flush()
        self._saved = time.monotonic()
        if self.world.first:
            tensors, numbers = self.learner.state()
            state = {
                "config": self.config.model_dump(mode="json"),
                "data": self.pictures.digest,
                "learner": numbers,
                "position": vars(self._at),
            }
            skipped = [Skipped(path, reason) for path, reason in self._at.skipped.items()]
            self.folder.save(tensors, state, skipped)

    def _publish(self) -> None:
        """Writes the embedder of the best epoch, or of the last one without a validation."""
        weights = None
        if self._at.best:
            weights = load_checkpoint(self.folder.best, remedy=self.folder.anew)[0]
        self.folder.publish(*self._embedder(weights or self.learner.result()))

    def _embedder(self, weights: Mapping[str, Tensor]) -> tuple[Embedder, TagHead | None]:
        """Returns an embedder with a copy of these weights on the CPU, and its tags, if any."""
        head = part("tags", weights)
        weights = {name: each for name, each in weights.items() if not name.startswith("tags.")}
        config = embedder_config(self.config)
        with torch.random.fork_rng(devices=[]):
            network = build_network(config, None)
        network.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()})
        if self.config.keep_start:
            _blend(network, self.start, self.config.keep_start)
        embedder = Embedder.of(config, network)
        task = self.learner.tag_task
        if task is None:
            return embedder, None
        return embedder, task.published(**head, feature_fingerprint=embedder.feature_fingerprint)


def _blend(network: torch.nn.Module, start: Mapping[str, Tensor], part_of_start: float) -> None:
    """Mixes the starting weights, means and variances into those of a network."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(start[name], part_of_start)


def _different(names: list[str]) -> list[str]:
    """Returns the names of losses, with a number after repeated ones."""
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{n}_{again + 1}" if again else n for n, again in zip(names, before, strict=True)]
