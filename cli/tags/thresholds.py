"""The command `lmk tag-thresholds`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.options import (
    FOLDER,
    PATH,
    as_json,
    named_relations,
    relations_by_option,
    relations_option,
    root,
)
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json, echo_lines
from lmk.cli.ranges import FloatRange
from lmk.cli.render import counted, echo_skipped, require_folder
from lmk.cli.tables import echo_table
from lmk.cli.tags.options import index_option, named_tagger, tagger_option, tiles_option
from lmk.embed.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lmk.embed.data.manifest import Manifest
    from lmk.embed.tags.hierarchy import RelationGraph
    from lmk.rerank.tags.taggers import Tagger
    from lmk.rerank.tags.thresholds import TagThreshold, TagThresholds

_SHOWN = 5  # maximum number of tags that a note names


@click.command("tag-thresholds")
@click.option(
    "--data",
    type=PATH,
    required=True,
    metavar="FOLDER|CSV",
    help="Pictures with tags that the tagger was not trained on.",
)
@index_option
@tagger_option
@click.option(
    "--precision",
    type=FloatRange(0, 1),
    default=0.9,
    help="Wanted precision of each tag: the share of right ones among pictures given the tag.",
)
@click.option(
    "--recall",
    type=FloatRange(0, 1),
    default=0.5,
    help="Wanted recall: the share of a tag's pictures given the tag. Tags below it are listed.",
)
@click.option(
    "--confidence",
    type=FloatRange(0.5, 1, max_open=True),
    default=0.8,
    help="Confidence that a tag reaches the precision on other pictures too; tags below it are "
    "listed. 0.5 accepts the measured precision, which is unreliable for few pictures.",
)
@relations_option
@relations_by_option
@tiles_option
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    metavar="DIR",
    help="New folder for a copy of the tagger with these thresholds; the tagger stays unchanged.",
)
@root
@as_json
def tag_thresholds(
    data: Path,
    index: Path | None,
    tagger: Path | None,
    precision: float,
    recall: float,
    confidence: float,
    relations: Path | None,
    relations_by: str | None,
    tiles: bool,
    output: Path | None,
    root: Path | None,
    as_json: bool,
) -> None:
    """Fit the threshold of each tag, and save it with the tagger or index.

    Among the thresholds that reach the precision with the wanted confidence, each tag gets the one
    with the largest recall. A tag that misses precision or recall is listed, and gets a threshold
    with the measured precision; if there is none, the tag is never given. A tag without a picture
    in --data keeps 0.5. `lmk tag` also uses the relations and --tiles given here.

    Example: lmk tag-thresholds --tagger my-tags --data validation.csv --precision 0.9
    """
    from lmk.embed.tags.hierarchy import RelationGraph
    from lmk.eval.tune.tag_thresholds import fit_thresholds
    from lmk.rerank.tags.taggers import HeadTagger

    if index is None and tagger is None:
        raise UsageError("no tagger is given", remedy="name a tagger or an index: --tagger or -i")
    if precision == 1 and confidence > 0.5:
        remedy = "lower it, or accept the measured precision: --confidence 0.5"
        what = "no number of pictures is enough for this confidence"
        raise UsageError(what, where="--precision 1", remedy=remedy)
    _check_output(output, index, tagger)
    graph = named_relations(relations, relations_by) or RelationGraph({})
    manifest = read_pictures(data, root=root)
    with named_tagger(index, tagger) as opened:
        if output is not None and not isinstance(opened, HeadTagger):
            remedy = "leave it out: the thresholds are saved in the index"
            raise UsageError(
                "applies to a tagger, not to an index", where="--output", remedy=remedy
            )
        _refuse_known(opened, manifest)
        scores, truth = _validation(opened, manifest, graph, tiles, data)
        everywhere = [name for name, own in zip(opened.names, truth.T, strict=True) if own.all()]
        _say_everywhere(everywhere, data)
        fitted = fit_thresholds(
            scores,
            truth,
            opened.names,
            min_precision=precision,
            min_recall=recall,
            confidence=confidence if confidence > 0.5 else None,
            relations=graph,
            tagger=opened.fingerprint,
            tiles=tiles,
        )
        if output is None:
            opened.save(fitted)
        elif isinstance(opened, HeadTagger):
            opened.copy(output, fitted)
    if as_json:
        facts = _as_dict(fitted, len(scores)) | {"output": None if output is None else str(output)}
        echo_json(facts)
    else:
        _echo(fitted, len(scores))
        if output is not None:
            echo_lines(["", f"{output}: the tagger with these thresholds"])


def _check_output(output: Path | None, index: Path | None, tagger: Path | None) -> None:
    """Checks, before the work starts, that the thresholds can be saved; else UsageError."""
    from lmk.embed.network.config import embedder_folder, shipped_tagger

    if output is None:
        if tagger is not None and embedder_folder(str(tagger)) == shipped_tagger():
            remedy = "name a folder for a copy with -o"
            raise UsageError("is part of lmk and cannot be changed", where=tagger, remedy=remedy)
        return
    if index is not None:
        remedy = "leave it out: the thresholds are saved in the index"
        raise UsageError("applies to a tagger, not to an index", where="--output", remedy=remedy)
    require_folder(output)
    if output.exists() and any(output.iterdir()):
        raise UsageError("is not empty", where=output, remedy="name a new folder")


def _refuse_known(tagger: Tagger, manifest: Manifest) -> None:
    """Raises UsageError for pictures of the index, which would vote for their own tags."""
    from lmk.rerank.tags.taggers import VoteTagger

    if not isinstance(tagger, VoteTagger):
        return
    for row in manifest.rows:
        if tagger.knows(manifest.file(row)):
            what = "is a picture of the index and would vote for its own tags"
            remedy = "give pictures that the index does not hold"
            raise UsageError(what, where=manifest.file(row), remedy=remedy)


def _validation(
    tagger: Tagger, manifest: Manifest, relations: RelationGraph, tiles: bool, data: Path
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Returns scores and truth [n, t] of the readable pictures; the truth has implied tags."""
    import numpy as np

    from lmk.cli.progress import StageProgress
    from lmk.rerank.tags.taggers import tag_files

    labels = {row.id: set(row.labels) for row in manifest.rows}
    unknown = sorted(set().union(*labels.values()) - set(tagger.names))
    if unknown:
        shown = ", ".join(unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        what = counted(len(unknown), "tag")
        echo(f"lmk: {data}: the tagger does not know {what}: {shown}", err=True)
    labels = {id_: set(relations.close(own)) for id_, own in labels.items()}
    if not any(own & set(tagger.names) for own in labels.values()):
        remedy = "give a CSV with a column tags (several, separated by blanks)"
        raise UsageError("no picture has a tag that the tagger knows", where=data, remedy=remedy)
    files = [(row.id, manifest.file(row)) for row in manifest.rows]
    with StageProgress() as progress:
        count = progress.stage("pictures", len(files))
        batches = list(tag_files(tagger, files, tiles=tiles, on_progress=count))
    echo_skipped([skip for batch in batches for skip in batch.skipped], f"of {data}")
    ids = [id_ for batch in batches for id_ in batch.ids]
    truth = np.array([[name in labels[id_] for name in tagger.names] for id_ in ids], np.bool_)
    truth = truth.reshape(len(ids), len(tagger.names))
    if not truth.any():
        what = "no picture with a known tag can be read"
        raise UsageError(what, where=data, remedy=None if ids else manifest.unreadable_remedy)
    return np.concatenate([batch.scores for batch in batches]), truth


def _say_everywhere(names: list[str], data: Path) -> None:
    """Prints on stderr the tags that all pictures have; their precision is unknown."""
    if names:
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        what = f"every picture has {counted(len(names), 'tag')}: {shown}"
        remedy = "their precision cannot be measured; add pictures without them"
        echo(f"lmk: {data}: {what}; {remedy}", err=True)


def _as_dict(fitted: TagThresholds, pictures: int) -> dict[str, Any]:
    return {
        "pictures": pictures,
        "precision": fitted.min_precision,
        "recall": fitted.min_recall,
        "confidence": fitted.confidence,
        "failed": list(fitted.failed),
        "unsure": list(fitted.unsure),
        "without_picture": list(fitted.unseen),
        "tags": {
            name: one.model_dump(include={"value", "pictures", "precision", "recall", "reached"})
            for name, one in fitted.tags.items()
        },
    }


def _echo(fitted: TagThresholds, pictures: int) -> None:
    wanted = f"precision {fitted.min_precision:g} and recall {fitted.min_recall:g}"
    if fitted.confidence is not None:
        wanted = f"{wanted} with confidence {fitted.confidence:g}"
    reached = sum(one.reached for one in fitted.tags.values())
    known = len(fitted.tags) - len(fitted.unseen)
    echo(
        f"{reached:,} of {counted(known, 'tag')} reach {wanted} on {counted(pictures, 'picture')}, "
        "the ones that the thresholds were fitted on"
    )
    missed = [name for name in fitted.failed if name not in fitted.unsure]
    if missed:
        echo(f"not reached: {', '.join(missed)}")
    if fitted.unsure:
        echo(f"reached, but on too few pictures for the confidence: {', '.join(fitted.unsure)}")
    if fitted.unseen:
        echo(f"no picture, so the threshold stays {fitted.default:g}: {', '.join(fitted.unseen)}")
    echo()
    rows = [(name, *_cells(one)) for name, one in fitted.tags.items()]
    echo_table(("tag", "pictures", "threshold", "precision", "recall"), rows)


def _cells(one: TagThreshold) -> tuple[str, ...]:
    value = "never" if one.value is None else f"{one.value:.4f}"
    if one.precision is None or one.recall is None:
        return str(one.pictures), value, "-", "-"
    return f"{one.pictures:,}", value, f"{one.precision:.3f}", f"{one.recall:.3f}"
