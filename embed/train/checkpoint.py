"""Checkpoints: safetensors files with JSON in the header, written atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lmk.embed.data.images import Skipped
from lmk.embed.errors import CheckpointDamaged
from lmk.embed.files import write_whole
from lmk.embed.train.devices import World

_HEADER, _DIGEST = "lmk", "sha256"  # in the file's own header


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors by name and a JSON object, with the SHA-256 of both.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    write_whole(path, save(plain, {_HEADER: text, _DIGEST: _sha256(plain, text)}))


def load_checkpoint(
    path: Path, *, remedy: str = "remove it, and run the same command again: it is made anew"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the JSON object of a checkpoint.

    A checkpoint of an early release has no digest and is read without a check.

    Args:
        path: the file.
        remedy: the remedy of the error.

    Raises:
        CheckpointDamaged: the file has changed since it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digest = header.get(_DIGEST)
        if header.keys() > {_HEADER} and digest != _sha256(tensors, header[_HEADER]):
            raise CheckpointDamaged(
                "the checkpoint has changed since it was written", where=path, remedy=remedy
            )
        return tensors, json.loads(header[_HEADER])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"is not a checkpoint ({type(error).__name__})"
        raise CheckpointDamaged(what, where=path, remedy=remedy) from error


def computed_once(
    path: Path, world: World, compute: Callable[[], tuple[Mapping[str, Tensor], Sequence[Skipped]]]
) -> tuple[dict[str, Tensor], tuple[Skipped, ...]]:
    """Returns tensors and unreadable pictures that the first process computes and stores.

    Args:
        path: the checkpoint that stores the result. A stored result is not computed again.
        world: the processes, which all return the same result.
        compute: computes the result.
    """
    if world.first and not path.exists():
        tensors, skipped = compute()
        save_checkpoint(path, tensors, {"skipped": [[each.path, each.reason] for each in skipped]})
    world.wait()
    stored, state = load_checkpoint(path)
    return stored, tuple(Skipped(file, reason) for file, reason in state["skipped"])


def _sha256(tensors: Mapping[str, Tensor], text: str) -> str:
    """Returns the SHA-256 of tensors (name, type, shape, content) and a text."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # also of bfloat16
    return digest.hexdigest()


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with `prefix` and a dot before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors whose names have the prefix, without it; the inverse of `prefixed`."""
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the state of an optimizer: momenta and counts by "PARAMETER/NAME".

    Learning rates and other settings are left out, as the config and the step determine them.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{number}/{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores the state that optimizer_tensors returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
