"""Geometric check: whether a query and a neighbour show the same object from two places.

Points of the two pictures are matched by their descriptors. The inliers are the matches that one
plane (homography) or one pair of cameras (fundamental matrix) explains. Many inliers are stronger
evidence than any cosine. The check is slow, so only the short lists of queries in doubt are
checked, within a time budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator

from lmk.embed.local.features import Extractor, LocalFeatures, RootSift, XFeat
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.ranking import order_of, ranked
from lmk.rerank.steps.state import NOT_LOOKED_AT, Match, RankingState
from lmk.rerank.steps.step import Place, Step

if TYPE_CHECKING:
    from lmk.embed.local.xfeat import LighterGlue

_XFEAT = 64  # components of XFeat's descriptors
_LEAST_MATCHES = {"homography": 5, "fundamental": 9}  # one more than any matches satisfy


class GeometryStep(Step):
    """Raises scores by the points that a neighbour shares with the query.

    The pipeline answers twice. The first pass is without the check. Then the queries in doubt are
    checked, and the steps from here on run again.

    Attributes:
        top: number of neighbours that are checked for each query.
        weight, cap: a neighbour's score rises by weight * min(inliers, cap) / cap. From the
            Google Landmark contests: cap 70 with weight 1 beside a vote (2019), cap 90 with
            weight .15 beside a cosine (2021).
        matcher: "mutual" matches points that are each other's nearest by descriptor. "lighterglue"
            is a network that compares all points of both pictures (the extra `xfeat`, for features
            of XFeat only). It returns more matches and takes up to a second for two pictures, so
            it needs a small `top`.
        ratio: for "mutual", a match must be nearer than ratio * the second nearest (Lowe's test);
            1 accepts all matches. The default suits SIFT. Descriptors of XFeat are more similar
            and need about .95.
        model: the geometry that inliers share. "homography" (a plane) suits façades and seldom
            accepts wrong matches. "fundamental" (two cameras) also allows depth, and accepts more
            wrong matches.
        threshold: largest error of an inlier, in pixels.
        iterations: largest number of iterations of MAGSAC++.
        budget: seconds for each query; no check begins after this time. None: no limit.
        margin: a query is in doubt if its confidence differs from the threshold by at most this.
            Without a threshold all queries are in doubt.
        extractor: "rootsift", or "xfeat" (an extra package), a trained network.
        points: points of a picture at most.
        longest: pixels that the longer side of a picture is shrunk to; the extractor's own
            (480 and 640) unless given.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"local_features"})
    place: ClassVar[Place] = Place.SCORES

    top: int = Field(default=10, ge=1)
    weight: float = Field(default=0.15, ge=0)
    cap: int = Field(default=70, ge=1)
    matcher: Literal["mutual", "lighterglue"] = "mutual"
    ratio: float = Field(default=0.85, gt=0, le=1)
    model: Literal["homography", "fundamental"] = "homography"
    threshold: float = Field(default=4.0, gt=0)
    iterations: int = Field(default=2000, ge=1)
    budget: float | None = Field(default=None, gt=0)
    step: Literal["geometry"] = "geometry"  # in this place, as in saved digests
    margin: float = Field(default=0.15, ge=0)
    extractor: Literal["rootsift", "xfeat"] = "rootsift"
    points: int = Field(default=1000, ge=1, le=100_000)
    longest: int | None = Field(default=None, ge=32, le=8192)

    @model_validator(mode="after")
    def _matched_by_its_own(self) -> GeometryStep:
        if self.matcher == "lighterglue" and self.extractor != "xfeat":
            raise ValueError("the matcher lighterglue is for the extractor xfeat")
        return self

    def local_extractor(self) -> Extractor:
        """Returns the extractor of the points."""
        sizes = {} if self.longest is None else {"longest": self.longest}
        return (XFeat if self.extractor == "xfeat" else RootSift)(most=self.points, **sizes)

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Raises `scores` by the inliers there are: none before the second pass."""
        return replace(state, scores=fused(state.scores, state.inliers, self))

    def gain(self, inliers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns how much the scores of neighbours with so many inliers rise."""
        return fused(np.zeros(inliers.shape), inliers, self)

    def runs_twice(self, state: RankingState, context: PipelineContext) -> bool:
        """Returns whether there are local features of the queries and the gallery."""
        return state.queries.features is not None and context.row_features is not None

    def second_pass(
        self, state: RankingState, answered: RankingState, context: PipelineContext
    ) -> RankingState:
        """Returns the state with `inliers`, `matches` and `geometry_seconds` of queries in doubt.

        `answered` says which queries are in doubt, and orders their candidates.
        """
        features = state.queries.features
        if features is None or context.row_features is None:
            return state
        doubt = np.isfinite(answered.confidence)
        if np.isfinite(answered.threshold):
            doubt = in_doubt(answered.confidence, answered.threshold, self.margin)
        rows = state.neighbours.rows[:, : state.candidates]
        scores = np.where(rows == NO_ROW, -np.inf, answered.scores[:, : state.candidates])
        places = order_of(rows, scores.astype(np.float32))[:, : self.top]
        short = ranked(rows, scores, state.neighbours.query_ids, self.top)
        checked = check(short, doubt, features, context.row_features, self)
        inliers = state.inliers.copy()
        np.put_along_axis(inliers, places, checked.inliers, axis=1)
        return replace(
            state, inliers=inliers, matches=checked.matches, geometry_seconds=checked.seconds
        )


def match_points(
    first: LocalFeatures, second: LocalFeatures, ratio: float = 1.0
) -> NDArray[np.int64]:
    """Returns pairs of points that are each other's nearest: int64 [m, 2], first rising.

    Args:
        first, second: features of one extractor.
        ratio: a match must be nearer than ratio * the second nearest point of `second`.

    Raises:
        ValueError: the descriptors have different lengths.
    """
    if not len(first) or not len(second):
        return np.zeros((0, 2), np.int64)
    if first.descriptors.shape[1] != second.descriptors.shape[1]:
        raise ValueError("the features are of different extractors")
    similarity = first.descriptors.astype(np.float32) @ second.descriptors.astype(np.float32).T
    nearest = similarity.argmax(axis=1)
    own = np.arange(len(first))
    good = similarity.argmax(axis=0)[nearest] == own
    if ratio < 1 and len(second) > 1:
        best = similarity[own, nearest]
        similarity[own, nearest] = -np.inf
        next_best = similarity.max(axis=1)
        # squared distances of unit vectors
        good &= 2 - 2 * best < ratio**2 * (2 - 2 * next_best)
    return np.stack([own[good], nearest[good]], axis=1)


def verify(query: LocalFeatures, picture: LocalFeatures, settings: GeometryStep) -> Match:
    """Returns the matches of two pictures with the inliers of MAGSAC++ (Barath et al., CVPR 2020).

    OpenCV seeds its random numbers in each call, so the result is always the same.

    Raises:
        ModelError: the package of the matcher lighterglue is not installed.
        ValueError: the features have different extractors, or the matcher does not support them.
    """
    if settings.matcher == "lighterglue":
        pairs = _glued(query, picture)
    else:
        pairs = match_points(query, picture, settings.ratio)
    here, there = query.points[pairs[:, 0]], picture.points[pairs[:, 1]]
    inlier = np.zeros(len(pairs), np.bool_)
    if len(pairs) >= _LEAST_MATCHES[settings.model]:
        agreeing = _inliers(here, there, settings)
        # fewer matches agree with any geometry
        if agreeing.sum() >= _LEAST_MATCHES[settings.model]:
            inlier = agreeing
    sizes = ((query.width, query.height), (picture.width, picture.height))
    return Match(here, there, inlier, *sizes)


@lru_cache(maxsize=1)
def _lighterglue() -> LighterGlue:
    from lmk.embed.local.xfeat import LighterGlue  # torch takes seconds to import

    return LighterGlue()


def _glued(query: LocalFeatures, picture: LocalFeatures) -> NDArray[np.int64]:
    sides = [
        (one.points, one.descriptors.astype(np.float32), (one.width, one.height))
        for one in (query, picture)
    ]
    if any(descriptors.shape[1] != _XFEAT for _, descriptors, _ in sides):
        raise ValueError("lighterglue matches the features of xfeat")
    return _lighterglue().match(sides[0], sides[1])


def _inliers(
    here: NDArray[np.float32], there: NDArray[np.float32], settings: GeometryStep
) -> NDArray[np.bool_]:
    confidence = 0.999
    if settings.model == "homography":
        model, mask = cv2.findHomography(
            here, there, cv2.USAC_MAGSAC, settings.threshold, None, settings.iterations, confidence
        )
    else:
        model, mask = cv2.findFundamentalMat(
            here, there, cv2.USAC_MAGSAC, settings.threshold, confidence, settings.iterations
        )
    none = np.zeros(len(here), np.bool_)
    if model is None or mask is None:
        return none
    inlier = np.asarray(mask, np.bool_).ravel()
    if settings.model == "homography" and not _possible(
        np.asarray(model, np.float64), here[inlier]
    ):
        return none
    return inlier


def _possible(homography: NDArray[np.float64], points: NDArray[np.float32]) -> bool:
    """Returns whether a view of a plane can be so: not mirrored, behind the camera or vanishing."""
    # det(H) / w ** 3 is the factor of the area at a point, w the third coordinate of its image.
    w = points.astype(np.float64) @ homography[2, :2] + homography[2, 2]
    if not w.size or (np.sign(w) != np.sign(w[0])).any() or not w.all():
        return False
    area = np.median(np.linalg.det(homography) / w**3)
    return bool(1e-3 < area < 1e3)


def fused(
    scores: NDArray[np.floating], inliers: NDArray[np.integer], settings: GeometryStep
) -> NDArray[np.float32]:
    """Returns score + weight * min(inliers, cap) / cap, float32; unchecked pictures gain nothing.

    Args:
        scores: float [q, k].
        inliers: int [q, k], NOT_LOOKED_AT (-1) for unchecked neighbours.
        settings: the settings with weight and cap.
    """
    share = np.clip(inliers, 0, settings.cap) / settings.cap
    return np.asarray(scores + settings.weight * share, np.float32)


def in_doubt(
    confidence: NDArray[np.floating], threshold: float, margin: float
) -> NDArray[np.bool_]:
    """Returns the queries with a confidence within `margin` of the threshold: bool [q].

    An answer far above the threshold is certain, and one far below it cannot reach it. A query
    without an answer (-inf) is not in doubt.
    """
    there = np.isfinite(confidence)
    apart = np.abs(np.where(there, confidence, np.inf).astype(np.float64) - threshold)
    return np.asarray((apart <= margin) & there, np.bool_)


@dataclass(frozen=True, eq=False)
class Checked:
    """The result of the check.

    Attributes:
        inliers: int64 [q, k], the inliers of each neighbour; NOT_LOOKED_AT (-1) if unchecked.
        matches: the matches by query number and gallery row, for drawing.
        seconds: float64 [q], duration of the check; 0 for queries that were not in doubt.
    """

    inliers: NDArray[np.int64]
    matches: Mapping[tuple[int, int], Match]
    seconds: NDArray[np.float64]


def check(
    neighbours: Neighbours,
    doubt: NDArray[np.bool_],
    query_features: Callable[[int], LocalFeatures | str],
    row_features: Callable[[int], LocalFeatures | str],
    settings: GeometryStep,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Checked:
    """Returns the matches of the queries in doubt with their short lists.

    Without a budget the result is always the same. With a budget the end of a list may stay
    unchecked and gain nothing.

    Args:
        neighbours: the neighbours, best first; the first `settings.top` are checked.
        doubt: bool [q], queries that are worth the time (in_doubt).
        query_features, row_features: functions from a query number and from a gallery row to
            local features, or to the reason why there are none; such a picture is not checked. The
            budget includes the time of these functions.
        settings: the settings of the check.
        clock: returns seconds.
    """
    inliers = np.full(neighbours.rows.shape, NOT_LOOKED_AT, np.int64)
    matches: dict[tuple[int, int], Match] = {}
    seconds = np.zeros(len(neighbours))
    for query in np.flatnonzero(doubt).tolist():
        begun = clock()
        mine = query_features(query)
        for place, row in enumerate(neighbours.rows[query, : settings.top].tolist()):
            late = settings.budget is not None and clock() - begun >= settings.budget
            if row == NO_ROW or late or isinstance(mine, str):
                break
            theirs = row_features(row)
            if not isinstance(theirs, str):
                match = verify(mine, theirs, settings)
                matches[query, row], inliers[query, place] = match, match.inliers
        seconds[query] = clock() - begun
    return Checked(inliers, matches, seconds)
