"""Removing, compacting, replacing vectors, equal contents, precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lmk.embed.errors import GalleryDamaged, GalleryError
from lmk.index.catalog.pictures import PictureTable
from lmk.index.gallery import compact, transaction
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter

NUMBERS = [*range(6), 1000, 1001, *range(100, 105), 200, 201]  # of the rows of `path`
GONE = [1, 6, 9, 14]  # in a segment, a distractor, in the second segment, in the catalog


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is rewritten goes through memory a few rows at a time."""
    for module in (transaction, compact):
        monkeypatch.setattr(module, "_BLOCK_ROWS", 3)


def name(number: int) -> str:
    return f"{number:05d}.jpg"


def remove(path: Path, rows: list[int]) -> None:
    with GalleryWriter(path) as writer:
        assert writer.remove([name(NUMBERS[row]) for row in rows]) == len(rows)
        writer.commit()


def test_removed_rows_are_gone_and_the_others_keep_their_numbers(
    path: Path, scenario: ModuleType
) -> None:
    with Gallery.open(path) as before:
        kept = before.vectors(range(15))
        remove(path, GONE)
        assert before.alive.all()  # a reader keeps what it opened
        assert before.ids(GONE) == [name(NUMBERS[row]) for row in GONE]
    left = [row for row in range(15) if row not in GONE]
    with Gallery.open(path) as gallery:
        assert (gallery.rows, gallery.removed) == (15, 4)
        assert np.flatnonzero(~gallery.alive).tolist() == GONE
        assert gallery.pictures(left) == [scenario.picture(NUMBERS[row]) for row in left]
        np.testing.assert_array_equal(gallery.vectors(left), kept[left])
        assert gallery.role_rows("distractor").tolist() == [7]
        assert gallery.role_rows("gallery").tolist() == [row for row in left if row != 7]
        assert np.flatnonzero(gallery.view().mask).tolist() == [row for row in left if row != 7]
        for ask in (gallery.ids, gallery.pictures):
            with pytest.raises(IndexError, match="row 6 was removed"):
                ask([0, 6])
        labels = {label for row in left for label in scenario.labels_of(NUMBERS[row])}
        assert list(gallery.label_names) == sorted(labels)
        assert [gallery.labels(row) for row in left] == [
            scenario.labels_of(NUMBERS[row]) for row in left
        ]
        assert gallery.labels(1) == ()
        info = gallery.info()
        assert (info.pictures, info.distractors, info.removed) == (10, 1, 4)
        assert gallery.find([name(0), name(1), "none"]) == {name(0): 0}
        entries = list(gallery.entries())
        assert [row for row, _, _ in entries] == left
        assert [picture for _, picture, _ in entries] == gallery.pictures(left)
        assert [role for _, _, role in entries].count("distractor") == 1
    assert verify(path) == ()


def test_an_unknown_id_is_named_and_nothing_is_removed(path: Path) -> None:
    with GalleryWriter(path) as writer:
        with pytest.raises(GalleryError, match=r"^none\.jpg: no picture of the gallery has this"):
            writer.remove([name(0), "none.jpg"])
        assert writer.remove([]) == 0
        assert writer.remove([name(0), name(0)]) == 1
        with pytest.raises(GalleryError, match="no picture"):
            writer.remove([name(0)])
        writer.commit()
    with Gallery.open(path) as gallery:
        assert gallery.removed == 1


def test_a_changed_picture_is_removed_and_added_in_one_commit(
    path: Path, scenario: ModuleType
) -> None:
    embeddings, (picture,) = scenario.batch([2])
    changed = replace(picture, sha256="f" * 64, labels=("landmark new",))
    with scenario.committing(path) as writer:
        writer.remove([picture.id])
        writer.append(embeddings, [changed])
        assert writer.uncommitted.find([picture.id]) == {picture.id: 15}
        writer.remove([picture.id])
        writer.append(embeddings, [changed])
    with Gallery.open(path) as gallery:
        assert gallery.find([picture.id]) == {picture.id: 16}
        assert np.flatnonzero(~gallery.alive).tolist() == [2, 15]
        assert gallery.pictures([16]) == [changed]
    assert verify(path) == ()


def test_many_removals_and_adds_of_one_are_folded(
    tmp_path: Path, scenario: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmk.index.catalog.changes.SMALL_BATCHES", 3)
    monkeypatch.setattr("lmk.index.catalog.changes.BATCH_ROWS", 8)
    path = tmp_path / "g"
    with GalleryWriter(path, create=True) as writer:
        writer.reset(scenario.A, 8)
        for number in range(30):
            writer.append(*scenario.batch([number]), "distractor" if number % 3 else "gallery")
        for number in range(0, 20, 2):
            writer.remove([name(number)])
        writer.commit()
        batches = writer._t.catalog.batches(0)
        assert [rows for _, rows, _ in batches[:3]] == [8, 8, 8]
        assert len(batches) <= 6
        assert len(writer._t.catalog.removals()) <= 3
    with Gallery.open(path) as gallery:
        left = [n for n in range(30) if n >= 20 or n % 2]
        assert np.flatnonzero(gallery.alive).tolist() == left
        assert gallery.pictures(left) == [scenario.picture(n) for n in left]
        assert gallery.role_rows("gallery").tolist() == [n for n in left if n % 3 == 0]
        assert [gallery.labels(n) for n in left] == [scenario.labels_of(n) for n in left]
    assert verify(path) == ()


# Compact


def test_compact_numbers_densely_and_carries_everything_over(
    path: Path, scenario: ModuleType
) -> None:
    remove(path, GONE)
    left = [row for row in range(15) if row not in GONE]
    with scenario.committing(path) as writer:
        writer.put_array("by row", np.arange(15) * 10, by_row=True)
        writer.put_array("whole", np.array([7, 8]))
    with Gallery.open(path) as before, GalleryWriter(path) as writer:
        writer.compact()
        writer.commit()
        with Gallery.open(path) as gallery:
            assert (gallery.rows, gallery.removed) == (11, 0)
            assert gallery.pictures(range(11)) == before.pictures(left)
            np.testing.assert_array_equal(gallery.vectors(range(11)), before.vectors(left))
            assert [gallery.labels(r) for r in range(11)] == [before.labels(r) for r in left]
            assert gallery.role_rows("distractor").tolist() == [left.index(7)]
            assert gallery.array("by row").tolist() == [row * 10 for row in left]
            assert gallery.array("whole").tolist() == [7, 8]
            assert gallery.array("penalty") is None  # of other rows, and dropped
            assert gallery.setting("pipeline") == {"k": 9}
            assert gallery.generation > before.generation
    with scenario.committing(path) as writer:
        assert len(list((path / "segments").iterdir())) == 1
        assert writer.append(*scenario.batch([1, 500])) == 2
    assert verify(path) == ()


def test_compact_keeps_large_segments_that_lose_nothing(
    tmp_path: Path, scenario: ModuleType
) -> None:
    path = tmp_path / "g"
    with (
        scenario.small_segments(inline=2, small=8, many=9),
        scenario.committing(path, create=True) as w,
    ):
        w.reset(scenario.A, 8)
        for start in (0, 10, 20, 30):
            w.append(*scenario.batch(range(start, start + 10)))
        w.append(*scenario.batch([40]))
        w.commit()
        w.remove([name(12), name(31), name(40)])
        w.compact()
    with Gallery.open(path) as gallery:
        numbers = [n for n in range(41) if n not in (12, 31, 40)]
        assert gallery.pictures(range(38)) == [scenario.picture(n) for n in numbers]
        expected = [scenario.vector_of(n) for n in numbers]
        np.testing.assert_allclose(gallery.vectors(range(38)), expected, atol=1e-3)
        files = [file for _, _, file in gallery._catalog.segments()]
        assert files[0] == "segments/000001.f16"
        assert files[2] == "segments/000003.f16"
        assert {files[1], files[3]}.isdisjoint({"segments/000002.f16", "segments/000004.f16"})
        assert gallery.stored.parts[2].first_row == 19
    assert verify(path) == ()


def test_compact_without_removed_rows_joins_small_files_once(
    path: Path, scenario: ModuleType
) -> None:
    before = scenario.answers_at(path)
    with scenario.committing(path) as writer:
        writer.put_array("by row", np.arange(15), by_row=True)
        assert writer.compact()
    with GalleryWriter(path) as writer:
        generation = writer._t.state.generation
        assert not writer.compact()
        assert writer._t.state.generation == generation
    with Gallery.open(path) as gallery:
        assert [part.rows for part in gallery.stored.parts] == [13, 2]  # they were 8, 5 and 2
        assert gallery.array("by row").tolist() == list(range(15))
    assert scenario.answers_at(path) == before
    assert verify(path) == ()


def test_compact_gives_the_space_of_the_catalog_back(path: Path, scenario: ModuleType) -> None:
    numbers = range(2000, 4000)
    with scenario.committing(path) as writer:
        writer.append(*scenario.batch(numbers))
    full = (path / "catalog.db").stat().st_size
    remove_all = [name(number) for number in numbers]
    with scenario.committing(path) as writer:
        writer.remove(remove_all)
    assert (path / "catalog.db").stat().st_size == full
    with Gallery.open(path) as before, GalleryWriter(path) as writer:
        assert writer.compact()
        writer.commit()
        assert not writer.compact()
        writer.append(*scenario.batch([5000]))
        writer.commit()
        assert before.rows == 2015
    assert (path / "catalog.db").stat().st_size < full / 4
    assert verify(path) == ()


def test_no_segment_becomes_too_large_to_rewrite(tmp_path: Path, scenario: ModuleType) -> None:
    path = tmp_path / "g"
    with scenario.small_segments(inline=2, small=8, many=6), GalleryWriter(path, create=True) as w:
        w.reset(scenario.A, 8)
        for start in range(0, 70, 7):
            w.append(*scenario.batch(range(start, start + 7)))
            w.commit()
        sizes = [rows for _, rows, _ in w._t.catalog.segments()]
        assert sizes == [32, 17, 7, 7, 7]  # the first seven were folded
        w.remove([name(3), name(40)])
        w.compact()
        w.commit()
        assert max(rows for _, rows, _ in w._t.catalog.segments()) <= 32
    with Gallery.open(path) as gallery:
        expected = [scenario.vector_of(n) for n in range(70) if n not in (3, 40)]
        np.testing.assert_allclose(gallery.vectors(range(68)), expected, atol=1e-3)
    assert verify(path) == ()


def test_an_old_segment_that_is_too_large_is_cut(tmp_path: Path, scenario: ModuleType) -> None:
    path = tmp_path / "g"
    with (
        scenario.small_segments(inline=2, small=60),
        scenario.committing(path, create=True) as writer,
    ):
        writer.reset(scenario.A, 8)
        writer.append(*scenario.batch(range(60)))
    with scenario.small_segments(inline=2, small=8), GalleryWriter(path) as writer:
        (_, _, file), *others = writer._t.catalog.segments()
        assert not others and {len(block) for block in writer._t.blocks(file)} == {3}
        writer.remove([name(7)])
        writer.compact()
        writer.commit()
        assert [rows for _, rows, _ in writer._t.catalog.segments()] == [32, 27]
    with Gallery.open(path) as gallery:
        expected = [scenario.vector_of(n) for n in range(60) if n != 7]
        np.testing.assert_allclose(gallery.vectors(range(59)), expected, atol=1e-3)


def test_a_gallery_can_be_emptied_and_compacted(path: Path, scenario: ModuleType) -> None:
    with scenario.committing(path) as writer:
        assert writer.remove([name(n) for n in NUMBERS]) == 15
        writer.commit()
        with Gallery.open(path) as gallery:
            assert gallery.label_names == ()
            assert not gallery.view().mask.any()
        writer.compact()
        writer.commit()
        with Gallery.open(path) as gallery:
            assert gallery.rows == 0
        writer.append(*scenario.batch([3]))
    with Gallery.open(path) as gallery:
        assert gallery.pictures([0]) == [scenario.picture(3)]
    assert verify(path) == ()


def test_compact_does_not_launder_damage(path: Path) -> None:
    remove(path, [1])
    segment = path / "segments" / "000002.f16"
    data = bytearray(segment.read_bytes())
    data[5] ^= 1
    segment.write_bytes(data)
    with GalleryWriter(path) as writer:
        with pytest.raises(GalleryDamaged, match=r"000002.f16: the file has changed"):
            writer.compact()
        with pytest.raises(GalleryError, match="open the writer again"):
            writer.commit()


# Replace vectors


def test_replaced_vectors_and_no_others_change(path: Path, scenario: ModuleType) -> None:
    rows = [14, 0, 9]  # in the catalog and in both segments
    new = np.array([scenario.vector_of(5000 + row) for row in rows])
    with Gallery.open(path) as before, GalleryWriter(path) as writer:
        writer.replace_vectors(rows, new)
        writer.commit()
        with Gallery.open(path) as gallery:
            np.testing.assert_allclose(gallery.vectors(rows), new, atol=1e-3)
            others = [row for row in range(15) if row not in rows]
            np.testing.assert_array_equal(gallery.vectors(others), before.vectors(others))
            assert gallery.generation > before.generation
            keys = [part.key for part in gallery.stored.parts]
            assert not {part.key for part in before.stored.parts} & set(keys)
    assert verify(path) == ()


@pytest.mark.parametrize("damage", ["flip", "missing"])
def test_damaged_vectors_are_replaced_where_all_are_given(
    path: Path, scenario: ModuleType, damage: str
) -> None:
    remove(path, [1])
    segment = path / "segments" / "000002.f16"
    if damage == "missing":
        segment.unlink()
    else:
        segment.write_bytes(bytes(segment.stat().st_size))
    (finding,) = verify(path)
    assert (finding.where, finding.mend, finding.rows) == (segment, "re-embed", range(8))
    with GalleryWriter(path) as writer:
        pictures = writer.uncommitted.pictures([0, 2])
        assert pictures == [scenario.picture(0), scenario.picture(2)]
        with pytest.raises(GalleryDamaged, match="nothing is given for row 3"):
            writer.replace_vectors([0, 2], np.array([scenario.vector_of(n) for n in (0, 2)]))
    rows = [0, 2, 3, 4, 5, 6, 7]
    with scenario.committing(path) as writer:
        writer.replace_vectors(rows, np.array([scenario.vector_of(NUMBERS[r]) for r in rows]))
    assert verify(path) == ()
    with Gallery.open(path) as gallery:
        expected = [scenario.vector_of(NUMBERS[row]) for row in rows]
        np.testing.assert_allclose(gallery.vectors(rows), expected, atol=1e-3)


def test_replace_vectors_refuses_what_does_not_fit(path: Path, scenario: ModuleType) -> None:
    remove(path, [1])
    one = scenario.vector_of(1)[None]
    with scenario.committing(path) as writer:
        for rows in ([1], [15], [-1]):
            with pytest.raises(ValueError, match="does not have"):
                writer.replace_vectors(rows, one)
        with pytest.raises(ValueError, match="repeated"):
            writer.replace_vectors([0, 0], np.repeat(one, 2, axis=0))
        with pytest.raises(ValueError, match="has length 0"):
            writer.replace_vectors([0], np.zeros((1, 8), np.float32))
        with pytest.raises(ValueError, match="6 components in a gallery of 8"):
            writer.replace_vectors([0], scenario.vector_of(1, scenario.B)[None])
        writer.replace_vectors([0], one)


def test_a_large_append_is_cut_into_segments(tmp_path: Path, scenario: ModuleType) -> None:
    path = tmp_path / "g"
    with (
        scenario.small_segments(inline=2, small=4),
        scenario.committing(path, create=True) as writer,
    ):
        writer.reset(scenario.A, 8)
        writer.append(*scenario.batch(range(50)))
    with Gallery.open(path) as gallery:
        assert [part.rows for part in gallery.stored.parts] == [16, 16, 16, 2]
        assert gallery.pictures(range(50)) == [scenario.picture(n) for n in range(50)]
        expected = [scenario.vector_of(n) for n in range(50)]
        np.testing.assert_allclose(gallery.vectors(range(50)), expected, atol=1e-3)


# Equal contents


def test_equal_contents_are_added_once_unless_asked(path: Path, scenario: ModuleType) -> None:
    embeddings, pictures = scenario.batch([300, 301, 302, 303])
    first, four = pictures[0], scenario.picture(4)
    alike = {"sha256": first.sha256, "labels": first.labels}
    same = [first, *(replace(p, **alike) for p in pictures[1:3])]
    twin = replace(pictures[3], sha256=four.sha256, labels=four.labels)
    with scenario.committing(path) as writer:
        assert writer.append(embeddings, [*same, twin]) == 1
        assert writer.duplicates == [
            (name(301), name(300)), (name(302), name(300)), (name(303), name(4)),
        ]  # fmt: skip
        assert writer.unchanged == 0
        assert writer.append(embeddings, [*same, twin], duplicates=True) == 3
        assert writer.unchanged == 1
    with Gallery.open(path) as gallery:
        assert gallery.ids(range(15, 19)) == [name(n) for n in (300, 301, 302, 303)]


def test_equal_contents_of_another_role_or_a_removed_picture_are_new(
    path: Path, scenario: ModuleType
) -> None:
    embeddings, pictures = scenario.batch([300, 301])
    as_distractor = replace(pictures[0], sha256=scenario.picture(1000).sha256)
    as_removed = replace(pictures[1], sha256=scenario.picture(3).sha256)
    with scenario.committing(path) as writer:
        writer.remove([name(3)])
        assert writer.append(embeddings, [as_distractor, as_removed]) == 2


def test_contents_whose_checksums_begin_alike_are_different(
    path: Path, scenario: ModuleType
) -> None:
    embeddings, (picture,) = scenario.batch([300])
    alike = replace(picture, sha256=scenario.picture(3).sha256[:40] + "0" * 24)
    with GalleryWriter(path) as writer:
        assert writer.append(embeddings, [alike]) == 1


def test_equal_contents_are_looked_up_in_an_index(path: Path) -> None:
    with GalleryWriter(path) as writer:
        seen: list[str] = []
        writer._t.catalog._connection.set_trace_callback(seen.append)
        PictureTable(writer._t.catalog).same_content("ab" * 32, "gallery")
        writer._t.catalog._connection.set_trace_callback(None)
        (query,) = seen
        ((*_, plan),) = writer._t.catalog.all(f"EXPLAIN QUERY PLAN {query}")
        assert plan.startswith("SEARCH picture USING INDEX picture_content")


# Precision


def test_single_precision_keeps_every_bit(tmp_path: Path, scenario: ModuleType) -> None:
    path = tmp_path / "g.lmk"
    embeddings, pictures = scenario.batch(range(20))
    with scenario.small_segments(inline=4), scenario.committing(path, create=True) as writer:
        writer.reset(scenario.A, 8, "f32")
        writer.append(embeddings, pictures)
        writer.commit()
        writer.append(*scenario.batch([30]))
        writer.remove([name(3)])
    with Gallery.open(path) as gallery:
        assert gallery.precision == gallery.info().precision == "f32"
        assert {part.array.dtype for part in gallery.stored.parts} == {np.dtype("<f4")}
        rows = np.arange(20)
        np.testing.assert_array_equal(gallery.stored.gather(rows), embeddings.vectors)
    assert [file.suffix for file in (path / "segments").iterdir()] == [".f32"]
    with scenario.small_segments(inline=4), scenario.committing(path) as writer:
        writer.compact()
    assert verify(path) == ()
    with pytest.raises(ValueError, match="f64"), GalleryWriter(path) as writer:
        writer.reset(scenario.A, 8, "f64")


# The writer's own view


def test_the_writer_sees_what_it_has_not_committed(path: Path, scenario: ModuleType) -> None:
    with GalleryWriter(path) as writer:
        writer.remove([name(0)])
        writer.append(*scenario.batch([300, 301]), role="distractor")
        writer.append(*scenario.batch(range(400, 430)))
        writer.append(*scenario.batch([500]))
        assert writer.uncommitted.rows == 48
        view = writer.uncommitted.view("gallery")
        assert np.flatnonzero(view.mask).tolist() == [*range(1, 6), *range(8, 15), *range(17, 48)]
        assert np.flatnonzero(writer.uncommitted.view("distractor").mask).tolist() == [6, 7, 15, 16]
        expected = [scenario.vector_of(n) for n in (300, 429, 500, 5)]
        found = view.stored.read(np.array([15, 46, 47, 5]))
        np.testing.assert_allclose(found, expected, atol=1e-3)
        names = writer.uncommitted.membership().names
        assert names == tuple(sorted(names))
        assert writer.uncommitted.pictures([47, 1]) == [scenario.picture(500), scenario.picture(1)]
    with Gallery.open(path) as gallery:
        assert gallery.rows == 15
    assert view.stored.rows == 48
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.uncommitted.view()


def test_a_by_row_array_has_a_number_for_each_row(path: Path) -> None:
    with GalleryWriter(path) as writer:
        with pytest.raises(ValueError, match=r"an array of \(3,\) for 15 rows"):
            writer.put_array("x", np.zeros(3), by_row=True)
        writer.put_array("x", np.zeros(15), by_row=True)
        writer.drop_array("x")
        writer.drop_array("never there")
        writer.put_array("y", np.zeros(15), by_row=True)
        writer.commit()
    with Gallery.open(path) as gallery:
        assert gallery.array("x") is None
        assert gallery.array("y").shape == (15,)
    assert verify(path) == ()


def test_a_skipped_file_can_be_forgotten(path: Path) -> None:
    with GalleryWriter(path) as writer:
        writer.skip("other.jpg", "odd")
        writer.unskip("broken.jpg")
        writer.commit()
    with Gallery.open(path) as gallery:
        assert gallery.skipped() == [("other.jpg", "odd")]
