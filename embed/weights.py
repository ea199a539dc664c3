"""Weights files: reading them without running code, and putting them into a network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmk.embed.errors import ModelError
from lmk.embed.memory_errors import raise_system_cause

if TYPE_CHECKING:
    from torch import Tensor, nn

_PLAIN = "give a .safetensors file or a plain torch state dict"
_INSIDE = ("state_dict", "model_state_dict", "model")  # where trainings keep their weights
_WRAPPERS = ("module.", "model.", "backbone.")  # what DDP, Lightning and others put before names
_COUNTER = "num_batches_tracked"  # of BatchNorm: older frameworks lack it; no result needs it


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, read without running any code of it.

    Raises:
        ModelError: there is no such file, or it holds no tensors by name.
    """
    if not path.is_file():
        raise ModelError("no such weights file", where=path, remedy="check the spelling")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise_system_cause(error)
        raise ModelError(
            f"cannot be read as weights ({type(error).__name__})", where=path, remedy=_PLAIN
        ) from error
    tensors = _tensors(state)
    if tensors is None:
        raise ModelError("holds no weights by name", where=path, remedy=_PLAIN)
    return tensors


def load_weights(
    network: nn.Module,
    given: Mapping[str, Tensor],
    where: object,
    *,
    others: Collection[str] | None = (),
    what: str = "does not fit the model",
    remedy: str,
) -> None:
    """Copies weights by name into a network, all of it or nothing.

    BatchNorm's counters of batches may be missing or left over: they move no result. Names may
    begin with "module.", "model." or "backbone." where the rest fits in one way alone.

    Args:
        network: changed in place.
        given: tensors by name; the network's own types are kept.
        where: what they come from, for the error.
        others: beginnings of names that may be left over; None allows all outside of the
            network's own modules.
        what, remedy: for the error.

    Raises:
        ModelError: weights are missing, left over or of another shape, or names fit in two ways.
    """
    own = network.state_dict()
    given = _renamed(own, given, where)
    needed = [name for name in own if not name.endswith(_COUNTER)]
    missing = [name for name in needed if name not in given]
    wrong = [name for name in needed if name in given and given[name].shape != own[name].shape]
    left = _left_over(network, own, given, others)
    if missing or wrong or left:
        counts = f"{len(missing)} tensors are missing, {len(wrong)} have another shape"
        raise ModelError(
            f"{what}: {counts}, {len(left)} belong to no part of it, the first is "
            f"{(missing + wrong + left)[0]}",
            where=where,
            remedy=remedy,
        )
    counters = own.keys() - set(needed)
    network.load_state_dict(
        {name: given[name] for name in needed}
        | {name: given.get(name, own[name]).reshape(own[name].shape) for name in counters}
    )


def _tensors(state: Any) -> dict[str, Tensor] | None:
    """The tensors by name of what a file held; None where there are none."""
    import torch

    if not isinstance(state, dict):
        return None
    inner = next((state[name] for name in _INSIDE if name in state), state)
    if not isinstance(inner, dict):
        return None
    return {name: part for name, part in inner.items() if isinstance(part, torch.Tensor)}


def _renamed(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: object
) -> Mapping[str, Tensor]:
    """The weights without the wrappers' names, where one way to leave these out fits."""
    needed = {name for name in own if not name.endswith(_COUNTER)}
    if needed <= given.keys():
        return given
    fitting = {}
    for count in (1, 2):
        for parts in product(_WRAPPERS, repeat=count):
            start = "".join(parts)
            inner = {n.removeprefix(start): t for n, t in given.items() if n.startswith(start)}
            if needed <= inner.keys():
                fitting[start] = inner
    if len(fitting) > 1:
        what = f"holds weights for this model under {' and '.join(sorted(fitting))}"
        remedy = "give a file with one of them"
        raise ModelError(what, where=where, remedy=remedy)
    return next(iter(fitting.values()), given)


def _left_over(
    network: nn.Module,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    others: Collection[str] | None,
) -> list[str]:
    """The names given that the network lacks and that may not be left out."""
    buffers = {name for name, _ in network.named_buffers()}  # some are in no state dict
    found = [n for n in given if n not in own and n not in buffers and not n.endswith(_COUNTER)]
    if others is not None:
        return [name for name in found if not name.startswith(tuple(others))]
    parts = {name.split(".")[0] for name in own}
    return [name for name in found if name.split(".")[0] in parts]
