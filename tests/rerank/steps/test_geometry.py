"""The geometric check: warps that are known, loops as oracles, a clock that is a list."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmk.embed.local.features import LocalFeatures, RootSift
from lmk.index.vectors.neighbours import Neighbours
from lmk.rerank.steps import geometry
from lmk.rerank.steps.geometry import (
    Checked,
    GeometryStep,
    _possible,
    check,
    fused,
    in_doubt,
    match_points,
    verify,
)
from lmk.rerank.steps.state import Match

Make = Callable[..., Neighbours]
WARP = np.array([[0.9, 0.15, 12], [-0.1, 0.95, 20], [3e-4, -2e-4, 1]])


def texture(seed: int, width: int = 240, height: int = 180) -> np.ndarray:
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width), np.float32)
    for sigma in (2, 4, 8):
        noise = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), sigma)
        total += (noise / noise.std()).astype(np.float32)
    return np.clip(128 + 35 * total, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def views() -> dict[str, LocalFeatures]:
    """A plane, the same from elsewhere, its mirror image, and another plane."""
    sift, plane = RootSift(most=300), texture(0)
    pictures = {
        "plane": plane,
        "warped": cv2.warpPerspective(plane, WARP, (240, 180)),
        "mirrored": plane[:, ::-1].copy(),
        "other": texture(1),
    }
    return {name: sift.extract(picture) for name, picture in pictures.items()}


def features(points: object, descriptors: object) -> LocalFeatures:
    rows = np.asarray(descriptors, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return LocalFeatures(np.asarray(points, np.float32), rows.astype(np.float16), 100, 100)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 8),
    m=st.integers(1, 8),
    ratio=st.sampled_from([0.5, 0.8, 1.0]),
)
def test_matches_against_a_loop(seed: int, n: int, m: int, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    first = features(rng.random((n, 2)), rng.random((n, 5)))
    second = features(rng.random((m, 2)), rng.random((m, 5)))
    a, b = first.descriptors.astype(np.float64), second.descriptors.astype(np.float64)
    expected = []
    for i in range(n):
        likeness = [float(a[i] @ row) for row in b]
        j = max(range(m), key=lambda j: (likeness[j], -j))
        back = max(range(n), key=lambda i: (float(a[i] @ b[j]), -i))
        others = [2 - 2 * s for k, s in enumerate(likeness) if k != j]
        near = ratio == 1 or not others or 2 - 2 * likeness[j] < ratio**2 * min(others)
        if back == i and near:
            expected.append([i, j])
    assert match_points(first, second, ratio).tolist() == expected


def test_matches_of_nothing(views: dict[str, LocalFeatures]) -> None:
    empty = features(np.zeros((0, 2)), np.zeros((0, 128)))
    assert match_points(empty, views["plane"]).shape == (0, 2)
    assert match_points(views["plane"], empty).shape == (0, 2)
    assert verify(empty, views["plane"], GeometryStep()).inliers == 0
    with pytest.raises(ValueError, match="different extractors"):
        match_points(views["plane"], features([[1, 1]], [[1, 0]]))


@pytest.mark.parametrize("model", ["homography", "fundamental"])
def test_inliers_lie_where_the_warp_puts_them(views: dict[str, LocalFeatures], model: str) -> None:
    settings = GeometryStep(model=model)
    match = verify(views["plane"], views["warped"], settings)
    assert match.inliers >= 60
    ones = np.ones((len(match.query), 1))
    moved = np.concatenate([match.query, ones], axis=1) @ WARP.T
    error = np.linalg.norm(moved[:, :2] / moved[:, 2:] - match.gallery, axis=1)
    if model == "homography":
        assert (error[match.inlier] < 6).all() and (error[~match.inlier] > 2).all()
    else:  # a plane leaves the cameras open: a few chance matches fit
        assert (error[match.inlier] < 6).mean() > 0.9
    assert match.query_size == match.gallery_size == (240, 180)
    again = verify(views["plane"], views["warped"], settings)
    assert np.array_equal(again.inlier, match.inlier)


def test_another_place_has_few(views: dict[str, LocalFeatures]) -> None:
    for model, most in (("homography", 8), ("fundamental", 16)):
        match = verify(views["plane"], views["other"], GeometryStep(model=model))
        assert match.inliers <= most


def test_a_mirror_image_is_no_view(views: dict[str, LocalFeatures]) -> None:
    """Its points, matched as they are mirrored, agree with a plane that no camera sees."""
    plane = views["plane"]
    mirrored = LocalFeatures(
        (plane.points * (-1, 1) + (240, 0)).astype(np.float32), plane.descriptors, 240, 180
    )
    settings = GeometryStep(ratio=1)
    assert verify(plane, plane, settings).inliers > 100
    assert verify(plane, mirrored, settings).inliers == 0


def test_a_plane_seen_from_behind_is_no_view() -> None:
    """The camera would have some of the points behind it."""
    square = np.array([[0, 0], [90, 0], [0, 90], [90, 90], [50, 20]], np.float32)
    seen = np.array([[1, 0, 0], [0, 1, 0], [-0.02, 0, 1]])
    assert not _possible(seen, square)
    assert _possible(np.eye(3), square) and _possible(-np.eye(3), square)
    assert not _possible(np.diag([0.01, 0.01, 1]), square), "all but a point"
    assert not _possible(np.eye(3), square[:0])


@pytest.mark.parametrize("model", ["homography", "fundamental"])
@pytest.mark.parametrize("points", [np.zeros((12, 2)), np.stack([np.arange(12.0)] * 2, axis=1)])
def test_points_that_span_nothing(model: str, points: np.ndarray) -> None:
    """All in one place, or on one line."""
    one = features(points, np.eye(12))
    match = verify(one, features(points[::-1], np.eye(12)), GeometryStep(model=model))
    assert len(match.query) == 12 and match.inliers in range(13)
    few = features(points[:4], np.eye(12)[:4])
    assert verify(few, few, GeometryStep(model=model)).inliers == 0


def test_fused_golden() -> None:
    settings = GeometryStep(weight=0.5, cap=70)
    scores = np.array([[0.9, 0.8, 0.7, -np.inf]], np.float32)
    got = fused(scores, np.array([[-1, 140, 35, -1]]), settings)
    np.testing.assert_allclose(got, [[0.9, 1.3, 0.95, -np.inf]], rtol=1e-6)
    assert got.dtype == np.float32
    nothing = GeometryStep(weight=0)
    assert np.array_equal(fused(scores, np.array([[9, 9, 9, -1]]), nothing), scores)


def test_in_doubt() -> None:
    confidence = np.array([0.2, 0.4, 0.5, 0.75, 0.9, -np.inf], np.float32)
    got = in_doubt(confidence, 0.5, 0.25)
    assert got.tolist() == [False, True, True, True, False, False]
    assert in_doubt(confidence, float("-inf"), 0.25).tolist() == [False] * 6


class Pictures:
    """Counts who is asked; some cannot be read."""

    def __init__(self, views: dict[str, LocalFeatures], broken: set[int] = frozenset()) -> None:
        self.views, self.broken, self.asked = views, broken, []

    def __call__(self, number: int) -> LocalFeatures | str:
        self.asked.append(number)
        return "no such file" if number in self.broken else self.views["other"]


def run(
    views: dict[str, LocalFeatures],
    found: Neighbours,
    doubt: list[bool],
    broken: set[int] = frozenset(),
    unreadable: set[int] = frozenset(),
    times: list[float] | None = None,
    **settings: object,
) -> tuple[Checked, list[int]]:
    rows = Pictures({**views, "other": views["warped"]}, broken)
    queries = Pictures({**views, "other": views["plane"]}, unreadable)
    clock = {} if times is None else {"clock": iter(times).__next__}
    done = check(found, np.array(doubt), queries, rows, GeometryStep(**settings), **clock)
    return done, rows.asked


def test_only_the_short_list_of_those_in_doubt(
    views: dict[str, LocalFeatures], neighbours: Make
) -> None:
    found = neighbours(*[[(row, 1 - row / 10) for row in range(4)]] * 2, [(7, 0.5)])
    done, asked = run(views, found, [False, True, True], broken={1}, top=3)
    assert asked == [0, 1, 2, 7]
    full = verify(views["plane"], views["warped"], GeometryStep()).inliers
    assert done.inliers.tolist() == [[-1, -1, -1, -1], [full, -1, full, -1], [full, -1, -1, -1]]
    assert set(done.matches) == {(1, 0), (1, 2), (2, 7)}
    assert isinstance(done.matches[1, 0], Match) and done.matches[1, 0].inliers == full
    assert done.seconds[0] == 0 and (done.seconds[1:] > 0).all()


def test_the_budget(views: dict[str, LocalFeatures], neighbours: Make) -> None:
    """Begun at 0; pictures are begun at 1 and 2, not at 3.5; the second query starts anew."""
    found = neighbours(*[[(row, 1 - row / 10) for row in range(5)]] * 2)
    times = [0, 1, 2, 3.5, 4, 10, 13, 14]
    done, asked = run(views, found, [True, True], times=times, budget=3.0)
    assert asked == [0, 1] and done.seconds.tolist() == [4, 4]
    assert (done.inliers[0, :2] > 0).all() and (done.inliers[0, 2:] == -1).all()
    assert (done.inliers[1] == -1).all(), "the query's own features took all of it"


def test_a_query_that_cannot_be_read(views: dict[str, LocalFeatures], neighbours: Make) -> None:
    found = neighbours([(0, 0.5)])
    done, asked = run(views, found, [True], unreadable={0})
    assert asked == [] and done.inliers.tolist() == [[-1]] and not done.matches


@pytest.mark.parametrize(
    "wrong",
    [{"top": 0}, {"cap": 0}, {"ratio": 0}, {"ratio": 1.5}, {"model": "affine"}, {"budget": 0}],
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        GeometryStep(**wrong)


def test_the_pairs_of_lighterglue_are_verified_like_others(
    monkeypatch: pytest.MonkeyPatch, views: dict[str, LocalFeatures]
) -> None:
    """The network is replaced: it says that every point matches the one of its number."""
    rng = np.random.default_rng(0)
    here = rng.uniform(0, 90, (30, 2)).astype(np.float32)
    there = here + np.float32([3, 5])
    there[20:] = rng.uniform(0, 90, (10, 2))
    first, second = (features(points, rng.random((30, 64))) for points in (here, there))

    class Glue:
        def match(self, one: tuple, other: tuple) -> np.ndarray:
            assert one[1].dtype == np.float32 and one[2] == (100, 100)
            np.testing.assert_array_equal(other[0], there)
            return np.arange(30).repeat(2).reshape(30, 2)

    monkeypatch.setattr(geometry, "_lighterglue", Glue)
    step = GeometryStep(matcher="lighterglue", extractor="xfeat")
    match = verify(first, second, step)
    assert match.inlier[:20].all() and match.inliers < 25
    with pytest.raises(ValueError, match="features of xfeat"):
        verify(views["plane"], views["warped"], step)
    with pytest.raises(ValidationError, match="for the extractor xfeat"):
        GeometryStep(matcher="lighterglue")
