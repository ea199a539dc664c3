"""Builds the tasks of a run from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest
from lmk.embed.progress import Progress, no_progress
from lmk.embed.train.checkpoint import computed_once
from lmk.embed.train.config import TrainConfig
from lmk.embed.train.contrastive_tasks import ContrastTask, NeighboursTask, RepulsionTask
from lmk.embed.train.dataset import TrainingPictures
from lmk.embed.train.devices import World
from lmk.embed.train.distillation import DistillationTask, TeacherVectors, teacher_vectors
from lmk.embed.train.memory_bank import Memory
from lmk.embed.train.tag_task import TagTask
from lmk.embed.train.task_config import Contrast, Distillation, Neighbours, Repulsion, Tags, Taught
from lmk.embed.train.tasks import ClassTask, Task, class_codes


def build_tasks(
    config: TrainConfig,
    manifests: Sequence[Manifest],
    pictures: TrainingPictures,
    dim: int,
    *,
    teacher: Path,
    features: Path,
    world: World,
    memory: Memory | None = None,
    on_progress: Progress = no_progress,
) -> tuple[list[Task], tuple[Skipped, ...]]:
    """Returns the tasks in the order of the settings, and the pictures that cannot be read.

    The random weights of the heads depend on the seed.

    Args:
        config: the settings of the run.
        manifests: the training set.
        pictures: the pictures of the training set.
        dim: number of components of an embedding.
        teacher: the file that stores the teachers' vectors, for a resumed run.
        features: the folder that stores the teachers' features.
        world: the processes; the first one computes the teachers' vectors.
        memory: the memory of all pictures, if a task needs it (TrainConfig.remembers).
        on_progress: called with (stage, done, total).
    """
    codes = class_codes(pictures.labels, background=False)[1]
    tasks: list[Task] = []
    skipped: tuple[Skipped, ...] = ()
    for number, settings in enumerate(config.tasks):
        if isinstance(settings, Distillation | Neighbours):
            stored = teacher.with_stem(f"{teacher.stem}_{number}")
            vectors = _teacher(settings, manifests, dim, stored, features, world, on_progress)
            skipped += vectors.skipped
            if isinstance(settings, Distillation):
                tasks.append(DistillationTask(settings, vectors))
            else:
                tasks.append(NeighboursTask(settings, codes, vectors, _needed(memory)))
        elif isinstance(settings, Contrast):
            tasks.append(ContrastTask(settings, codes, _needed(memory)))
        elif isinstance(settings, Repulsion):
            tasks.append(RepulsionTask(settings, codes, lambda: _centres(tasks)))
        elif isinstance(settings, Tags):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed + 1 + number)
                tasks.append(TagTask(settings, pictures.labels, dim, config.seed))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed + 1 + number)
                task = ClassTask(settings, pictures.labels, dim)
            if settings.start == "means":
                task.start_from(_needed(memory).vectors)
            tasks.append(task)
    return tasks, skipped


def _needed(memory: Memory | None) -> Memory:
    if memory is None:
        raise ValueError("a task needs the memory")
    return memory


def _centres(tasks: Sequence[Task]) -> Tensor:
    """Returns the centres of the only task of classes."""
    return next(task.centres() for task in tasks if isinstance(task, ClassTask))


def _teacher(
    settings: Taught,
    manifests: Sequence[Manifest],
    dim: int,
    stored: Path,
    features: Path,
    world: World,
    on_progress: Progress,
) -> TeacherVectors:
    """Returns the teacher's vectors; the first process computes them, and all read the file."""

    def compute() -> tuple[dict[str, Tensor], tuple[Skipped, ...]]:
        result = teacher_vectors(settings, manifests, dim, features, on_progress=on_progress)
        arrays = {"vectors": result.vectors, "known": result.known}
        return {name: torch.from_numpy(each) for name, each in arrays.items()}, result.skipped

    tensors, skipped = computed_once(stored, world, compute)
    return TeacherVectors(tensors["vectors"].numpy(), tensors["known"].numpy(), skipped)
