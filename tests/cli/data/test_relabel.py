"""lmk data relabel: candidates, the sheet to tick, verdicts put in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from lmk.embed.data.manifest import Manifest, read_manifest

Run = Callable[..., object]
Table = Callable[..., Path]


def test_candidates_sheet_and_back(lmk: Run, here: Path, tagger: Path, tag_table: Table) -> None:
    path = tag_table(here / "photos.csv", "gallery")
    text = path.read_text().replace("castle/0.jpg,castle stone", "castle/0.jpg,stone tower")
    path.write_text(text)
    done = lmk("data", "relabel", path, "--tagger", tagger, "-o", "c.csv", "--html", "s.html",
               "--json")  # fmt: skip
    assert done.code == 0, done
    found = {(one["id"], one["tag"]): one for one in json.loads(done.out)["candidates"]}
    assert found["castle/0.jpg", "castle"]["kind"] == "missing"
    page = (here / "s.html").read_text()
    boxes = re.findall(r'data-id="(.*?)" data-tag="(.*?)"( checked)?>', page)
    assert ("castle/0.jpg", "castle", "") in boxes
    assert ("castle/0.jpg", "stone", " checked") in boxes
    # the sheet as it is changes nothing; ticked it does
    as_saved = ["id,tag,verdict", *(f"{i},{t},{'yes' if c else 'no'}" for i, t, c in boxes)]
    (here / "v.csv").write_text("\n".join(as_saved))
    merge = ("data", "relabel", path, "--merge", "v.csv", "-o", "better.csv")
    assert lmk(*merge).out.endswith("0 tags added, 0 removed\n")
    assert Manifest(Path(), read_manifest("better.csv").rows) == Manifest(
        Path(), read_manifest(path).rows
    )
    ticked = "\n".join(as_saved).replace("castle/0.jpg,castle,no", "castle/0.jpg,castle,yes")
    (here / "v.csv").write_text(ticked.replace("castle/0.jpg,tower,yes", "castle/0.jpg,ivy,yes"))
    done = lmk(*merge, "--json")
    assert json.loads(done.out)["added"] == {"castle": 1, "ivy": 1}
    assert done.complaints == ["lmk: v.csv: tags that no picture had before: ivy"]
    assert (
        "castle/0.jpg,gallery/castle/0.jpg,stone tower castle ivy" in Path("better.csv").read_text()
    )


def test_by_neighbours_alone(lmk: Run, here: Path, tiny: Path, tag_table: Table) -> None:
    path = tag_table(here / "photos.csv", "gallery")
    done = lmk("data", "relabel", path, "--model", tiny, "--above", 0.3, "--limit", 1,
               "--html", "s.html")  # fmt: skip
    assert done.code == 0
    assert done.out.startswith("12 pictures: ")
    assert "(neighbours 0." in done.out
    assert "more: see --limit" in (here / "s.html").read_text()


def test_calls_that_are_wrong(lmk: Run, here: Path, tiny: Path, tag_table: Table) -> None:
    path = tag_table(here / "photos.csv", "gallery")
    (here / "v.csv").write_text("id,tag,verdict\n")
    lmk("data", "relabel", path, "--merge", "v.csv").refused(2, "name a CSV with -o")
    merge = ("data", "relabel", path, "--merge", "v.csv", "-o")
    lmk(*merge, path).refused(2, "overwritten")
    for words in (("--html", "s.html"), ("--tagger", "my-tags"), ("--model", tiny)):
        lmk(*merge, "b.csv", *words).refused(2, f"{words[0]}: does not go with --merge")
    lmk("data", "relabel", "bank").refused(2, "no picture has a tag")
    (here / "gone.csv").write_text("id,path,tags\na,gone.jpg,castle\n")
    done = lmk("data", "relabel", "gone.csv", "--model", tiny)
    assert done.code == 2
    assert "no picture can be read" in done.complaints[-1]
    lmk("data", "relabel", path, "--top", 3).refused(2, "--top: has no effect without --tagger")
    lmk("data", "relabel", path, "--limit", 3).refused(2, "--limit: has no effect without --ht")
