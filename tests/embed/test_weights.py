"""Weights of other programs go into a network where they fit, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from lmk.embed.errors import ModelError
from lmk.embed.network.backbone import build_backbone
from lmk.embed.weights import load_weights, read_state

State = dict[str, torch.Tensor]
COUNTER = "num_batches_tracked"


@pytest.fixture(scope="module")
def state() -> State:
    """The weights of a test_resnet, classifier included, with no two equal numbers' origin."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return dict(timm.create_model("test_resnet").state_dict())


def without_counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}


def loaded(state: State, path: Path) -> State:
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return dict(build_backbone("test_resnet", path).state_dict())


def refused(state: State, path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        loaded(state, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(found: State, state: State) -> None:
    assert found and not any(name.startswith("fc.") for name in found)
    for name, tensor in found.items():
        assert name.endswith(COUNTER) or torch.equal(tensor, state[name]), name


def test_counters_of_batches_may_be_missing(state: State, tmp_path: Path) -> None:
    assert any(name.endswith(COUNTER) for name in state)
    assert_same(loaded(without_counters(state), tmp_path / "w.safetensors"), state)


def test_counters_may_be_left_over_or_of_another_shape(state: State, tmp_path: Path) -> None:
    more = {n: t.reshape(1) if n.endswith(COUNTER) else t for n, t in state.items()}
    more["conv1.0." + COUNTER] = torch.tensor(5)
    assert_same(loaded(more, tmp_path / "w.safetensors"), state)


@pytest.mark.parametrize("start", ["module.", "model.", "backbone.", "module.model."])
def test_wrappers_names_are_left_out(state: State, tmp_path: Path, start: str) -> None:
    wrapped = {start + name: tensor for name, tensor in without_counters(state).items()}
    wrapped["criterion.weight"] = torch.zeros(2)
    assert_same(loaded(wrapped, tmp_path / "w.safetensors"), state)


def test_two_networks_in_a_file_are_refused(state: State, tmp_path: Path) -> None:
    both = {start + n: t for start in ("model.", "module.") for n, t in state.items()}
    assert "under model. and module." in refused(both, tmp_path / "w.safetensors")


def test_what_is_missing_is_named(state: State, tmp_path: Path) -> None:
    name = next(name for name in state if name.endswith("running_var"))
    less = {n: t for n, t in state.items() if n != name}
    text = refused(less, tmp_path / "w.safetensors")
    assert "1 tensors are missing" in text and name in text and "--model" in text


def test_what_belongs_to_another_network_is_named(state: State, tmp_path: Path) -> None:
    """Left out in silence, the network would compute something else."""
    more = state | {"layer1.0.se.fc1.weight": torch.zeros(3)}
    text = refused(more, tmp_path / "w.safetensors")
    assert "1 belong to no part of it, the first is layer1.0.se.fc1.weight" in text


def test_a_classifier_inside_a_part_is_left_out(tmp_path: Path) -> None:
    """ConvNeXt's classifier is head.fc, and head.norm is a part of the network."""
    full = timm.create_model("test_convnext")
    save_file(full.state_dict(), tmp_path / "w.safetensors")
    backbone = build_backbone("test_convnext", tmp_path / "w.safetensors")
    own = full.state_dict()
    assert any(name.startswith("head.") for name in backbone.state_dict())
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, own[name])


@pytest.mark.parametrize("inside", ["state_dict", "model", "model_state_dict"])
def test_where_trainings_keep_their_weights(state: State, tmp_path: Path, inside: str) -> None:
    torch.save({inside: without_counters(state), "epoch": 3}, tmp_path / "w.pth")
    assert_same(dict(build_backbone("test_resnet", tmp_path / "w.pth").state_dict()), state)


def test_nothing_is_copied_where_something_does_not_fit() -> None:
    network = torch.nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError, match="1 have another shape"):
        load_weights(
            network, {"weight": torch.ones(2, 2), "bias": torch.ones(3)}, "here", remedy="none"
        )
    assert all(torch.equal(network.state_dict()[name], t) for name, t in before.items())


def test_reading_keeps_tensors_alone(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "epoch": 3}, tmp_path / "w.pth")
    assert list(read_state(tmp_path / "w.pth")) == ["a"]
