"""Ids of pictures: unique, the same in any order, never passed on to another picture."""

from __future__ import annotations

from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.data.picture_ids import exact_id, unique_ids
from lmk.embed.tables.label_text import plain_name

# Names that are likely to meet: blanks, "_", escapes, both Unicode forms, endings inside.
NAMES = st.sets(
    st.builds(
        "".join,
        st.lists(st.sampled_from([*"a _%2.", "%20", "é", "e\u0301", ".jpg", "./"]), min_size=1),
    ).map(lambda stem: stem.strip("/") + ".jpg"),
    max_size=8,
)


def ids_of(names: list[str]) -> dict[str, str]:
    """As in a flat folder."""
    stems = [plain_name(PurePosixPath(name).stem) for name in names]
    return dict(zip(names, unique_ids(names, stems, plain_name, exact_id), strict=True))


@given(NAMES, st.randoms())
def test_unique_in_any_order(names: set[str], chance: object) -> None:
    ordered = sorted(names)
    ids = ids_of(ordered)
    assert len(set(ids.values())) == len(names)
    chance.shuffle(ordered)  # type: ignore[attr-defined]
    assert ids_of(ordered) == ids


@given(NAMES, NAMES)
def test_no_id_passes_to_another_picture_when_more_come(few: set[str], more: set[str]) -> None:
    before, after = ids_of(sorted(few)), ids_of(sorted(few | more))
    owner = {id_: name for name, id_ in before.items()}
    assert all(owner.get(id_, name) == name for name, id_ in after.items())


def test_the_three_forms() -> None:
    assert ids_of(["a b.jpg", "c.jpg"]) == {"a b.jpg": "a_b", "c.jpg": "c"}
    assert ids_of(["a b.jpg", "a_b.png"]) == {"a b.jpg": "a_b.jpg", "a_b.png": "a_b.png"}
    assert ids_of(["a b.jpg", "a_b.jpg"]) == {"a b.jpg": "./a%20b.jpg", "a_b.jpg": "./a_b.jpg"}
    assert ids_of(["é.jpg", "e\u0301.jpg"]) == {
        "é.jpg": "./%C3%A9.jpg",
        "e\u0301.jpg": "./e%CC%81.jpg",
    }


def test_a_form_that_was_shared_belongs_to_nobody() -> None:
    """c.jpg would get the id that c.jpg.png had while it was alone."""
    names = ["c.jpg.png", "c.jpg.gif", "c.jpg", "c.png"]
    assert ids_of(["c.jpg.png"]) == {"c.jpg.png": "c.jpg"}
    assert list(ids_of(names).values()) == ["c.jpg.png", "c.jpg.gif", "./c.jpg", "c.png"]


def test_a_name_that_stands_twice_stays_one_id() -> None:
    assert unique_ids(["a", "a", "b"], ["a", "a", "b"], exact_id) == ["a", "a", "b"]
    names = ["a b", "a b", "a_b"]
    ids = unique_ids(names, [plain_name(name) for name in names], exact_id)
    assert ids == ["./a%20b", "./a%20b", "./a_b"]
