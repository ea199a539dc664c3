"""Learning tags: what a run leaves, one batch however it is cut, going on exactly, other heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from lmk.embed.data.manifest import Manifest, Row
from lmk.embed.errors import ManifestError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import feature_stream
from lmk.embed.tags.head import TagHead, load_tag_head
from lmk.embed.train.config import TrainConfig, training_config
from lmk.embed.train.devices import World
from lmk.embed.train.log import read_log
from lmk.embed.train.loop import train
from lmk.embed.train.network import start_network, starts_with_neck
from lmk.embed.train.tag_task import TagTask
from lmk.embed.train.task_config import Tags

Small = Callable[..., TrainConfig]
PLAIN = {"model": {"backbone": "test_resnet", "neck": None}, "best_by": "tag_map"}
LOSSES: dict[str, dict[str, Any]] = {
    "bce": {"kind": "bce"},
    "tencent": {"kind": "tencent", "negatives": 1, "absent": 0.5},
    "softmax": {"kind": "softmax"},
}


def of_tags(loss: str = "bce", **settings: Any) -> dict[str, Any]:
    return PLAIN | {"tasks": [{"task": "tags", "loss": LOSSES[loss], **settings}]}


@pytest.fixture(scope="session")
def tagged(gallery: Manifest) -> Manifest:
    """20 pictures: the place, "even" for some places, "rare" for one picture; one without tags."""
    rows = []
    for i, row in enumerate(gallery.rows):
        place = row.labels[0]
        tags = (place, "even") if int(place[-1]) % 2 == 0 else (place,)
        rows.append(Row(row.id, row.path, () if i == 7 else (*tags, "rare") if i == 0 else tags))
    return Manifest(gallery.root, tuple(rows))


class Stopped(Exception):
    pass


def stop_after(steps: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done == steps:
            raise Stopped

    return progress


def losses(folder: Path) -> list[float]:
    return [float(row["tags"]) for row in read_log(folder / "training" / "steps.csv")]


def probabilities(folder: Path, manifest: Manifest) -> tuple[NDArray[np.float32], TagHead]:
    embedder = Embedder.load(folder)
    head = load_tag_head(folder, embedder.feature_fingerprint)
    parts = [head.probabilities(rows) for _, rows, _ in feature_stream(manifest, embedder, batch=6)]
    return np.concatenate(parts), head


class TestWhatItLeaves:
    @pytest.mark.parametrize("loss", ["bce", "softmax"])
    def test_an_embedder_that_knows_the_tags(
        self, loss: str, small: Small, tagged: Manifest, tmp_path: Path
    ) -> None:
        config = small(
            **of_tags(loss, unit=loss == "bce"),
            stages=[{"epochs": 8, "size": 64}],
            optimizer={"kind": "adamw", "lr": 0.003},
            ema=0.8,
        )
        train(config, [tagged], tmp_path / "run", device="cpu")
        values = losses(tmp_path / "run")
        assert np.mean(values[-4:]) < 0.6 * np.mean(values[:4])
        found, head = probabilities(tmp_path / "run", tagged)
        names = sorted({name for row in tagged.rows for name in row.labels})
        assert head.names == tuple(names) and head.unit == (loss == "bce")
        truth = np.array([[name in row.labels for name in names] for row in tagged.rows])
        even = names.index("even")
        assert found[truth[:, even], even].mean() > 1.5 * found[~truth[:, even], even].mean()
        if loss == "softmax":
            np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)

    @pytest.mark.parametrize("unit", [False, True])
    def test_the_head_is_the_one_that_was_learnt(self, unit: bool, tagged: Manifest) -> None:
        labels = [row.labels for row in tagged.rows]
        task = TagTask(Tags(task="tags", unit=unit), labels, 12, 0)
        head = task.published(task.head.weight, task.head.bias, "print")
        features = torch.randn(9, 12, generator=torch.Generator().manual_seed(0)) * 3
        rows = np.arange(9)
        targets = task.targets(rows)
        p = head.probabilities(features.numpy()).astype(np.float64)
        y = targets.numpy()
        expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=1)
        np.testing.assert_allclose(task(features, targets).detach(), expected, rtol=1e-4)

    def test_tags_start_as_likely_as_they_are(self, tagged: Manifest) -> None:
        labels = [row.labels for row in tagged.rows]
        task = TagTask(Tags(task="tags"), labels, 12, 0)
        chance = torch.sigmoid(task.head.bias.detach()).numpy()
        counts = [sum(name in own for own in labels) for name in task.names]
        np.testing.assert_allclose(chance, (np.array(counts) + 0.5) / 21, rtol=1e-5)
        task = TagTask(Tags(task="tags", unlabelled="skip"), labels, 12, 0)  # one has no tags
        chance = torch.sigmoid(task.head.bias.detach()).numpy()
        np.testing.assert_allclose(chance, (np.array(counts) + 0.5) / 20, rtol=1e-5)

    def test_probabilities_start_as_likely_as_they_are_on_average(self) -> None:
        labels = [("a:0.9",)] * 10 + [("b:0.9",)] * 10 + [("a:0.1", "b:0.1")] * 80
        for unlabelled in ("negative", "skip"):
            settings = {"task": "tags", "weighted": True, "positive_from": None}
            task = TagTask(
                Tags.model_validate(settings | {"unlabelled": unlabelled}), labels, 12, 0
            )
            chance = torch.sigmoid(task.head.bias.detach()).numpy()
            np.testing.assert_allclose(chance, (17 + 0.5) / 101, rtol=1e-5)

    def test_labels_without_weights_are_a_yes_from_any_weight_on(self, tagged: Manifest) -> None:
        labels = [row.labels for row in tagged.rows]
        strict, plain = (
            TagTask(Tags(task="tags", positive_from=least), labels, 12, 0) for least in (2.0, 0.7)
        )
        assert strict.names == plain.names

    def test_a_validation_sees_the_tags_and_the_best_epoch_is_kept(
        self, small: Small, tagged: Manifest, tmp_path: Path
    ) -> None:
        seen: list[bytes] = []
        figures = [0.2, 0.9, 0.4]

        def validate(embedder: Embedder, tags: TagHead | None) -> dict[str, float]:
            assert tags is not None and tags.feature_fingerprint == embedder.feature_fingerprint
            seen.append(tags.weight.tobytes())
            return {"tag_map": figures[len(seen) - 1]}

        result = train(
            small(**of_tags()), [tagged], tmp_path / "run", device="cpu", validate=validate
        )
        assert result.best == 2 and len(set(seen)) == 3
        assert load_tag_head(tmp_path / "run").weight.tobytes() == seen[1]
        assert [row["tag_map"] for row in result.epochs] == ["0.2000", "0.9000", "0.4000"]
        assert "gap" not in result.epochs[0]


@pytest.mark.parametrize("loss", ["bce", "tencent", "softmax"])
def test_micro_batches_that_are_accumulated_are_one_large_batch(
    loss: str, small: Small, tagged: Manifest, tmp_path: Path
) -> None:
    """8 micro-batches of 1 are 1 of 8: the state and chance of Tencent's loss are the step's."""
    common = {**of_tags(loss), "freeze_norms": True, "stages": [{"epochs": 2, "size": 48}]}
    train(small(**common, batch=8), [tagged], tmp_path / "one", device="cpu")
    train(small(**common, batch=1, accumulate=8), [tagged], tmp_path / "eight", device="cpu")
    assert losses(tmp_path / "eight") == pytest.approx(losses(tmp_path / "one"), rel=2e-4)
    one, eight = (
        load_file(tmp_path / f / "training" / "last.safetensors") for f in ("one", "eight")
    )
    for name in one:
        torch.testing.assert_close(eight[name], one[name], rtol=2e-3, atol=2e-5)


def test_a_run_that_is_stopped_goes_on_as_if_it_never_was(
    small: Small, tagged: Manifest, tmp_path: Path
) -> None:
    repeat = {"phi": "sqrt", "threshold": 0.3}
    config = small(**of_tags("tencent", repeat=repeat), ema=0.9, save_minutes=0)
    train(config, [tagged], tmp_path / "whole", device="cpu")
    parts = tmp_path / "parts"
    for steps in (2, 7):
        with pytest.raises(Stopped):
            train(config, [tagged], parts, resume=True, device="cpu", on_progress=stop_after(steps))
    train(config, [tagged], parts, resume=True, device="cpu")
    assert losses(parts) == losses(tmp_path / "whole")
    for name in ("weights.safetensors", "tags.safetensors", "training/last.safetensors"):
        ended = [load_file(folder / name) for folder in (tmp_path / "whole", parts)]
        assert ended[0].keys() == ended[1].keys()
        assert all(torch.equal(ended[0][key], ended[1][key]) for key in ended[0]), name
    assert ended[0]["tasks.0._tencent.run"].max() > 1


@dataclass(frozen=True)
class _Others(World):
    """A process among others that are not there: what they would say is given."""

    said: Sequence[Any] = ()

    def gather(self, value: Any) -> list[Any]:
        assert np.array_equal(value, self.said[self.rank])
        return list(self.said)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_processes_see_the_state_of_the_whole_step(form: str, tagged: Manifest) -> None:
    """Two processes of two micro-batches of 3 pictures are one of two of 6."""
    labels = [row.labels for row in tagged.rows]
    settings = Tags.model_validate(
        {"task": "tags", "loss": {"kind": "tencent", "form": form, "absent": 0.5}}
    )
    order = (
        np.random.default_rng(0).permutation(20)[:12].reshape(2, 2, 3)
    )  # micro-batch, rank, picture
    alone = TagTask(settings, labels, 4, 5)
    pair = [TagTask(settings, labels, 4, 5) for _ in range(2)]
    for number in range(4):
        whole = alone.step_targets(number, list(order.reshape(2, 6)), World())
        said = [order[:, rank] for rank in (0, 1)]
        for rank, task in enumerate(pair):
            own = task.step_targets(number, list(said[rank]), _Others(rank, 2, said=said))
            for i in range(2):
                assert torch.equal(own[i], whole[i][rank * 3 : rank * 3 + 3])
        assert torch.equal(pair[0]._tencent.run, alone._tencent.run)
        order = np.roll(order, 1).reshape(order.shape)


class TestPicturesWithoutTags:
    LABELS = (("a", "b"), (), ("b",))

    def weights(self, loss: str, unlabelled: str) -> tuple[list[float], torch.Tensor]:
        settings = Tags.model_validate(
            {"task": "tags", "loss": LOSSES[loss], "unlabelled": unlabelled}
        )
        task = TagTask(settings, self.LABELS, 4, 0)
        (targets,) = task.step_targets(0, [np.arange(3)], World())
        return task.weights(targets).tolist(), targets

    @pytest.mark.parametrize("loss", ["bce", "tencent"])
    def test_have_none_of_them_or_are_left_out(self, loss: str) -> None:
        assert self.weights(loss, "negative")[0] == [1, 1, 1]
        assert self.weights(loss, "skip")[0] == [1, 0, 1]

    def test_teach_softmax_nothing(self) -> None:
        assert self.weights("softmax", "negative")[0] == [1, 0, 1]

    def test_left_out_they_are_no_negatives_of_tencents_loss(self) -> None:
        for unlabelled, kept in (("negative", True), ("skip", False)):
            _, targets = self.weights("tencent", unlabelled)
            assert (targets[1, 1] > 0).any() == kept  # the weights of its terms


class TestSampling:
    def shown(self, tagged: Manifest, sampling: str, **settings: Any) -> NDArray[np.float64]:
        task = TagTask(Tags(task="tags", **settings), [row.labels for row in tagged.rows], 4, 0)
        return task.repeats(sampling)

    def test_pictures_of_rare_tags_are_shown_more_often(self, tagged: Manifest) -> None:
        repeat = {"phi": "uniform", "threshold": 0.2}
        repeats = self.shown(tagged, "natural", repeat=repeat)
        assert repeats[0] == pytest.approx(4)  # "rare": 1 of 20
        assert repeats[7] == 1 and repeats[1] == pytest.approx(1)

    def test_tags_in_turn(self, tagged: Manifest) -> None:
        repeats = self.shown(tagged, "balanced")
        assert repeats[0] == repeats.max() and repeats[7] == 1

    def test_the_loop_asks_the_task(self, small: Small, tagged: Manifest, tmp_path: Path) -> None:
        repeat = {"phi": "uniform", "threshold": 0.2}
        config = small(**of_tags(repeat=repeat), stages=[{"epochs": 2, "size": 48}])
        train(config, [tagged], tmp_path / "run", device="cpu")
        pictures = round(self.shown(tagged, "natural", repeat=repeat).sum())
        assert len(losses(tmp_path / "run")) == 2 * -(-pictures // 6)


class TestOtherHeads:
    """model.weights = an embedder's folder: the backbone goes on, what follows is new."""

    def test_from_tags_to_landmarks(
        self, small: Small, tagged: Manifest, gallery: Manifest, tmp_path: Path
    ) -> None:
        plain = of_tags()
        plain["model"] = {"backbone": "test_resnet", "neck": None, "pooling": "avg"}
        train(small(**plain), [tagged], tmp_path / "tags", device="cpu")
        start = load_file(tmp_path / "tags" / "weights.safetensors")
        after = small(
            model={"backbone": "test_resnet", "neck": 16, "weights": str(tmp_path / "tags")}
        )
        assert not starts_with_neck(after)
        network = start_network(after).state_dict()
        for name, tensor in start.items():
            assert torch.equal(network[name], tensor), name
        assert network["pool.p"].item() == 3 and network["neck.0.weight"].shape[0] == 16
        train(after, [gallery], tmp_path / "landmarks", device="cpu")
        assert Embedder.load(tmp_path / "landmarks").dim == 16
        assert not (tmp_path / "landmarks" / "tags.safetensors").exists()

    def test_from_landmarks_to_other_tags(
        self, small: Small, tagged: Manifest, gallery: Manifest, tmp_path: Path
    ) -> None:
        one_epoch = {"stages": [{"epochs": 1, "size": 48}], "schedule": {"warmup": 0}}
        train(small(**one_epoch), [gallery], tmp_path / "landmarks", device="cpu")
        settings = of_tags(least=3)
        settings["model"] = PLAIN["model"] | {"weights": str(tmp_path / "landmarks")}
        start = load_file(tmp_path / "landmarks" / "weights.safetensors")
        network = start_network(small(**settings)).state_dict()
        assert not any(name.startswith("neck.") for name in network)
        assert all(torch.equal(start[name], tensor) for name, tensor in network.items())
        train(small(**settings, **one_epoch), [tagged], tmp_path / "tags", device="cpu")
        assert "rare" not in load_tag_head(tmp_path / "tags").names


class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (["best_by=gap"], "best_by 'tag_map' is for a task of tags, which takes no other"),
            (["keep_start=0.5"], "keep_start would take the network away"),
            (["sampling=balanced"], "give one of sampling and repeat"),
            (
                ['groups={"classes": 32, "micro_batches": 2}'],
                "groups are of landmarks, not of tags",
            ),
            (['tasks.1={"task": "classes"}'], "changes no setting"),
            (["tasks.0.loss.kind=hinge"], "tasks.0.loss: "),
            (["tasks.0.loss.kind=tencent", "tasks.0.loss.gamma=1"], "tasks.0.loss.gamma: unknown"),
            (['tasks.0.loss={"kind": "tencent", "form": "code", "decay": 0.5}'], "of form 'paper'"),
        ],
    )
    def test_settings(self, changes: list[str], message: str) -> None:
        with pytest.raises(UsageError) as caught:
            training_config("tags-lite1", changes)
        assert message in str(caught.value)

    def test_landmarks_beside_tags(self, small: Small) -> None:
        for tasks in (
            [{"task": "tags"}, {"task": "classes"}],
            [{"task": "tags"}, {"task": "tags"}],
            [{"task": "contrast"}, {"task": "tags"}],
        ):
            with pytest.raises(ValueError, match="a task of tags comes first"):
                small(tasks=tasks, best_by="tag_map")
        with pytest.raises(ValueError, match="is for a task of tags"):
            small(best_by="tag_map")

    def test_no_tags(self, small: Small, bank: Manifest, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="0 tags have 1 pictures or more"):
            train(small(**of_tags()), [bank], tmp_path / "run", device="cpu")
