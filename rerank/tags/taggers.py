"""Taggers, which score tags of photos by a trained head or by votes of labelled neighbours.

>>> from lmk.rerank.tags.taggers import HeadTagger, tag_files
>>> tagger = HeadTagger.open(Path("my-tags"))  # doctest: +SKIP
>>> for batch in tag_files(tagger, [("photo", Path("photo.jpg"))]):  # doctest: +SKIP
...     print(tagger.thresholds.given(batch.scores, tagger.names))
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import Picture, Skipped, decode
from lmk.embed.data.sources import PictureSource, Source, picture_source
from lmk.embed.data.tiles import TILES, tiled
from lmk.embed.defaults import DEFAULT_TAGGER
from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import ModelError, UsageError, storage_errors
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.config import embedder_folder, shipped_tagger
from lmk.embed.network.runtime import available_cores
from lmk.embed.progress import Count, no_count
from lmk.embed.tags.detector import Box, Detector
from lmk.embed.tags.head import TAGS_FILE, TagHead, load_tag_head, save_tag_head
from lmk.index.catalog.layout import CATALOG
from lmk.index.gallery.writer import GalleryWriter
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.state import QueryBatch
from lmk.rerank.steps.step import digest_text
from lmk.rerank.tags.thresholds import (
    HEAD_SETTING,
    THRESHOLDS_FILE,
    VOTES_SETTING,
    TagThresholds,
    check_tagger,
    load_thresholds,
    save_thresholds,
    saved_thresholds,
)
from lmk.rerank.tags.votes import POWER, VOTERS, tag_votes

_BATCH = 256  # maximum number of pictures in memory, including tiles
_SURE = 1e-6  # distance from 0 and 1 to which scores are clipped before their log odds


class HeadTagger:
    """A trained tagger, which consists of an embedder and a tag head.

    Attributes:
        embedder: the embedder whose features the tagger uses.
        names: the t tags.
        thresholds: the thresholds of the tags. Default: 0.5 for each tag.

    Args:
        embedder: the embedder that computes the features of the head.
        head: the tag head.
        where: the folder or index of the head, for error messages.
        keep: a function that saves thresholds at `where`.
        thresholds: the saved thresholds, if any.

    Raises:
        GalleryError: the thresholds belong to another head.
    """

    def __init__(
        self,
        embedder: Embedder,
        head: TagHead,
        where: Path,
        keep: Callable[[TagThresholds], None],
        thresholds: TagThresholds | None = None,
    ) -> None:
        self.embedder = embedder
        self.names = head.names
        self._head = head
        self._keep = keep
        self.thresholds = thresholds or TagThresholds()
        check_tagger(self.thresholds, self.fingerprint, where)

    @classmethod
    def open(cls, named: Path | None = None) -> HeadTagger:
        """Returns the tagger of a folder that `lmk train` wrote, or the shipped tagger.

        Args:
            named: the folder, or "tags-lite1". Default: the shipped tagger.

        Raises:
            ModelError: there is no embedder, the embedder has no tags, or a file is damaged.
            EmbedderMismatch: the tags belong to another embedder.
            GalleryError: the thresholds belong to other tags.
        """
        shipped = shipped_tagger()
        folder = shipped if named is None else embedder_folder(str(named)) or named
        if not folder.is_dir():
            remedy = f"train one: lmk train tags, or use the shipped tagger: {DEFAULT_TAGGER}"
            raise ModelError("no such tagger", where=folder, remedy=remedy)
        embedder = Embedder.load(folder)
        head = load_tag_head(folder, embedder.feature_fingerprint)
        path = folder / THRESHOLDS_FILE

        def keep(new: TagThresholds) -> None:
            if folder == shipped:
                remedy = "name with -o a folder for a tagger with these"
                raise UsageError("comes with lmk and stays as it is", where=named, remedy=remedy)
            save_thresholds(new, path)

        return cls(embedder, head, folder, keep, load_thresholds(path))

    @classmethod
    def of_index(cls, recognizer: Recognizer) -> HeadTagger | None:
        """Returns the tagger of an index's embedder, or None if the embedder has no tags.

        Raises:
            ModelError, EmbedderMismatch, GalleryError: see `open`.
        """
        gallery, embedder = recognizer.gallery, recognizer.embedder
        if not (gallery.embedder_dir / TAGS_FILE).is_file():
            return None
        head = load_tag_head(gallery.embedder_dir, embedder.feature_fingerprint, checked=True)
        saved = saved_thresholds(gallery, HEAD_SETTING)
        return cls(embedder, head, gallery.path, _keeper(gallery.path, HEAD_SETTING), saved)

    @property
    def fingerprint(self) -> str:
        """The text that identifies the scores of this tagger."""
        head = self._head
        content = hashlib.sha256(head.weight.tobytes() + head.bias.tobytes())
        form = f"{head.activation} {head.unit}"
        content.update("\0".join((head.feature_fingerprint, form, *head.names)).encode())
        return content.hexdigest()

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns scores float32 [n, t] of raw features [n, embedder.feature_dim]."""
        return self._head.probabilities(features)

    def save(self, thresholds: TagThresholds) -> None:
        """Saves thresholds with the tagger.

        Raises:
            UsageError: the tagger is the shipped tagger.
            GalleryLocked, StorageError: the thresholds cannot be written.
        """
        self._keep(thresholds)

    def copy(self, folder: Path, thresholds: TagThresholds) -> None:
        """Writes a copy of this tagger with other thresholds into an empty or new folder.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.embedder.save(folder)
            save_tag_head(self._head, folder / TAGS_FILE)
        save_thresholds(thresholds, folder / THRESHOLDS_FILE)


class VoteTagger:
    """A tagger without training, for which the nearest tagged pictures of an index vote.

    The neighbours and their scores are the same as for a query to the index, after rescaling and
    the penalty. The other steps, the threshold of "none of these" and the calibration apply to one
    best label and are not used. The attributes are the same as in HeadTagger.

    Args:
        recognizer: the recognizer of the index, which must stay open.

    Raises:
        UsageError: no picture of the index has a label.
        GalleryError: the saved thresholds belong to other votes.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        self.embedder = recognizer.embedder
        self.names = recognizer.gallery.label_names
        self._recognizer = recognizer
        self._steps = recognizer.pipeline.scoring()
        path = recognizer.gallery.path
        if not self.names:
            remedy = "build it of pictures with tags: a CSV with the columns id, path, tags"
            raise UsageError("no picture of the index has a tag", where=path, remedy=remedy)
        self.thresholds = saved_thresholds(recognizer.gallery, VOTES_SETTING) or TagThresholds()
        check_tagger(self.thresholds, self.fingerprint, path)

    @property
    def fingerprint(self) -> str:
        """The text that identifies the steps of the scores, whatever pictures the index has."""
        steps = hashlib.sha256(digest_text(self._steps).encode()).hexdigest()
        return f"{self.embedder.fingerprint} {VOTERS} {POWER:g} {steps}"

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns scores float32 [n, t] of raw features [n, embedder.feature_dim]."""
        vectors = self.embedder.vectors(features)
        ids = tuple(map(str, range(len(vectors))))
        queries = Embeddings(vectors, ids, self.embedder.fingerprint)
        context = self._recognizer.context
        neighbours = self._recognizer.search(queries, self._steps.candidates)
        answers = self._steps.predict(QueryBatch(queries), neighbours, context)
        return tag_votes(
            answers.neighbours.rows,
            answers.scores,
            context.label_offsets,
            context.label_codes,
            len(self.names),
        )

    def save(self, thresholds: TagThresholds) -> None:
        """Saves thresholds in the index.

        Raises:
            GalleryLocked, StorageError: the index cannot be written.
        """
        _keeper(self._recognizer.gallery.path, VOTES_SETTING)(thresholds)

    def knows(self, picture: Source | PictureSource) -> bool:
        """Returns whether the index contains the same file, which would be the best neighbour."""
        data = picture_source(picture).read()
        if isinstance(data, str):
            return False
        sha256 = hashlib.sha256(data).hexdigest()
        return bool(self._recognizer.gallery.same_content(sha256, "gallery"))


Tagger = HeadTagger | VoteTagger


def _keeper(index: Path, setting: str) -> Callable[[TagThresholds], None]:
    """Returns a function that saves thresholds as a setting of an index."""

    def keep(thresholds: TagThresholds) -> None:
        with GalleryWriter(index) as writer:
            writer.set(setting, thresholds.model_dump(mode="json"))
            writer.commit()

    return keep


@contextmanager
def open_tagger(path: Path | None, *, votes: bool = False) -> Iterator[Tagger]:
    """Yields an open tagger.

    Args:
        path: a folder that `lmk train` wrote with a task of tags, or an index; None for the shipped
            tagger. An index uses the tags of its embedder, or else the votes of its pictures.
        votes: whether to use the votes of an index even if its embedder has tags.

    Raises:
        ModelError, EmbedderMismatch, GalleryError: see HeadTagger.open and Recognizer.open.
        UsageError: see VoteTagger; or `votes` is True for a folder that is not an index.
    """
    if path is None or (not (path / CATALOG).is_file() and path.suffix != ".lmk"):
        if votes:
            raise UsageError(
                "is not an index whose pictures could vote", where=path, remedy="name one"
            )
        yield HeadTagger.open(path)
        return
    with Recognizer.open(path) as recognizer:
        head = None if votes else HeadTagger.of_index(recognizer)
        yield VoteTagger(recognizer) if head is None else head


@dataclass(frozen=True, eq=False)
class TagBatch:
    """A batch of pictures with the scores of a tagger.

    Attributes:
        ids: the ids of the n readable pictures.
        scores: float32 [n, t], the scores of the tagger's tags, with the tiles merged.
        boxes: the detector's boxes in each picture; empty without a detector.
        skipped: the unreadable files.
    """

    ids: tuple[str, ...]
    scores: NDArray[np.float32]
    boxes: tuple[tuple[Box, ...], ...]
    skipped: tuple[Skipped, ...]


def tag_files(
    tagger: Tagger,
    files: Sequence[tuple[str, Source | PictureSource]],
    *,
    tiles: bool = False,
    detector: Detector | None = None,
    on_progress: Count = no_count,
) -> Iterator[TagBatch]:
    """Yields the scores of pictures in batches, in order.

    Args:
        tagger: the tagger.
        files: pairs of an id and a picture: a path, or another type of `lmk.embed.data.sources`.
        tiles: whether to score nine overlapping tiles (embed.data.tiles) of each picture too, for
            small objects.
        detector: the detector that computes the boxes; None for no boxes.
        on_progress: called with the number of finished files.
    """
    size, looks = tagger.embedder.config.size, 1 + tiles * (2 * TILES - 1) ** 2

    def read(source: PictureSource) -> tuple[list[Picture], Picture | None] | str:
        with source.opened() as data:
            pictures = data if isinstance(data, str) else tiled(data, size, TILES if tiles else 1)
            if isinstance(pictures, str) or isinstance(data, str) or detector is None:
                return pictures if isinstance(pictures, str) else (pictures, None)
            looked = decode(data, detector.size)
            return looked if isinstance(looked, str) else (pictures, looked)

    step = max(_BATCH // looks, 1)
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="lmk-decode") as pool:
        for start in range(0, len(files), step):
            some = [
                (id_, picture_source(picture, number))
                for number, (id_, picture) in enumerate(files[start : start + step], start)
            ]
            skipped, ids, pictures, boxes = [], [], [], []
            results = pool.map(read, (source for _, source in some))
            for (id_, source), result in zip(some, results, strict=True):
                if isinstance(result, str):
                    skipped.append(Skipped(source.id, result))
                    continue
                ids.append(id_)
                pictures += result[0]
                looked = result[1]
                found_boxes = () if detector is None or looked is None else detector.boxes(looked)
                boxes.append(tuple(found_boxes))
            yield TagBatch(
                tuple(ids), _scored(tagger, pictures, looks), tuple(boxes), tuple(skipped)
            )
            on_progress(start + len(some))


def _scored(tagger: Tagger, pictures: Sequence[Picture], looks: int) -> NDArray[np.float32]:
    """Returns scores float32 [n, t] of n groups of `looks` pictures: a photo and its tiles."""
    if not pictures:
        return np.zeros((0, len(tagger.names)), np.float32)
    features = np.stack(list(tagger.embedder.features(pictures)))
    scores = tagger.scores(features)
    return scores if looks == 1 else _merged(scores.reshape(-1, looks, len(tagger.names)))


def _merged(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns float32 [n, t], merged from the scores [n, looks, t] of photos and their tiles."""
    from scipy.special import expit, logit

    # The mean of the log odds of photo and best tile limits false objects in single tiles.
    both = np.stack([scores[:, 0], scores[:, 1:].max(axis=1)]).astype(np.float64)
    merged: NDArray[np.float64] = expit(logit(both.clip(_SURE, 1 - _SURE)).mean(axis=0))
    return merged.astype(np.float32)
