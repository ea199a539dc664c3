"""Faults in a set of pictures: copies, label errors, hubs, small and unreadable files."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import Skipped, one_thread_opencv, stored_size
from lmk.embed.data.manifest import Manifest, Row
from lmk.embed.embeddings import Embeddings
from lmk.embed.extract.extract import Extracted, Extraction
from lmk.embed.network.runtime import available_cores
from lmk.embed.progress import Progress, no_progress
from lmk.eval.check.label_spelling import similar_labels
from lmk.eval.check.same_photo import SAME_PHOTO, Grey, alikeness, read_grey
from lmk.index.exact.flat import FlatSearcher
from lmk.index.vectors.neighbours import NO_ROW

# Most serious first, which is the order of findings.
KINDS = {
    "unreadable": "files that cannot be read as pictures",
    "duplicate_conflict": "equal files under different labels",
    "near_duplicate_conflict": "copies of one photo under different labels",
    "label_error": "pictures that look like another label",
    "similar_labels": "labels or folders whose names differ only in form",
    "duplicate": "equal files",
    "near_duplicate": "copies of one photo",
    "single_picture": "landmarks with one photo",
    "hub": "pictures that are neighbours of unusually many",
    "small": "very small pictures",
}

NEIGHBOURS = 10  # k of the k-occurrence
VOTERS = 5  # nearest pictures that vote about a label error
VOTES = 4  # votes for one other label that mark a label as an error
COPY_CANDIDATES = 5  # nearest pictures that are compared point by point
# Pictures of at least this cosine are compared point by point. The cosine is rescaled so that 0 is
# the mean of the set and 1 the same picture. Copies cropped to 0.6 of a side reach 0.22.
LEAST_RESCALED = 0.22
MOST_NEEDED = 0.6  # largest value of this cosine, since a mean of few pictures is uncertain
HUB_TIMES = 5  # a hub is among the neighbours of 5 k pictures (the mean is k),
BAD_HUB_TIMES = 2  # or among those of 2 k pictures with other labels
SMALL_SIDE = 100  # pixels
_CACHED_GREYS = 4096  # pictures of at most 37 kB each
_PAIRS_AT_A_TIME = 64  # few, so that Ctrl-C stops the check soon
_VICTIMS = 5  # pictures of other labels shown with a hub


@dataclass(frozen=True)
class DataFinding:
    """One fault in the data.

    Attributes:
        kind: one of KINDS.
        score: higher is worse, within a kind. Copies: correlation (1 for equal files). Label
            errors: similarity times the proportion of votes for the other label. Hubs:
            k-occurrence over k. Small pictures: 1 - side / limit. Other kinds: 1.
        pictures: the pictures concerned, the main one first.
        note: a description of the evidence.
        suggestion: the label that the neighbours of a label error have.

    Raises:
        ValueError: the kind is unknown, or there is no picture.
    """

    kind: str
    score: float
    pictures: tuple[Row, ...]
    note: str
    suggestion: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind of finding")
        if not self.pictures:
            raise ValueError("a finding is about at least one picture")


@dataclass(frozen=True)
class GalleryCheck:
    """The result of a check.

    Attributes:
        pictures: the number of readable pictures.
        photos: the number of different pictures; equal files count once.
        findings: by kind (in the order of KINDS), then by descending score, then by id of the
            first picture.
        k: the number of neighbours of the k-occurrence; 0 for fewer than two pictures.
        skewness: skewness of the k-occurrence; about 0 without hubs, above 1 with strong ones.
    """

    pictures: int
    photos: int
    findings: tuple[DataFinding, ...]
    k: int
    skewness: float

    def of(self, kind: str) -> tuple[DataFinding, ...]:
        """Returns the findings of one kind, worst first."""
        return tuple(finding for finding in self.findings if finding.kind == kind)


def check_gallery(
    manifest: Manifest,
    extraction: Extraction,
    embeddings: Embeddings,
    *,
    small_side: int = SMALL_SIDE,
    on_progress: Progress = no_progress,
) -> GalleryCheck:
    """Returns the faults in the pictures of a manifest.

    The check reads the pictures of possible copies again, and the header of every file for its
    size.

    Args:
        manifest: the pictures.
        extraction: the extraction of this manifest.
        embeddings: the embeddings of extraction.pictures, in their order.
        small_side: pictures with a shorter side below this number of pixels count as small.
        on_progress: called with (stage, done, total).

    Raises:
        ValueError: embeddings and extraction have different pictures.
    """
    pictures = extraction.pictures
    if embeddings.ids != tuple(picture.row.id for picture in pictures):
        raise ValueError("the embeddings are not those of the extracted pictures")
    rows = [picture.row for picture in pictures]
    equal = _equal_files(pictures)
    # One picture represents its equal files, which would otherwise be its neighbours.
    firsts = np.array([group[0] for group in equal], np.int64)
    near = _neighbours(embeddings, firsts)
    pairs = _copies(manifest, rows, near, least_cosine(embeddings.vectors[firsts]), on_progress)
    groups = _connected(pairs)
    findings = [
        *_unreadable(manifest, extraction.skipped[len(manifest.skipped) :]),
        *(DataFinding("similar_labels", 1.0, *each) for each in similar_labels(manifest.rows)),
        *_duplicates(rows, equal),
        *_near_duplicates(rows, pairs, groups),
        *_single_pictures(rows, equal, groups),
        *_small(manifest, rows, small_side),
    ]
    disputed = {
        row.id for finding in findings if "conflict" in finding.kind for row in finding.pictures
    }
    findings += _label_errors(rows, near, groups, disputed)
    k = min(NEIGHBOURS, max(0, len(firsts) - 1))
    occurrence = k_occurrence(near, k)
    findings += _hubs(rows, near, k, occurrence)
    order = list(KINDS)
    findings.sort(key=lambda it: (order.index(it.kind), -it.score, it.pictures[0].id))
    counts = np.array([occurrence[i] for i in near])
    return GalleryCheck(len(rows), len(firsts), tuple(findings), k, skewness(counts))


_Near = dict[int, list[tuple[int, float]]]  # picture -> (other picture, cosine), nearest first


def _equal_files(pictures: Sequence[Extracted]) -> list[list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        groups[picture.sha256].append(i)
    return list(groups.values())


def _neighbours(embeddings: Embeddings, chosen: NDArray[np.int64]) -> _Near:
    """Returns the nearest other chosen pictures of each chosen picture."""
    if len(chosen) < 2:
        return {int(i): [] for i in chosen}
    ids = tuple(embeddings.ids[i] for i in chosen)
    photos = Embeddings(embeddings.vectors[chosen], ids, embeddings.fingerprint)
    nearest = FlatSearcher.of_embeddings(photos).search(photos, NEIGHBOURS + 1)
    near: _Near = {}
    for i, (rows, scores) in enumerate(zip(nearest.rows, nearest.scores, strict=True)):
        others = [
            (int(chosen[row]), float(score))
            for row, score in zip(rows, scores, strict=True)
            if row not in (i, NO_ROW)
        ]
        near[int(chosen[i])] = others[:NEIGHBOURS]
    return near


def least_cosine(vectors: NDArray[np.float32]) -> float:
    """Returns the smallest cosine of two pictures that may be copies of one photo.

    The cosine is rescaled by the mean cosine of two pictures, which differs between networks.

    Args:
        vectors: float32 [n, dim] of different pictures, each of length 1.
    """
    count = len(vectors)
    if count < 2:
        return MOST_NEEDED
    total = vectors.sum(axis=0, dtype=np.float64)
    mean = float(total @ total - count) / (count * (count - 1))
    return min(MOST_NEEDED, mean + LEAST_RESCALED * (1 - mean))


def _copies(
    manifest: Manifest, rows: Sequence[Row], near: _Near, least: float, on_progress: Progress
) -> dict[tuple[int, int], float]:
    """Returns the pairs of pictures that are one photo, with their correlations."""
    candidates = sorted(
        {
            (min(i, j), max(i, j))
            for i, others in near.items()
            for j, cosine in others[:COPY_CANDIDATES]
            if cosine >= least
        }
    )

    @lru_cache(_CACHED_GREYS)
    def grey(i: int) -> Grey | None:
        return read_grey(manifest.file(rows[i]))

    def agreement(pair: tuple[int, int]) -> float:
        one, other = grey(pair[0]), grey(pair[1])
        return -1.0 if one is None or other is None else alikeness(one, other)

    pairs: dict[tuple[int, int], float] = {}
    with ThreadPoolExecutor(available_cores()) as pool, one_thread_opencv():
        for start in range(0, len(candidates), _PAIRS_AT_A_TIME):
            some = candidates[start : start + _PAIRS_AT_A_TIME]
            agreements = zip(some, pool.map(agreement, some), strict=True)
            pairs.update({pair: value for pair, value in agreements if value >= SAME_PHOTO})
            on_progress("looking for copies", start + len(some), len(candidates))
    return pairs


def _connected(pairs: Iterable[tuple[int, int]]) -> dict[int, frozenset[int]]:
    """Returns the connected component of each picture that is in a pair."""
    groups: dict[int, frozenset[int]] = {}
    for i, j in pairs:
        joined = groups.get(i, frozenset([i])) | groups.get(j, frozenset([j]))
        groups.update(dict.fromkeys(joined, joined))
    return groups


def _disagree(rows: Iterable[Row]) -> bool:
    """Returns whether two of the pictures have labels, but none in common."""
    labels = {frozenset(row.labels) for row in rows if row.labels}
    return any(not one & other for one, other in combinations(labels, 2))


def _labels(rows: Iterable[Row]) -> str:
    return ", ".join(sorted({label for row in rows for label in row.labels}))


def _unreadable(manifest: Manifest, skipped: Iterable[Skipped]) -> list[DataFinding]:
    rows = {row.path: row for row in manifest.rows}
    files = [DataFinding("unreadable", 1.0, (rows[skip.path],), skip.reason) for skip in skipped]
    places = [Row(place.path, place.path) for place in manifest.unseen if place.kind != "empty"]
    reasons = {place.path: place.reason for place in manifest.unseen}
    return files + [DataFinding("unreadable", 1.0, (row,), reasons[row.path]) for row in places]


def _duplicates(rows: Sequence[Row], equal: Iterable[list[int]]) -> list[DataFinding]:
    findings = []
    for group in equal:
        if len(group) > 1:
            same = tuple(rows[i] for i in group)
            kind = "duplicate_conflict" if _disagree(same) else "duplicate"
            note = f"{len(same)} equal files" + _under(same, kind)
            findings.append(DataFinding(kind, 1.0, same, note))
    return findings


def _near_duplicates(
    rows: Sequence[Row], pairs: dict[tuple[int, int], float], groups: dict[int, frozenset[int]]
) -> list[DataFinding]:
    findings = []
    for group in sorted(set(groups.values()), key=min):
        copies = tuple(rows[i] for i in sorted(group))
        kind = "near_duplicate_conflict" if _disagree(copies) else "near_duplicate"
        agreement = max(value for (i, _), value in pairs.items() if i in group)
        note = f"{len(copies)} pictures of one photo (correlation {agreement:.2f})"
        findings.append(DataFinding(kind, agreement, copies, note + _under(copies, kind)))
    return findings


def _under(rows: Iterable[Row], kind: str) -> str:
    return f" under {_labels(rows)}" if kind.endswith("conflict") else ""


def _single_pictures(
    rows: Sequence[Row], equal: Iterable[list[int]], groups: dict[int, frozenset[int]]
) -> list[DataFinding]:
    """Returns the labels whose pictures are all one photo."""
    photos: dict[str, set[int]] = defaultdict(set)
    members: dict[str, list[Row]] = defaultdict(list)
    for group in equal:
        photo = min(groups.get(group[0], group))
        for i in group:
            for label in rows[i].labels:
                photos[label].add(photo)
                members[label].append(rows[i])
    return [
        DataFinding(
            "single_picture",
            1.0,
            tuple(members[label]),
            f"{label} has one photo"
            + (f", {len(members[label])} times" if len(members[label]) > 1 else ""),
        )
        for label in sorted(photos)
        if len(photos[label]) == 1
    ]


def _small(manifest: Manifest, rows: Iterable[Row], limit: int) -> list[DataFinding]:
    findings = []
    for row in rows:
        size = stored_size(manifest.file(row))
        if size is not None and min(size) < limit:
            note = f"{size[0]} x {size[1]} pixels"
            findings.append(DataFinding("small", 1 - min(size) / limit, (row,), note))
    return findings


def _label_errors(
    rows: Sequence[Row], near: _Near, groups: dict[int, frozenset[int]], disputed: set[str]
) -> list[DataFinding]:
    """Returns undisputed pictures whose neighbours mostly share another label, never their own."""
    findings = []
    for i, others in near.items():
        own = set(rows[i].labels)
        if not own or rows[i].id in disputed:
            continue
        mates = groups.get(i, frozenset())
        voters = [(j, cosine) for j, cosine in others if j not in mates and rows[j].labels][:VOTERS]
        if len(voters) < VOTES or any(own & set(rows[j].labels) for j, _ in voters):
            continue
        votes = Counter(label for j, _ in voters for label in rows[j].labels)
        label, count = min(votes.items(), key=lambda vote: (-vote[1], vote[0]))
        if count < VOTES:
            continue
        agreeing = [(j, cosine) for j, cosine in voters if label in rows[j].labels]
        score = sum(cosine for _, cosine in agreeing) / len(voters)
        note = (
            f"{count} of the {len(voters)} nearest are {label}, none {_labels([rows[i]])}; mean"
            f" similarity {statistics.fmean(cosine for _, cosine in agreeing):.2f}"
        )
        shown = (rows[i], *(rows[j] for j, _ in agreeing))
        findings.append(DataFinding("label_error", score, shown, note, label))
    return findings


def k_occurrence(near: _Near, k: int) -> Counter[int]:
    """Returns the number of other pictures that have each picture among their k nearest.

    Radovanović, Nanopoulos and Ivanović, "Hubs in space: popular nearest neighbors in
    high-dimensional data", JMLR 11, 2010: N_k. Its mean is k.
    """
    return Counter(j for others in near.values() for j, _ in others[:k])


def skewness(counts: NDArray[np.int64]) -> float:
    """Returns the third standardised moment, S_{N_k} of the same paper; 0 for equal counts."""
    if not len(counts) or not counts.std():
        return 0.0
    return float((((counts - counts.mean()) / counts.std()) ** 3).mean())


def _hubs(rows: Sequence[Row], near: _Near, k: int, occurrence: Counter[int]) -> list[DataFinding]:
    victims: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for i, others in near.items():
        for j, cosine in others[:k]:
            if _disagree((rows[i], rows[j])):
                victims[j].append((-cosine, i))
    findings = []
    for j, count in occurrence.items():
        bad = len(victims[j])
        if count >= HUB_TIMES * k or bad >= BAD_HUB_TIMES * k:
            note = f"among the {k} nearest of {count} pictures (mean {k}), {bad} with other labels"
            shown = (rows[j], *(rows[i] for _, i in sorted(victims[j])[:_VICTIMS]))
            findings.append(DataFinding("hub", count / k, shown, note))
    return findings
