"""Random writing against a plain dict: after every step the gallery says the same."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.search.choose import choose
from lmk.index.vectors.neighbours import NO_ROW

NUMBERS = st.lists(st.integers(0, 14), unique=True, max_size=9)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), NUMBERS, st.sampled_from(["gallery", "distractor"])),
        st.tuples(st.just("remove"), NUMBERS),
        st.tuples(st.just("change"), NUMBERS),
        st.tuples(st.just("mend"), NUMBERS),
        st.tuples(st.just("compact")),
        st.tuples(st.just("row array and compact")),
        st.tuples(st.just("set"), st.sampled_from("ab"), st.integers() | st.text(max_size=3)),
        st.tuples(st.just("array"), st.lists(st.floats(allow_nan=False), max_size=4)),
        st.tuples(st.just("row array")),
        st.tuples(st.just("skip"), st.text(st.characters(codec="utf-8"), max_size=3)),
        st.tuples(st.just("commit")),
        st.tuples(st.just("reset"), st.sampled_from("AB"), st.sampled_from(["f16", "f32"])),
        st.tuples(st.just("commit")),
        st.tuples(st.just("abandon")),
    ),
    min_size=6,
    max_size=20,
)


BEGIN = [("append", range(8), "gallery"), ("append", (20, 21), "distractor"), ("remove", (1, 20))]


def new_model(fingerprint: str) -> dict:
    """rows: (number, role, version of its content and vector, of its vector), None if removed."""
    return {
        "fingerprint": fingerprint,
        "rows": [],
        "set": {},
        "array": None,
        "row array": None,
        "skip": set(),
    }


def copied(model: dict) -> dict:
    return {key: value.copy() if hasattr(value, "copy") else value for key, value in model.items()}


def picture_of(entry: tuple, scenario: ModuleType) -> Picture:
    number, _, content, _ = entry
    picture = scenario.picture(number)
    return replace(picture, sha256=f"{picture.sha256[:60]}{content:04d}", mtime_ns=content)


def vector_of(entry: tuple, model: dict, scenario: ModuleType) -> np.ndarray:
    number, _, content, version = entry
    return scenario.vector_of(number + 1000 * content + 10**6 * version, model["fingerprint"])


def agree(gallery: Gallery, model: dict, scenario: ModuleType) -> None:
    living = {row: entry for row, entry in enumerate(model["rows"]) if entry is not None}
    rows = list(living)
    assert gallery.fingerprint == model["fingerprint"]
    assert gallery.alive.tolist() == [entry is not None for entry in model["rows"]]
    assert gallery.pictures(rows) == [picture_of(e, scenario) for e in living.values()]
    expected = [vector_of(entry, model, scenario) for entry in living.values()]
    expected = np.array(expected).reshape(len(rows), gallery.dim)
    np.testing.assert_allclose(gallery.vectors(rows), expected, atol=1e-3)
    for role in ("gallery", "distractor"):
        of_role = [row for row, entry in living.items() if entry[1] == role]
        assert gallery.role_rows(role).tolist() == of_role
    assert {name: gallery.setting(name) for name in model["set"]} == model["set"]
    for name in ("array", "row array"):
        array = gallery.array(name)
        assert (None if array is None else array.tolist()) == model[name]
    assert {path for path, _ in gallery.skipped()} == model["skip"]


def agree_on_search(gallery: Gallery, model: dict, scenario: ModuleType) -> None:
    """The nearest of each query: every product in float64, equal ones by row."""
    fingerprint = model["fingerprint"]
    vectors = np.array([scenario.vector_of(7000 + i, fingerprint) for i in range(3)])
    queries = Embeddings(vectors, ("a", "b", "c"), fingerprint)
    rows = gallery.role_rows("gallery")
    products = vectors.astype(np.float64) @ gallery.vectors(rows).astype(np.float64).T
    order = np.argsort(-products.astype(np.float32), axis=1, kind="stable")[:, :5]
    found = choose(gallery).search(queries, 5)
    assert found.rows[:, : order.shape[1]].tolist() == rows[order].tolist()
    assert (found.rows[:, order.shape[1] :] == NO_ROW).all()


def rows_changed(model: dict) -> None:
    model["array"] = model["row array"] = None


def apply(writer: GalleryWriter, model: dict, step: tuple, scenario: ModuleType) -> dict:
    """Does one step to both; returns the model after it."""
    kind, *values = step
    if kind == "row array and compact":  # the one matters to the other
        model = apply(writer, model, ("row array",), scenario)
        return apply(writer, model, ("compact",), scenario)
    rows = model["rows"]
    here = {entry[0]: row for row, entry in enumerate(rows) if entry is not None}
    if kind in ("append", "change"):
        if kind == "append":
            role = values[1]
            new = [(number, role, 0, 0) for number in values[0] if number not in here]
            again = [rows[here[number]] for number in values[0] if number in here]
        else:
            role, again = "gallery", []
            old = [rows[here[number]] for number in values[0] if number in here]
            new = [(number, role, content + 1, 0) for number, _, content, _ in old]
            writer.remove([picture_of(entry, scenario).id for entry in old])
            for entry in old:
                rows[here[entry[0]]] = None
        vectors = np.array([vector_of(entry, model, scenario) for entry in new + again])
        pictures = [picture_of(entry, scenario) for entry in new + again]
        ids = tuple(picture.id for picture in pictures)
        if ids:
            given = Embeddings(vectors, ids, model["fingerprint"])
            assert writer.append(given, pictures, role) == len(new)
        rows += new
        if new:
            rows_changed(model)
    elif kind == "remove":
        gone = [number for number in values[0] if number in here]
        assert writer.remove([scenario.picture(number).id for number in gone]) == len(gone)
        for number in gone:
            rows[here[number]] = None
        if gone:
            rows_changed(model)
    elif kind == "mend":
        which = [here[number] for number in values[0] if number in here]
        for row in which:
            *same, version = rows[row]
            rows[row] = (*same, version + 1)
        if which:
            vectors = np.array([vector_of(rows[row], model, scenario) for row in which])
            writer.replace_vectors(which, vectors)
            rows_changed(model)
    elif kind == "compact":
        writer.compact()
        if model["row array"] is not None:
            kept = zip(model["row array"], rows, strict=True)
            model["row array"] = [value for value, entry in kept if entry is not None]
        model["rows"] = [entry for entry in rows if entry is not None]
    elif kind == "set":
        writer.set(*values)
        model["set"][values[0]] = values[1]
    elif kind == "array":
        writer.put_array("array", np.array(values[0]))
        model["array"] = values[0]
    elif kind == "row array":
        model["row array"] = [10 * row for row in range(len(rows))]
        writer.put_array("row array", np.array(model["row array"], np.int64), by_row=True)
    elif kind == "skip" and "\0" not in values[0]:
        writer.skip(values[0], "reason")
        model["skip"].add(values[0])
    elif kind == "reset":
        fingerprint = getattr(scenario, values[0])
        writer.reset(fingerprint, scenario.DIMS[fingerprint], values[1])
        model = new_model(fingerprint)
    return model


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_a_gallery_says_what_a_dict_says(scenario: ModuleType, steps: list[tuple]) -> None:
    sizes = scenario.small_segments(inline=4, small=9, many=2)
    with tempfile.TemporaryDirectory() as folder, sizes:
        path = Path(folder) / "g.lmk"
        writer = GalleryWriter(path, create=True)
        writer.reset(scenario.A, 8)
        writer.commit()
        committed = new_model(scenario.A)
        model = copied(committed)
        first = Gallery.open(path)
        for step in (*BEGIN, *steps, ("commit",)):
            model = apply(writer, model, step, scenario)
            if step[0] == "commit":
                writer.commit()
                committed = copied(model)
            elif step[0] == "abandon":
                writer.close()
                writer, model = GalleryWriter(path), copied(committed)
            with Gallery.open(path) as gallery:
                agree(gallery, committed, scenario)
        writer.close()
        with Gallery.open(path) as gallery:
            agree(gallery, committed, scenario)
            agree_on_search(gallery, committed, scenario)
        assert verify(path) == ()
        agree(first, new_model(scenario.A), scenario)
        first.close()
