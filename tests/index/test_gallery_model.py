"""Random writing against a plain dict: after every step the gallery says the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.index.gallery import Gallery
from lmk.index.writer import GalleryWriter

STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("append"),
            st.lists(st.integers(0, 40), unique=True, max_size=9),
            st.sampled_from(["gallery", "distractor"]),
        ),
        st.tuples(st.just("set"), st.sampled_from("ab"), st.integers() | st.text(max_size=3)),
        st.tuples(st.just("array"), st.lists(st.floats(allow_nan=False), max_size=4)),
        st.tuples(st.just("skip"), st.text(st.characters(codec="utf-8"), max_size=3)),
        st.tuples(st.just("reset"), st.sampled_from("AB")),
        st.tuples(st.just("commit")),
        st.tuples(st.just("abandon")),
    ),
    max_size=14,
)


def new_model(fingerprint: str) -> dict:
    return {"fingerprint": fingerprint, "rows": {}, "set": {}, "array": None, "skip": set()}


def copied(model: dict) -> dict:
    return {key: value.copy() if hasattr(value, "copy") else value for key, value in model.items()}


def agree(gallery: Gallery, model: dict, scenario: ModuleType) -> None:
    numbers = list(model["rows"])
    assert gallery.fingerprint == model["fingerprint"]
    assert gallery.pictures(range(gallery.rows)) == [scenario.picture(n) for n in numbers]
    expected = [scenario.vector_of(n, model["fingerprint"]) for n in numbers]
    expected = np.array(expected).reshape(len(numbers), gallery.dim)
    np.testing.assert_allclose(gallery.vectors(range(gallery.rows)), expected, atol=1e-3)
    for role in ("gallery", "distractor"):
        rows = [row for row, n in enumerate(numbers) if model["rows"][n] == role]
        assert gallery.role_rows(role).tolist() == rows
    assert {name: gallery.setting(name) for name in model["set"]} == model["set"]
    array = gallery.array("x")
    assert (None if array is None else array.tolist()) == model["array"]
    assert {path for path, _ in gallery.skipped()} == model["skip"]


def apply(writer: GalleryWriter, model: dict, step: tuple, scenario: ModuleType) -> dict:
    """Does one step to both; returns the model after it."""
    kind, *values = step
    if kind == "append":
        numbers, role = values
        new = [n for n in numbers if n not in model["rows"]]
        assert writer.append(*scenario.batch(numbers, model["fingerprint"]), role) == len(new)
        model["rows"].update(dict.fromkeys(new, role))
        if new:
            model["array"] = None
    elif kind == "set":
        writer.set(*values)
        model["set"][values[0]] = values[1]
    elif kind == "array":
        writer.put_array("x", np.array(values[0]))
        model["array"] = values[0]
    elif kind == "skip" and "\0" not in values[0]:
        writer.skip(values[0], "reason")
        model["skip"].add(values[0])
    elif kind == "reset":
        fingerprint = getattr(scenario, values[0])
        writer.reset(fingerprint, scenario.DIMS[fingerprint])
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
        for step in steps:
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
        agree(first, new_model(scenario.A), scenario)
        first.close()
