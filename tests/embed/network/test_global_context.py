"""Global Context: where it goes, that it starts as the identity, and that it is the paper's."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import GlobalContext

from lmk.embed.errors import ModelError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.backbone import build_backbone, insert_global_context
from lmk.embed.network.build import build_network
from lmk.embed.network.config import EmbedderConfig

BLOCKS = {  # residual blocks of each
    "resnet10t": 4,
    "seresnext26d_32x4d": 8,  # `se` is taken: before the sum then
    "tf_efficientnet_lite0": 9,
    "regnetx_002": 13,
    "test_byobnet": 4,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", BLOCKS)
def test_it_starts_as_the_identity_and_then_learns(name: str) -> None:
    backbone = build_backbone(name, None)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = backbone.forward_features(x)
        blocks = insert_global_context(backbone, 1 / 8)
        backbone.eval()
        assert torch.equal(backbone.forward_features(x), before)
    contexts = [module for module in backbone.modules() if isinstance(module, GlobalContext)]
    assert len(contexts) == blocks == BLOCKS[name]
    backbone.forward_features(x).square().mean().backward()
    for context in contexts:
        assert context.mlp_add.fc2.weight.grad.abs().sum() > 0
        with torch.no_grad():
            context.mlp_add.fc2.weight.normal_(0, 0.1)
    with torch.no_grad():
        assert not torch.allclose(backbone.forward_features(x), before)


def test_in_a_resnext_it_is_what_timm_builds() -> None:
    timms = timm.create_model(
        "resnext50_32x4d", num_classes=0, block_args={"attn_layer": "gca"}
    ).eval()
    ours = build_backbone("resnext50_32x4d", None)
    assert insert_global_context(ours, 1 / 8) == 16
    ours.load_state_dict(timms.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval().forward_features(x), timms.forward_features(x))


def test_the_formula() -> None:
    """x + W2 ReLU(LN(W1 c)), c the mean of x weighted by softmax(w x): in numpy."""
    backbone = build_backbone("test_resnet", None)
    insert_global_context(backbone, 1 / 4)
    context = next(module for module in backbone.modules() if isinstance(module, GlobalContext))
    width = context.conv_attn.in_channels
    x = torch.randn(2, width, 5, 7)
    with torch.no_grad():
        context.mlp_add.fc2.weight.normal_()
        got = context(x).numpy()
    w = {name: part.detach().double().numpy() for name, part in context.named_parameters()}
    maps = x.double().numpy().reshape(2, width, 35)
    scores = np.einsum("c,ncs->ns", w["conv_attn.weight"].ravel(), maps) + w["conv_attn.bias"]
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    mean = np.einsum("ncs,ns->nc", maps, shares)
    inner = mean @ w["mlp_add.fc1.weight"][:, :, 0, 0].T + w["mlp_add.fc1.bias"]
    assert inner.shape[1] == width // 4
    inner = (inner - inner.mean(1, keepdims=True)) / np.sqrt(inner.var(1, keepdims=True) + 1e-6)
    inner = np.maximum(inner * w["mlp_add.norm.weight"] + w["mlp_add.norm.bias"], 0)
    added = inner @ w["mlp_add.fc2.weight"][:, :, 0, 0].T + w["mlp_add.fc2.bias"]
    np.testing.assert_allclose(
        got, (maps + added[:, :, None]).reshape(got.shape), rtol=1e-4, atol=1e-4
    )


def test_a_backbone_with_its_own_blocks_starts_with_the_identity() -> None:
    backbone = build_backbone("gcresnext26ts", None)
    contexts = [module for module in backbone.modules() if isinstance(module, GlobalContext)]
    assert contexts
    for context in contexts:
        x = torch.randn(1, context.conv_attn.in_channels, 3, 3)
        assert torch.equal(context.eval()(x), x)
    with pytest.raises(ModelError, match="of its own; leave out global_context"):
        insert_global_context(backbone, 1 / 8)


@pytest.mark.parametrize("name", ["test_vit", "densenet121", "test_convnext"])
def test_a_network_without_such_blocks_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no residual blocks"):
        insert_global_context(build_backbone(name, None), 1 / 8)


class TestEmbedder:
    def test_its_folder_keeps_the_blocks(self, tiny: Embedder, tmp_path) -> None:
        """Weights of the plain network give the same vectors; the folder holds the blocks."""
        config = tiny.config.model_copy(update={"global_context": 0.25})
        network = tiny.network()
        plain = network.backbone.state_dict()
        save_file(plain, tmp_path / "plain.safetensors")
        with_blocks = build_network(config, tmp_path / "plain.safetensors")
        pictures = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
        with torch.no_grad():
            assert torch.equal(with_blocks(pictures), network(pictures))
        saved = Embedder.of(config, with_blocks)
        assert saved.fingerprint != tiny.fingerprint
        folder = tmp_path / "embedder"
        folder.mkdir()
        saved.save(folder)
        loaded = Embedder.load(folder)
        assert loaded.fingerprint == saved.fingerprint
        with torch.no_grad():
            assert torch.equal(loaded.network()(pictures), network(pictures))

    @pytest.mark.parametrize(
        ("name", "fingerprint"),
        [
            ("landmarks-lite1", "f3f13f452f72a1fcae1f67901d7b604e97e0241944be48eab22ff477eb55ba4c"),
            ("lite0", "254ef479438a14ab2e5e879352b75962f998eaabf41ccb0315062681e629679f"),
            ("lite1", "6c7636c17aa7e6201360338c7bb9fb573bf0e4dd0b6f897cce8286264a675f07"),
        ],
    )
    def test_the_released_presets_keep_their_fingerprints(
        self, name: str, fingerprint: str
    ) -> None:
        """Indexes that people have built stay valid when settings are added."""
        assert Embedder.named(name).fingerprint == fingerprint


def test_settings_that_move_vectors_count() -> None:
    base = EmbedderConfig(
        name="a",
        backbone="b",
        weights="file",
        size=64,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        gem_p=3,
        neck=8,
    )
    others = [
        base.model_copy(update=change)
        for change in ({"pooling": "avg"}, {"neck_activation": None}, {"global_context": 0.25})
    ]
    moving = [str(sorted(config.moving().items())) for config in (base, *others)]
    assert len(set(moving)) == 4
    assert set(base.moving()) == {"backbone", "size", "mean", "std", "gem_p", "neck"}
