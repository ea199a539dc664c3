"""The command `lmk data relabel`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.options import FILE, PATH, as_json, note_root, refuse_idle, root
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json, echo_lines
from lmk.cli.ranges import FloatRange
from lmk.cli.render import check_output, counted, echo_skipped, page, write_text
from lmk.embed.defaults import DEFAULT
from lmk.embed.errors import ManifestError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmk.embed.data.manifest import Manifest
    from lmk.eval.check.relabel import Candidate

TOP, SHEET, ABOVE, DOUBT = 5, 200, 0.5, 0.05


@click.command("relabel", short_help="Find missing and wrong tags; merge verdicts.")
@click.argument("manifest", type=PATH)
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="CSV file to write: the candidates, or with --merge the corrected labels.",
)
@click.option(
    "--html",
    type=FILE,
    help="Write a page with the pictures and checkboxes, which saves verdicts for --merge.",
)
@click.option(
    "--merge",
    type=PATH,
    metavar="CSV",
    help="Apply these verdicts (columns id, tag, verdict: yes or no) to MANIFEST; writes to -o.",
)
@click.option(
    "--tagger",
    type=PATH,
    metavar="DIR",
    help="Also use a tagger that `lmk train` wrote, preferably trained on other pictures.  "
    "[default: only the nearest pictures]",
)
@click.option(
    "--model",
    metavar="NAME",
    help=f"Network for the nearest pictures.  [default: the tagger's, or {DEFAULT}]",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    help=f"Number of the tagger's best tags of a picture to consider.  [default: {TOP}]",
)
@click.option(
    "--above",
    type=FloatRange(0, 1),
    help=f"A tag may be missing above this probability or share of the neighbours.  [default: "
    f"{ABOVE}]",
)
@click.option(
    "--doubt",
    type=FloatRange(0, 1),
    help=f"A tag may be wrong below this probability and share of the neighbours.  [default: "
    f"{DOUBT}]",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help=f"Number of pictures on the page, most evidence first.  [default: {SHEET}]",
)
@root
@as_json
def relabel(
    manifest: Path,
    output: Path | None,
    html: Path | None,
    merge: Path | None,
    tagger: Path | None,
    model: str | None,
    top: int | None,
    above: float | None,
    doubt: float | None,
    limit: int | None,
    root: Path | None,
    as_json: bool,
) -> None:
    """Find tags that pictures of MANIFEST may lack, and tags that may be wrong.

    A tag may be missing if the tagger gives it a high probability, or most of the nearest other
    pictures have it. A tag may be wrong if neither is so. Fill in the column verdict of -o, or tick
    the boxes on the page of --html and save its verdicts; then --merge applies them to the labels.

    Example: lmk data relabel photos.csv --tagger my-tags --html sheet.html

    Then: lmk data relabel photos.csv --merge verdicts.csv -o better.csv
    """
    for path in (output, html):
        check_output(path, reads=[manifest] if merge is None else [manifest, merge])
    if merge is not None:
        finding: dict[str, object] = {"--html": html, "--tagger": tagger, "--model": model}
        finding |= {"--top": top, "--above": above, "--doubt": doubt, "--limit": limit}
        for name, given in (finding | {"--root": root}).items():
            if given is not None:
                remedy = "leave one of the two out"
                raise UsageError("does not go with --merge", where=name, remedy=remedy)
        if output is None:
            raise UsageError("needs an output file", where="--merge", remedy="name a CSV with -o")
        _merge(manifest, merge, output, as_json)
        return
    if tagger is None:
        refuse_idle({"--top": top}, "without --tagger")
    if html is None:
        refuse_idle({"--limit": limit}, "without --html")
    pictures = read_pictures(manifest, root=root)
    own_above, own_doubt = (ABOVE if above is None else above), (DOUBT if doubt is None else doubt)
    candidates = _candidates(pictures, tagger, model, top or TOP, own_above, own_doubt)
    if output is not None:
        from lmk.eval.check.relabel import candidates_csv

        write_text(output, candidates_csv(candidates))
    if html is not None:
        write_text(html, _sheet(candidates, pictures, limit or SHEET))
    if as_json:
        echo_json(_as_dict(candidates))
    else:
        echo_lines(_lines(candidates, len(pictures)))


def _merge(table: Path, verdicts: Path, output: Path, as_json: bool) -> None:
    from lmk.eval.check.relabel import merge_verdicts, read_verdicts

    decided = read_verdicts(verdicts)
    merged = merge_verdicts(table, decided)
    write_text(output, merged.text)
    note_root(merged.table, output)
    if merged.new:
        new = ", ".join(merged.new)
        echo(f"lmk: {verdicts}: tags that no picture had before: {new}", err=True)
    added, removed = sum(merged.added.values()), sum(merged.removed.values())
    if as_json:
        facts = {"output": str(output), "pictures": len(decided), "new": merged.new}
        facts |= {"added": dict(merged.added), "removed": dict(merged.removed)}
        echo_json(facts)
        return
    judged = counted(len(decided), "picture")
    echo(f"{output}: verdicts on {judged}: {added:,} tags added, {removed:,} removed")


def _candidates(
    manifest: Manifest, tagger: Path | None, model: str | None, top: int, above: float, doubt: float
) -> list[Candidate]:
    """Returns the missing and wrong tags of all pictures, as candidates."""
    import numpy as np

    from lmk.cli.progress import StageProgress
    from lmk.embed.embeddings import Embeddings
    from lmk.embed.extract.embedder import Embedder
    from lmk.embed.extract.extract import extract
    from lmk.embed.extract.feature_store import FeatureStore
    from lmk.embed.scratch import ScratchFolder
    from lmk.eval.check.relabel import neighbour_tags, relabel_candidates
    from lmk.rerank.tags.taggers import HeadTagger, tag_files

    if not manifest.labelled:
        remedy = "give a CSV with a column tags (several, separated by blanks)"
        raise ManifestError("no picture has a tag", where=manifest.root, remedy=remedy)
    head = None if tagger is None else HeadTagger.open(tagger)
    if head is not None and model is None:
        embedder = head.embedder
    else:
        embedder = Embedder.named(model or DEFAULT)
    total = len(manifest)
    with ScratchFolder("relabel") as folder, StageProgress() as progress:
        store = FeatureStore(folder, embedder.feature_fingerprint, embedder.feature_dim)
        done = extract(manifest, embedder, store, on_progress=progress.stage("neighbours", total))
        echo_skipped(done.skipped, f"of {manifest.root}")
        pictures = list(done.pictures)
        if not pictures:
            remedy = manifest.unreadable_remedy
            raise ManifestError("no picture can be read", where=manifest.origin, remedy=remedy)
        rows = [picture.row for picture in pictures]
        content = [picture.sha256 for picture in pictures]
        vectors = embedder.vectors(store.read(content))
        near = Embeddings(vectors, tuple(row.id for row in rows), embedder.fingerprint)
        names, votes = neighbour_tags(near, [row.labels for row in rows], content)
        probabilities = None
        if head is not None:  # A tagger scores raw features, which the store does not contain.
            files = [(row.id, manifest.file(row)) for row in rows]
            batches = tag_files(head, files, on_progress=progress.stage("tagger", total))
            probabilities = np.concatenate([batch.scores for batch in batches])
    known = () if head is None else head.names
    return relabel_candidates(
        rows, names, votes, known, probabilities, top=top, above=above, doubt=doubt
    )


def _as_dict(candidates: Sequence[Candidate]) -> dict[str, Any]:
    kinds = [one.kind for one in candidates]
    return {
        "missing": kinds.count("missing"),
        "wrong": kinds.count("wrong"),
        "candidates": [
            {
                "id": one.row.id,
                "path": one.row.path,
                "tag": one.tag,
                "kind": one.kind,
                "tagger": one.tagger,
                "neighbours": one.neighbours,
            }
            for one in candidates
        ],
    }


def _lines(candidates: Sequence[Candidate], pictures: int, most: int = 10) -> list[str]:
    """Returns lines of text with the number and the first `most` candidates of each kind."""
    lines = [f"{counted(pictures, 'picture')}: {counted(len(candidates), 'candidate')}"]
    for kind in ("missing", "wrong"):
        own = [one for one in candidates if one.kind == kind]
        if own:
            lines += ["", f"{kind}  {len(own):,}"]
            lines += [f"  {one.row.path}: {one.tag}  ({evidence_text(one)})" for one in own[:most]]
        if len(own) > most:
            lines.append(f"  and {len(own) - most:,} more: see -o, --html or --json")
    return lines


def evidence_text(one: Candidate) -> str:
    """Returns the scores of a candidate as text, such as "tagger 0.91, neighbours 0.62"."""
    both = (("tagger", one.tagger), ("neighbours", one.neighbours))
    return ", ".join(f"{name} {value:.2f}" for name, value in both if value is not None)


def _sheet(candidates: Sequence[Candidate], manifest: Manifest, limit: int) -> str:
    """Returns an HTML page of pictures; each has checkboxes for its tags and candidates."""
    by_picture: dict[str, list[Candidate]] = {}
    for one in candidates:
        by_picture.setdefault(one.row.id, []).append(one)
    shown = list(by_picture.values())[:limit]
    return page(
        "data/relabel.html",
        pictures=[(own[0].row, own) for own in shown],
        left_out=len(by_picture) - len(shown),
        file=lambda row: str(manifest.file(row)),
        evidence=evidence_text,
    )
