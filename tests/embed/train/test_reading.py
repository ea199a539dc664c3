"""Processes that read: too little shared memory, and deaths of any kind, end in a named error."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import dataloader

from lmk.embed.data.manifest import Manifest
from lmk.embed.errors import LmkError
from lmk.embed.train import reading
from lmk.embed.train.config import Augment, TrainConfig
from lmk.embed.train.dataset import Reader, TrainingPictures
from lmk.embed.train.loop import train
from lmk.embed.train.reading import Batch, Shape, read_micro_batches, usable_workers

NOTHING = Augment(crop=1, flip=0, rotate=0, light=0)
MB = 1_000_000


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torch look every fifth of a second for workers that died, not every five seconds."""
    look = dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(look, "__defaults__", (0.2,))


def shared_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    real = os.statvfs

    def statvfs(path: Any) -> Any:
        if path == reading.SHARED_MEMORY:
            return SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)
        return real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)


def batches(manifest: Manifest, workers: int = 2) -> Iterator[Batch]:
    numbers = np.arange(40).reshape(10, 4) % len(manifest)
    return read_micro_batches(
        TrainingPictures.of([manifest]),
        numbers,
        size=40,
        augment=NOTHING,
        seeds=numbers,
        workers=workers,
    )


def ends(manifest: Manifest) -> str:
    with pytest.raises(LmkError) as caught:
        list(batches(manifest))
    text = str(caught.value)
    assert text.startswith("workers: a process that reads pictures ") and "--resume" in text
    assert "\n" not in text
    return text


class TestSharedMemory:
    @pytest.mark.parametrize(
        ("free", "workers"), [(51 * MB, 2), (49 * MB, 1), (31 * MB, 1), (29 * MB, 0), (0, 0)]
    )
    def test_as_many_workers_as_there_is_room_for(
        self, monkeypatch: pytest.MonkeyPatch, free: int, workers: int
    ) -> None:
        shared_memory(monkeypatch, free)
        found, note = usable_workers(2, Shape(100, 183, held=1))  # 10.05 MB: 5 of them for two
        assert found == workers
        assert (note is None) == (workers == 2)
        if note is not None:
            assert "50 MB" in note and "--shm-size" in note and f"with {workers or 'none'}" in note

    def test_processes_of_a_run_share_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shared_memory(monkeypatch, 102 * MB)
        assert usable_workers(2, Shape(100, 183, processes=2))[0] == 2
        assert usable_workers(2, Shape(100, 183, processes=3))[0] == 1
        assert usable_workers(2, Shape(100, 183, held=4))[0] == 2
        assert usable_workers(8, Shape(100, 183, held=4))[0] == 3

    def test_systems_without_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reading, "SHARED_MEMORY", reading.SHARED_MEMORY / "none")
        assert usable_workers(5, Shape(1000, 1000)) == (5, None)

    def test_a_run_goes_on_without_workers_and_says_so_once(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Any,
        small: Callable[..., TrainConfig],
        gallery: Manifest,
    ) -> None:
        shared_memory(monkeypatch, 100_000)
        monkeypatch.setattr(dataloader, "_MultiProcessingDataLoaderIter", None)
        said: list[str] = []
        result = train(small(workers=2), [gallery], tmp_path / "out", on_message=said.append)
        assert len(result.epochs) == 3
        assert len(said) == 1 and "reads with none" in said[0]


@pytest.mark.usefixtures("quick")
class TestDeaths:
    @pytest.mark.parametrize("name", ["SIGKILL", "SIGBUS", "SIGTERM"])
    def test_a_signal(self, gallery: Manifest, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        def die(self: Reader, key: tuple[int, int]) -> None:
            signal.signal(getattr(signal, name), signal.SIG_DFL) if name != "SIGKILL" else None
            os.kill(os.getpid(), getattr(signal, name))

        monkeypatch.setattr(Reader, "__getitem__", die)
        assert f"was killed by {name}" in ends(gallery)

    def test_one_that_was_killed_from_outside(self, gallery: Manifest) -> None:
        coming = batches(gallery)
        next(coming)
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)
        with pytest.raises(LmkError, match="SIGKILL, most likely by the system for lack of memory"):
            list(coming)

    def test_one_that_is_killed_while_it_holds_a_lock(
        self, gallery: Manifest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Workers look at torch's event for every batch, and those of Python have a lock."""

        real = reading._Flag.is_set

        def is_set(self: Any) -> bool:
            if multiprocessing.parent_process() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            assert not isinstance(self, Event), "waits for a lock that a dead worker holds"
            return real(self)

        for kind in (Event, reading._Flag):
            monkeypatch.setattr(kind, "is_set", is_set)
        assert "was killed by SIGKILL" in ends(gallery)

    def test_an_exit(self, gallery: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Reader, "__getitem__", lambda self, key: os._exit(3))
        assert "ended with code 3" in ends(gallery)

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (ValueError("of\nsome kind"), "some kind"),
            (MemoryError(), "MemoryError"),
            (OSError(5, "Input/output error"), "Input/output error"),
            (LmkError("is odd", where="a.jpg"), "a.jpg: is odd"),
        ],
    )
    def test_an_exception(
        self, gallery: Manifest, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
    ) -> None:
        def fail(self: Reader, key: tuple[int, int]) -> None:
            raise error

        monkeypatch.setattr(Reader, "__getitem__", fail)
        assert "failed: " in (found := ends(gallery)) and text in found

    def test_no_shared_memory_left(
        self, gallery: Manifest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(self: torch.Tensor) -> None:
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device")

        monkeypatch.setattr(torch.Tensor, "share_memory_", full)
        assert "No space left on device" in ends(gallery)

    def test_a_batch_that_cannot_be_passed_on(
        self, gallery: Manifest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It fails in a thread of the worker, which torch would let the run wait for."""
        real = reading._collate

        def odd(items: Any) -> Any:
            batch = real(items)
            object.__setattr__(batch, "numbers", lambda: None)  # no pickle takes it
            return batch

        monkeypatch.setattr(reading, "_collate", odd)
        assert "could not pass on a batch" in ends(gallery)
