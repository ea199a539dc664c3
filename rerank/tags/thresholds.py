"""TagThresholds: from which score on a tag is given, and what follows from it; kept as JSON."""

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
THRESHOLDS_FILE = "tag_thresholds.json"  # in an embedder's folder, beside its tags
# Settings of a gallery: of its pictures' votes, and of the tags that its embedder brought along.
VOTES_SETTING, HEAD_SETTING = "tag thresholds", "tag thresholds of the embedder"


class TagThreshold(BaseModel):
    """The threshold of one tag.

    Attributes:
        value: a score of it or more gives the tag; None where no threshold kept the wanted
            precision: the tag is given only where it follows from another.
        pictures: that had the tag, of those it was chosen on; with 0 the value is the default.
        precision, recall: on those pictures, what follows from other tags among what is given;
            None where none had the tag.
        reached: both were as wanted, and the precision with the confidence asked for.
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
        min_precision, min_recall: that were wanted of each tag; 0 where nothing was chosen.
        confidence: with which the precision was to hold on other pictures; None for as measured.
        tags: by name; others have the default.
        parents: of each tag what follows from it (RelationGraph.parents).
        tagger: which tagger's scores they are for (Tagger.fingerprint); empty for any.
        default: of tags that nothing was chosen for.
        tiles: they are for scores by tiles (tagging.tag_files).
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
        """Names in NFC, as labels are; files of the past may have them decomposed."""
        return {nfc(name): one for name, one in tags.items()} if isinstance(tags, Mapping) else tags

    @model_validator(mode="after")
    def _acyclic(self) -> TagThresholds:
        _ = self.relations  # a cycle is a ValueError
        return self

    @cached_property
    def relations(self) -> RelationGraph:
        """What follows from what."""
        return RelationGraph(self.parents)

    def values(self, names: Sequence[str]) -> NDArray[np.float64]:
        """float64 [t], the thresholds of these tags; inf for one that is never given."""
        found = []
        for name in names:
            own = self.tags.get(name)
            value = self.default if own is None else own.value
            found.append(np.inf if value is None else value)
        return np.array(found, np.float64)

    def with_ancestors(
        self, scores: NDArray[np.floating], names: Sequence[str]
    ) -> NDArray[np.floating]:
        """Scores [n, t] by which no tag is below what it follows from."""
        return self.relations.close_scores(scores, names)

    def given(self, scores: NDArray[np.floating], names: Sequence[str]) -> NDArray[np.bool_]:
        """The tags that pictures are given: bool [n, t].

        Scores are closed, compared with the thresholds, and what is given is closed again: a
        parent's own threshold may be the higher one. Nothing is taken away by that.

        Args:
            scores: float [n, t]; compared as float64.
            names: of the t tags.
        """
        over = self.with_ancestors(scores, names).astype(np.float64) >= self.values(names)
        return close_given(over, names, self.relations)

    def with_relations(self, relations: RelationGraph) -> TagThresholds:
        """The same thresholds, with other relations."""
        return type(self).model_validate(self.model_dump() | {"parents": relations.parents})

    def with_tag_renamed(self, tag: str, new: str) -> TagThresholds:
        """The same thresholds with another name for a tag; what `new` has already is kept.

        Raises:
            UsageError: the two tags become one that would follow from itself.
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
                remedy="learn the thresholds without them first: lmk tag-thresholds",
            ) from error

    @property
    def failed(self) -> tuple[str, ...]:
        """The tags that had pictures and did not reach what was wanted, or not with confidence."""
        return tuple(name for name, one in self.tags.items() if one.pictures and not one.reached)

    @property
    def unsure(self) -> tuple[str, ...]:
        """Those of `failed` that reached it on their pictures, which were too few to be sure."""
        return tuple(
            name
            for name in self.failed
            if (self.tags[name].precision or 0) >= self.min_precision
            and (self.tags[name].recall or 0) >= self.min_recall
        )

    @property
    def unseen(self) -> tuple[str, ...]:
        """The tags that no picture had."""
        return tuple(name for name, one in self.tags.items() if not one.pictures)


def close_given(
    given: NDArray[np.bool_], names: Sequence[str], relations: RelationGraph
) -> NDArray[np.bool_]:
    """Tags bool [n, t] with all that follows from them; tags without a column are left out."""
    return relations.close_scores(given.astype(np.float32), names) > 0


def save_thresholds(thresholds: TagThresholds, path: Path) -> None:
    """Writes them whole or not at all.

    Raises:
        StorageError: the disk is full, the folder read-only.
    """
    write_with_checksum(path, (thresholds.model_dump_json(indent=2) + "\n").encode())


def load_thresholds(path: Path) -> TagThresholds | None:
    """Reads them; None where there is no file.

    Raises:
        ModelError: the file is no thresholds.
        ModelDamaged: the file has changed since it was written.
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
            remedy="learn them again: lmk tag-thresholds",
        ) from error


def saved_thresholds(gallery: Gallery, setting: str) -> TagThresholds | None:
    """Those kept with a gallery under a setting."""
    return read_setting(gallery, setting, TagThresholds)


def check_tagger(thresholds: TagThresholds, tagger: str, where: Path) -> None:
    """Checks that thresholds are for the scores of a tagger.

    Raises:
        GalleryError: they were learnt of another one.
    """
    if thresholds.tagger not in ("", tagger):
        raise GalleryError(
            "its thresholds were learnt for other tags, another network or other steps",
            where=where,
            remedy="learn them again: lmk tag-thresholds",
        )
