"""Settings: every preset is whole, single values on top, one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from timm.models import is_model

from lmk.embed.errors import UsageError
from lmk.embed.network.config import preset, preset_names
from lmk.embed.train.config import TrainConfig, training_config, training_presets
from lmk.embed.train.network import embedder_config, lr_factor
from lmk.embed.train.task_config import Classes, Tags, TagSoftmax, Tencent


@pytest.mark.parametrize("name", training_presets())
def test_presets(name: str) -> None:
    config = training_config(name)
    assert config.name == name and is_model(config.model.backbone)
    assert config.model.weights.partition(":")[0] in ("none", "package")  # no network unless asked
    plain = config.best_by == "tag_map" or name.startswith("webvision-")  # no retrieval
    assert config.model.neck == (None if plain else 512)


def test_the_recipe_of_2021() -> None:
    """512 px, SGD of .05, decay 1e-4, 10 epochs, batch 64; the rows differ in the network."""
    rows = [name for name in training_presets() if name.startswith("glr2021-")]
    assert len(rows) == 6
    configs = [training_config(name) for name in rows]
    for config in configs:
        assert (config.epochs, config.embedder_size, config.batch) == (10, 512, 64)
        settings = config.optimizer
        assert (settings.kind, settings.lr, settings.weight_decay) == ("sgd", 0.05, 1e-4)
        assert config.tasks == configs[0].tasks
    networks = {
        name.removeprefix("glr2021-"): c.model for name, c in zip(rows, configs, strict=True)
    }
    full, without_gem, plain = (
        networks[name] for name in ("resnext101", "resnext101-gc", "resnext101-plain")
    )
    assert (full.backbone, full.pooling, full.global_context) == ("resnext101_32x4d", "gem", 0.125)
    assert without_gem == full.model_copy(update={"pooling": "avg"})
    assert plain == without_gem.model_copy(update={"global_context": None})


def test_the_recipe_of_tencent_ml_images() -> None:
    """Wu et al. 2019: the rate grows from .01 by 1.297 an epoch to .08, then .1 of it every 25."""
    config = training_config("tencent-ml-images-resnet101")
    assert (config.epochs, config.batch, config.embedder_size) == (60, 4096, 224)
    (task,) = config.tasks
    assert isinstance(task, Tags) and task.least == 101
    assert task.loss == Tencent(kind="tencent", eta=12, decay=0.9, negatives=5, absent=0.1)
    rates = [config.optimizer.lr * lr_factor(config.schedule, epoch, 60) for epoch in range(60)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3)
    assert rates[7] == pytest.approx(0.01 * 1.297**7, rel=1e-3)
    assert rates[8] == rates[24] == 0.08
    assert rates[25] == pytest.approx(0.008) and rates[50] == pytest.approx(0.0008)
    assert lr_factor(config.schedule, 0.99, 60) == lr_factor(
        config.schedule, 0, 60
    )  # a step an epoch


def test_the_recipe_of_webvision() -> None:
    """Yan et al. 2020: classes in turn, steps of 8 times 256 pictures, .01 and .1 of it later."""
    for network, backbone in (("resnext101", "resnext101_32x4d"), ("resnest101", "resnest101e")):
        last, tagged, weighted = (
            training_config(f"webvision-{network}{end}") for end in ("", "-wt", "-lw")
        )
        for config in (last, tagged, weighted):
            assert config.model.backbone == backbone and config.sampling == "balanced"
            assert (config.batch, config.accumulate) == (256, 8)
            assert config.optimizer.lr == 0.01 and config.schedule.milestones == (90,)
        assert isinstance(last.tasks[0], Classes) and last.tasks[0].loss == "softmax"
        assert tagged.tasks[0] == Tags(task="tags", loss=TagSoftmax(kind="softmax"))
        assert weighted.tasks[0] == tagged.tasks[0].model_copy(update={"weighted": True})


def test_a_name_of_both_kinds_is_the_recipe_and_what_it_made() -> None:
    both = set(training_presets()) & set(preset_names())
    assert both == {"landmarks-lite1"}
    recipe, made = training_config("landmarks-lite1"), preset("landmarks-lite1")
    assert made.model_copy(update={"weights": "file"}) == embedder_config(recipe)
    assert all(not name.endswith(".train") for name in preset_names())


def test_a_file_and_single_values(tmp_path: Path) -> None:
    values = {
        "name": "mine",
        "model": {"backbone": "test_resnet"},
        "tasks": [{"task": "classes"}],
        "stages": [{"epochs": 2, "size": 64}, {"epochs": 3, "size": 96}],
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    config = training_config(str(path))
    assert (config.epochs, config.embedder_size) == (5, 96)
    assert [config.size_of(epoch) for epoch in range(5)] == [64, 64, 96, 96, 96]
    with pytest.raises(ValueError, match="no such epoch"):
        config.size_of(5)
    changes = [
        "optimizer.lr=0.5",
        "tasks.0.margin=0.1",
        'model.backbone="resnet18"',
        "name=other",
        "stages.1.epochs=1",
        "ema=0.9",
    ]
    other = training_config(str(path), changes)
    assert other.optimizer.lr == 0.5 and other.name == "other" and other.epochs == 3
    assert other.model.backbone == "resnet18" and other.ema == 0.9
    assert isinstance(other.tasks[0], Classes) and other.tasks[0].margin == 0.1
    assert TrainConfig.model_validate_json(other.model_dump_json()) == other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["optimizer.rate=1"], "gcresnext26: optimizer.rate: unknown key"),
        (["speed=1"], "speed: unknown key"),
        (["tasks.0.loss=hinge"], "tasks.0.loss: Input should be"),
        (["tasks.0.task=moods"], "tasks.0: "),
        (["batch=0"], "batch: Input should be greater"),
        (["schedule.warmup=10"], "10.0 epochs of warm-up leave none of 10"),
        (["tasks.0.loss=softmax"], "dynamic_margin is for arcface and subcenter, not softmax"),
        (["tasks.0.start=means"], "start 'means' is for arcface and cosface, not subcenter"),
        (["model.neck_form=centred"], "a centred neck needs its width"),
        (['groups={"classes": 2, "micro_batches": 3}'], "the groups make a batch of 4, not 64"),
        (
            ['groups={"classes": 2, "micro_batches": 3}', "batch=4", "accumulate=2"],
            "groups.micro_batches must be a multiple of accumulate",
        ),
        (['tasks.0={"task": "repulsion"}', "sampling=natural"], "repulsion needs one task of cla"),
        (['tasks.0={"task": "contrast", "x": 1}'], "gcresnext26: tasks.0.x: unknown key"),
        (['tasks=[{"task": "tags", "positive_from": null}]'], "null needs weighted: true"),
        (["batch"], "--set: 'batch' changes no setting; write KEY=VALUE"),
        (["tasks.9.loss=softmax"], "--set: 'tasks.9.loss=softmax' changes no setting"),
        (["name.x.y=1"], "changes no setting"),
        (["=1"], "changes no setting"),
    ],
)
def test_mistakes(changes: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        training_config("gcresnext26", changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_sampling_by_class_needs_classes() -> None:
    with pytest.raises(UsageError, match="sampling 'balanced' needs a task of classes or tags"):
        training_config("gcresnext26-distil", ["sampling=balanced"])
    with pytest.raises(UsageError, match="feature and relation are both 0"):
        training_config("gcresnext26-distil", ["tasks.0.feature=0", "tasks.0.relation=0"])


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither a training preset \(.*gcresnext26, .*\) nor"):
        training_config("gcresnext27")
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(UsageError, match="is no JSON"):
        training_config(str(path))
    path.write_text("[]")
    with pytest.raises(UsageError, match="holds no settings"):
        training_config(str(path))


def test_repulsion_needs_classes_with_centres() -> None:
    for change in ("loss=softmax", "unlabelled=background"):
        with pytest.raises(UsageError, match="repulsion needs one task of classes, not softmax"):
            training_config(
                "landmarks-lite1",
                ["tasks.1.start=random", "tasks.1.dynamic_margin=null", f"tasks.1.{change}"],
            )


def test_who_needs_a_memory() -> None:
    assert training_config("landmarks-lite1").remembers
    assert not training_config("gcresnext26").remembers
    assert training_config("gcresnext26", ["tasks.0.loss=arcface", "tasks.0.start=means"]).remembers


def test_the_preset_with_global_context_differs_in_nothing_else() -> None:
    plain, other = (training_config(f"landmarks-lite1{end}") for end in ("", "-gc"))
    assert other.model.global_context == 0.125
    model = other.model.model_copy(update={"global_context": None})
    assert other.model_copy(update={"model": model, "name": plain.name}) == plain


def test_old_names_of_settings() -> None:
    """Settings of earlier releases are read; a change by an old name replaces the new one."""
    old = {
        "name": "mine",
        "model": {"backbone": "test_resnet"},
        "tasks": [{"task": "classes", "share": 0.5}],
        "stages": [{"epochs": 2, "size": 64}],
        "groups": {"classes": 2, "pictures": 2, "passes": 6},
        "batch": 4,
    }
    config = TrainConfig.model_validate(old)
    assert config.tasks[0].loss_weight == 0.5 and config.groups is not None
    assert config.groups.micro_batches == 6
    written = config.model_dump(mode="json")
    assert written["tasks"][0]["loss_weight"] == 0.5 and "share" not in written["tasks"][0]
    assert TrainConfig.model_validate(written) == config
    changed = training_config("landmarks-lite1", ["tasks.1.share=0.25", "groups.passes=7"])
    assert changed.tasks[1].loss_weight == 0.25 and changed.groups is not None
    assert changed.groups.micro_batches == 7
    with pytest.raises(ValueError, match="share"):
        TrainConfig.model_validate({**old, "tasks": [{**written["tasks"][0], "share": 1}]})


@pytest.mark.parametrize("change", ["tasks.0.loss_weight=2", "tasks.0.share=2"])
def test_a_change_of_a_file_with_old_names(change: str, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    values = {
        "name": "mine",
        "model": {"backbone": "test_resnet"},
        "tasks": [{"task": "classes", "share": 0.5}],
        "stages": [{"epochs": 2, "size": 64}],
    }
    path.write_text(json.dumps(values))
    assert training_config(str(path), [change]).tasks[0].loss_weight == 2
