"""Thresholds and relations of tags, stored as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lmk.embed.checksums import read_checksums, require_unchanged, write_with_checksum
from lmk.embed.errors import GalleryError, ModelError, UsageError
from lmk.embed.tables.label_text import nfc
from lmk.embed.tags.hierarchy import RelationGraph
from lmk.index.catalog.settings import read_setting
from lmk.index.gallery.gallery import Gallery

DEFAULT = 0.5
THRESHOLDS_FILE = "tag_thresholds.json"  # name of the file in an embedder's folder
# Settings of a gallery with thresholds: for votes of its pictures, and for tags of its embedder.
VOTES_SETTING, HEAD_SETTING = "tag thresholds", "tag thresholds of the embedder"


class TagThreshold(BaseModel):
    """The threshold of one tag.

    Attributes:
        value: the lowest score that assigns the tag. None if no threshold reached the required
            precision; the tag is then assigned only if another tag implies it.
        pictures: number of pictures with the tag in the data of the fit. If 0, `value` is the
            default.
        precision, recall: precision and recall on the data of the fit, with the implied tags; None
            if no picture had the tag.
        reached: True if recall, and precision with the confidence, met the requirements.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float | None
    pictures: int = Field(ge=0)
    precision: float | None = Field(default=None, ge=0, le=1)
    recall: float | None = Field(default=None, ge=0, le=1)
    reached: bool = False

    @model_validator(mode="after")
    def _known(self) -> TagThreshold:
        unknown = self.precision is None or self.recall is None
        if unknown != (self.pictures == 0) or (self.reached and not self.recall):
            raise ValueError("precision and recall are of pictures, and reached by giving the tag")
        return self


class TagThresholds(BaseModel):
    """Thresholds of a tagger's tags.

    Attributes:
        min_precision, min_recall: the required values for each tag; 0 for no requirement.
        confidence: the confidence that other pictures reach the precision; None for no confidence.
        tags: the thresholds by tag. Other tags have the default.
        parents: the direct parents of each tag (RelationGraph.parents).
        tagger: the fingerprint of the tagger (Tagger.fingerprint), or "" for any tagger.
        default: the threshold of tags that are not in `tags`.
        tiles: True if the thresholds are for scores with tiles (taggers.tag_files).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_precision: float = Field(default=0.0, ge=0, le=1)
    min_recall: float = Field(default=0.0, ge=0, le=1)
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    tags: Mapping[str, TagThreshold] = {}
    parents: Mapping[str, tuple[str, ...]] = {}
    tagger: str = ""
    default: float = DEFAULT
    tiles: bool = False

    @field_validator("tags", mode="before")
    @classmethod
    def _composed(cls, tags: Any) -> Any:
        """Returns tags with names in NFC, the form of labels; older files may use another form."""
        return {nfc(name): one for name, one in tags.items()} if isinstance(tags, Mapping) else tags

    @model_validator(mode="after")
    def _acyclic(self) -> TagThresholds:
        _ = self.relations  # A cycle raises ValueError.
        return self

    @cached_property
    def relations(self) -> RelationGraph:
        """The relations between tags."""
        return RelationGraph(self.parents)

    def values(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Returns the thresholds float64 [t] of tags; inf for a tag without a threshold."""
        own = (self.tags[name].value if name in self.tags else self.default for name in names)
        return np.array([np.inf if value is None else value for value in own], np.float64)

    def with_ancestors(
        self, scores: NDArray[np.floating], names: Sequence[str]
    ) -> NDArray[np.floating]:
        """Returns scores [n, t] in which no tag is below one of its descendants."""
        return self.relations.close_scores(scores, names)

    def given(self, scores: NDArray[np.floating], names: Sequence[str]) -> NDArray[np.bool_]:
        """Returns the assigned tags of pictures: bool [n, t].

        A tag has at least the scores of its descendants. The assigned tags include all ancestors,
        as the threshold of a parent may be higher than the threshold of a child.

        Args:
            scores: float [n, t], compared as float64.
            names: the names of the t tags.
        """
        over = self.with_ancestors(scores, names).astype(np.float64) >= self.values(names)
        return close_given(over, names, self.relations)

    def with_relations(self, relations: RelationGraph) -> TagThresholds:
        """Returns a copy with other relations."""
        return type(self).model_validate(self.model_dump() | {"parents": relations.parents})

    def with_tag_renamed(self, tag: str, new: str) -> TagThresholds:
        """Returns a copy with another name for a tag.

        An existing threshold of `new` does not change.

        Raises:
            UsageError: the merged tag would imply itself.
        """

        def name(old: str) -> str:
            return new if old == tag else old

        tags = {
            name(own): one for own, one in self.tags.items() if own != tag or new not in self.tags
        }
        parents: dict[str, tuple[str, ...]] = {}
        for own, follows in self.parents.items():
            joined = (*parents.get(name(own), ()), *map(name, follows))
            parents[name(own)] = tuple(dict.fromkeys(one for one in joined if one != name(own)))
        try:
            return type(self).model_validate(self.model_dump() | {"tags": tags, "parents": parents})
        except ValidationError as error:
            raise UsageError(
                f"{new} would follow from itself by the relations of the tags",
                remedy="choose the thresholds without relations first: lmk tag-thresholds",
            ) from error

    @property
    def failed(self) -> tuple[str, ...]:
        """Tags with pictures that did not meet the requirements with the confidence."""
        return tuple(name for name, one in self.tags.items() if one.pictures and not one.reached)

    @property
    def unsure(self) -> tuple[str, ...]:
        """Tags of `failed` that met the requirements, but on too few pictures for confidence."""
        return tuple(
            name
            for name in self.failed
            if (self.tags[name].precision or 0) >= self.min_precision
            and (self.tags[name].recall or 0) >= self.min_recall
        )

    @property
    def unseen(self) -> tuple[str, ...]:
        """Tags without pictures."""
        return tuple(name for name, one in self.tags.items() if not one.pictures)


def close_given(
    given: NDArray[np.bool_], names: Sequence[str], relations: RelationGraph
) -> NDArray[np.bool_]:
    """Returns assigned tags bool [n, t] with all their ancestors among `names`."""
    return relations.close_scores(given.astype(np.float32), names) > 0


def save_thresholds(thresholds: TagThresholds, path: Path) -> None:
    """Writes thresholds to a file atomically.

    Raises:
        StorageError: the disk is full or the folder is read-only.
    """
    write_with_checksum(path, (thresholds.model_dump_json(indent=2) + "\n").encode())


def load_thresholds(path: Path) -> TagThresholds | None:
    """Returns the thresholds of a file, or None if the file does not exist.

    Raises:
        ModelError: the file does not contain thresholds.
        ModelDamaged: the content of the file does not match its checksum.
    """
    checksums = read_checksums(path.parent)
    if checksums is not None and path.exists():
        remedy = "remove it, and learn thresholds again: lmk tag-thresholds"
        require_unchanged(path.parent, (path.name,), checksums, remedy=remedy)
    try:
        return TagThresholds.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ModelError(
            f"is no file of thresholds ({type(error).__name__})",
            where=path,
            remedy="choose them again: lmk tag-thresholds",
        ) from error


def saved_thresholds(gallery: Gallery, setting: str) -> TagThresholds | None:
    """Returns the thresholds in a setting of a gallery, or None."""
    return read_setting(gallery, setting, TagThresholds)


def check_tagger(thresholds: TagThresholds, tagger: str, where: Path) -> None:
    """Checks that thresholds belong to the scores of a tagger.

    Raises:
        GalleryError: the thresholds belong to another tagger.
    """
    if thresholds.tagger not in ("", tagger):
        raise GalleryError(
            "its thresholds were chosen for other tags, another network or other steps",
            where=where,
            remedy="choose them again: lmk tag-thresholds",
        )
