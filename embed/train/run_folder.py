"""The folder of a run: the embedder at the top, the files of the training in training/."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from lmk.embed.data.images import Skipped
from lmk.embed.errors import CheckpointDamaged, LmkError, UsageError, storage_errors
from lmk.embed.extract.embedder import Embedder
from lmk.embed.files import write_whole
from lmk.embed.network.config import EMBEDDER_FILE
from lmk.embed.tags.head import TAGS_FILE, TagHead, save_tag_head
from lmk.embed.train.checkpoint import load_checkpoint, save_checkpoint
from lmk.embed.train.config import TrainConfig
from lmk.embed.train.log import csv_text

FORMAT = 1
_FREE = {"workers", "save_minutes"}  # settings that may change when a run is resumed


class RunFolder:
    """The files of a run.

    training/ holds config.json, the checkpoints last.safetensors and previous.safetensors, the
    weights best.safetensors, steps.csv, epochs.csv and skipped.csv. The files of the embedder are
    written at the end.

    Args:
        out: the folder. It is created if it is missing.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.training = out / "training"
        self.last = self.training / "last.safetensors"
        self.previous = self.training / "previous.safetensors"
        self.best = self.training / "best.safetensors"
        self.teacher = self.training / "teacher.safetensors"
        self.start_state = self.training / "start.safetensors"

    def start(
        self, config: TrainConfig, digest: str, *, resume: bool, write: bool
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Creates the folder, or returns the checkpoint to continue from; None for a new run.

        Args:
            config: the settings of the run.
            digest: the digest of the training set (TrainingPictures.digest).
            resume: continue an existing run.
            write: True if this process writes files.

        Raises:
            UsageError: a run exists and `resume` is not set, the run has other settings or
                pictures, or the folder holds other files.
            CheckpointDamaged: the checkpoint is damaged.
        """
        if self.last.exists():
            return self._checkpoint(config, digest, resume=resume)
        if self._foreign():
            what = "exists already and is not a training run"
            remedy = "name another with -o"
            raise UsageError(what, where=self.out, remedy=remedy)
        if write:
            with storage_errors(self.out):
                self.training.mkdir(parents=True, exist_ok=True)
            text = config.model_dump_json(indent=2) + "\n"
            write_whole(self.training / "config.json", text.encode())
        return None

    def _foreign(self) -> bool:
        """True if the folder has other files than those of a run."""
        try:  # lists it once, as another process of this run may create it now
            held = {entry.name for entry in self.out.iterdir()}
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True
        return bool(held) and (self.training.name not in held or not self.training.is_dir())

    def _checkpoint(
        self, config: TrainConfig, digest: str, *, resume: bool
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not resume:
            remedy = "continue it with --resume, or name another with -o"
            raise UsageError("holds a training run already", where=self.out, remedy=remedy)
        tensors, state = self._last()
        if state.get("format") != FORMAT:
            raise UsageError(
                "was written by another version of lmk", where=self.last, remedy="train anew"
            )
        before, now = _complete(state["config"]), config.model_dump(mode="json")
        changed = sorted(
            key for key in before.keys() | now.keys() if before.get(key) != now.get(key)
        )
        different = [key for key in changed if key not in _FREE]
        if state["data"] != digest:
            different.append("the training pictures")
        if different:
            what = f"was started with other settings: {', '.join(different)}"
            remedy = "give the same ones (training/config.json), or name another with -o"
            raise UsageError(what, where=self.out, remedy=remedy)
        return tensors, state

    @property
    def anew(self) -> str:
        """The remedy for a run that cannot continue."""
        return f"remove {self.training}, and run the same command again"

    def _last(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        try:
            return load_checkpoint(self.last)
        except CheckpointDamaged as error:
            try:
                position = load_checkpoint(self.previous)[1]["position"]
                done = f"{position['epoch']} epochs and {position['step']} steps"
                remedy = f"use the previous one, after {done}: mv {self.previous} {self.last}"
            except (LmkError, KeyError, TypeError):
                remedy = self.anew
            raise CheckpointDamaged(error.what, where=error.where, remedy=remedy) from error

    def save(
        self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], skipped: Sequence[Skipped]
    ) -> None:
        """Writes the checkpoint and the list of skipped files."""
        text = csv_text([("path", "reason"), *((skip.path, skip.reason) for skip in skipped)])
        write_whole(self.training / "skipped.csv", text.encode(errors="surrogateescape"))
        self._keep_previous()
        save_checkpoint(self.last, tensors, {"format": FORMAT, **state})

    def _keep_previous(self) -> None:
        """Gives the last checkpoint a second name, if the file system supports it."""
        link = self.previous.with_suffix(".part")
        with suppress(OSError):
            link.unlink(missing_ok=True)
            link.hardlink_to(self.last)
            link.replace(self.previous)

    def publish(self, embedder: Embedder, tags: TagHead | None) -> None:
        """Writes the embedder and its tags into the folder, config.json last.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        made = self.training / "embedder"
        with storage_errors(self.out):
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            embedder.save(made)
            if tags is not None:
                save_tag_head(tags, made / TAGS_FILE)
            files = sorted(made.iterdir(), key=lambda file: file.name == EMBEDDER_FILE)
            (self.out / EMBEDDER_FILE).unlink(missing_ok=True)
            for file in files:
                file.replace(self.out / file.name)
            made.rmdir()


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns saved settings in their current form, with defaults for newer settings."""
    try:
        return TrainConfig.model_validate(settings).model_dump(mode="json")
    except ValidationError:
        return settings
