"""Reads weights files without running their code, and loads the weights into a network."""

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
_COUNTER = "num_batches_tracked"  # of BatchNorm; older frameworks lack it, and no result needs it


def read_state(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a weights file by name, without running code of the file.

    Raises:
        ModelError: the file does not exist, or holds no tensors by name.
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
    """Copies weights by name into a network; an error leaves the network unchanged.

    BatchNorm's counters of batches may be missing or superfluous, as no result depends on them. All
    names may begin with "module.", "model." or "backbone." if only one such prefix fits.

    Args:
        network: changed in place.
        given: tensors by name; they are converted to the types of the network.
        where: source of the tensors, for the error message.
        others: prefixes of names that may be superfluous. None allows all names outside the modules
            of the network.
        what, remedy: parts of the error message.

    Raises:
        ModelError: weights are missing, superfluous or of another shape, or fit with two prefixes.
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
    """Returns the tensors by name of the content of a file, or None if it has no names."""
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
    """Returns the weights without the prefix of wrappers, if exactly one prefix fits."""
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
    """Returns the names of tensors that the network lacks and that `others` does not allow."""
    buffers = {name for name, _ in network.named_buffers()}  # some are in no state dict
    unknown = [n for n in given if n not in own and n not in buffers and not n.endswith(_COUNTER)]
    if others is not None:
        return [name for name in unknown if not name.startswith(tuple(others))]
    parts = {name.split(".")[0] for name in own}
    return [name for name in unknown if name.split(".")[0] in parts]
