"""Several galleries made into one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lmk.embed.errors import EmbedderMismatch, GalleryError, UsageError
from lmk.index.gallery import merge as merging
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.merge import MergeReport, merge
from lmk.index.gallery.verify import verify


@pytest.fixture
def other(tmp_path: Path, scenario: ModuleType, small: None) -> Path:
    """Shares pictures 2 and 1001 with `path`; picture 700 was removed; full precision."""
    path = tmp_path / "other.lmk"
    with scenario.committing(path, create=True) as writer:
        writer.reset(scenario.A, 8, "f32")
        writer.append(*scenario.batch([700, 2, 701, 702]))
        writer.append(*scenario.batch([1001, 1002]), role="distractor")
        writer.remove(["00700.jpg"])
        writer.skip("odd.jpg", "no picture")
    return path


def test_rows_of_all_come_in_order_with_every_bit(
    path: Path, other: Path, tmp_path: Path, scenario: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_BLOCK_ROWS", 2)
    out, seen = tmp_path / "out.lmk", []
    report = merge(out, [path, other], on_progress=lambda done, total: seen.append((done, total)))
    assert report == MergeReport(15, 3, 2, ())
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    numbers = [*range(6), 1000, 1001, *range(100, 105), 200, 201, 701, 702, 1002]
    with Gallery.open(out) as gallery, Gallery.open(path) as a, Gallery.open(other) as b:
        assert gallery.pictures(range(18)) == [scenario.picture(n) for n in numbers]
        assert gallery.role_rows("distractor").tolist() == [6, 7, 17]
        assert gallery.precision == "f32"
        stored = gallery.stored.gather(np.arange(18))
        np.testing.assert_array_equal(stored[:15], a.stored.gather(np.arange(15)))
        np.testing.assert_array_equal(stored[15:], b.stored.gather(np.array([2, 3, 5])))
        assert gallery.setting("pipeline") == {"k": 9}
        assert gallery.skipped() == [("broken.jpg", "cut short"), ("odd.jpg", "no picture")]
        assert gallery.array("penalty") is None
        assert (gallery.embedder_dir / "config.json").read_text() == '{"backbone": "none"}'
    assert verify(out) == ()


def test_merging_halves_of_half_precision_is_the_whole(
    tmp_path: Path, scenario: ModuleType
) -> None:
    for name, numbers in (("a", range(9)), ("b", range(9, 20)), ("all", range(20))):
        with scenario.committing(tmp_path / name, create=True) as writer:
            writer.reset(scenario.A, 8)
            writer.append(*scenario.batch(numbers))
    merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert scenario.answers_at(tmp_path / "out") == scenario.answers_at(tmp_path / "all")


def test_equal_contents_of_two_galleries(path: Path, tmp_path: Path, scenario: ModuleType) -> None:
    twin = tmp_path / "twin.lmk"
    embeddings, (picture,) = scenario.batch([800])
    with scenario.committing(twin, create=True) as writer:
        writer.reset(scenario.A, 8)
        three = scenario.picture(3)
        alike = replace(picture, sha256=three.sha256, labels=three.labels)
        writer.append(embeddings, [alike])
    assert merge(tmp_path / "o", [path, twin]).duplicates == (("00800.jpg", "00003.jpg"),)
    assert merge(tmp_path / "o", [path, twin], duplicates=True).pictures == 14
    assert scenario.answers_at(tmp_path / "o")["ids"][-1] == "00800.jpg"


def test_labels_that_differ_between_two_galleries(
    path: Path, tmp_path: Path, scenario: ModuleType
) -> None:
    """The first gallery's label of an id is kept, and a label replaces none; both are told."""
    other = tmp_path / "other.lmk"
    embeddings, pictures = scenario.batch([0, 1, 3])
    assert pictures[2].labels == ()
    given = [pictures[0], replace(pictures[1], labels=("x",)), replace(pictures[2], labels=("y",))]
    with scenario.committing(other, create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.append(embeddings, given)
    report = merge(tmp_path / "o", [path, other])
    assert [(one.id, one.labels) for one in report.conflicts] == [("00001.jpg", ("x",))]
    assert [(one.id, one.labels) for one in report.relabelled] == [("00003.jpg", ("y",))]
    kept = {p.id: p.labels for p in scenario.answers_at(tmp_path / "o")["pictures"]}
    assert kept["00001.jpg"] == pictures[1].labels
    assert kept["00003.jpg"] == ("y",)
    with Gallery.open(path) as gallery:
        assert report.pictures == len(gallery.role_rows("gallery"))
    assert report.repeated == 3


def test_one_id_of_two_contents_names_both_galleries(
    path: Path, other: Path, tmp_path: Path, scenario: ModuleType
) -> None:
    third = tmp_path / "third.lmk"
    embeddings, (picture,) = scenario.batch([701])
    with scenario.committing(third, create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.append(embeddings, [replace(picture, sha256="e" * 64)])
    with pytest.raises(GalleryError, match=r"^00701\.jpg: .*other.lmk and .*third.lmk have diff"):
        merge(tmp_path / "out.lmk", [path, other, third])


def test_another_embedder_is_refused(path: Path, tmp_path: Path, scenario: ModuleType) -> None:
    scenario.rebuild(tmp_path / "b.lmk", scenario.B)
    with pytest.raises(EmbedderMismatch, match=r"b\.lmk: made by embedder bbbb.*g.lmk by aaaa"):
        merge(tmp_path / "out.lmk", [path, tmp_path / "b.lmk"])
    assert not (tmp_path / "out.lmk").exists()


def test_a_gallery_is_not_merged_into_itself(path: Path, scenario: ModuleType) -> None:
    before = scenario.answers_at(path)
    with pytest.raises(UsageError, match="into itself"):
        merge(path, [path])
    with pytest.raises(UsageError, match="no galleries"):
        merge(path, [])
    assert scenario.answers_at(path) == before
