"""`lmk data caption-tags`, `lmk data add-tags`: labels made of texts, and of labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.options import (
    named_relations,
    note_root,
    refuse_idle,
    relations_by_option,
    relations_option,
)
from lmk.cli.printing import echo, echo_json
from lmk.cli.ranges import FloatRange
from lmk.cli.render import check_output, counted, write_text

if TYPE_CHECKING:
    from lmk.embed.data.label_table import LabelTable
    from lmk.embed.tags.hierarchy import RelationGraph

_PATH = click.Path(path_type=Path)
_SHOWN = 10
_WEIGHTED = re.compile(r".+:-?[\d.]+(e-?\d+)?")  # as --glosses and `lmk tag -o` write them
LEAST, MOST, TOP = 5, 0.05, 5
SURE, ABOVE = 0.95, 0.5

_output = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="CSV",
    help="Write TABLE with these tags; all its other columns stay.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command("caption-tags", short_help="Make tags of captions and titles.")
@click.argument("table", type=_PATH)
@_output
@click.option(
    "--columns",
    metavar="NAME,NAME",
    help="Columns whose texts count.  [default: those of title, description, caption, tags that "
    "there are]",
)
@click.option(
    "--least",
    type=click.IntRange(1),
    help=f"Leave out words of fewer texts.  [default: {LEAST}]",
)
@click.option(
    "--most",
    type=FloatRange(0, 1),
    help=f"Leave out words of more than this part of the texts.  [default: {MOST}]",
)
@click.option("--count", type=click.IntRange(1), help="Keep only so many words.")
@click.option(
    "--glosses",
    type=_PATH,
    metavar="CSV",
    help="Write the labels nearest to each text instead, and how near: a CSV with the columns "
    "label and text (synonyms, a definition).",
)
@click.option(
    "--sentences",
    is_flag=True,
    help="With --glosses: near in meaning, by a network of English sentences (the extra "
    "sentences), instead of in words.",
)
@click.option("--top", type=click.IntRange(1), help=f"Labels of a text at most.  [default: {TOP}]")
@_as_json
def caption_tags(
    table: Path,
    output: Path,
    columns: str | None,
    least: int | None,
    most: float | None,
    count: int | None,
    glosses: Path | None,
    sentences: bool,
    top: int | None,
    as_json: bool,
) -> None:
    """Make tags of the texts in TABLE, a CSV with the column id: weak labels to pretrain on.

    The tags are the words of a text without the most and the least common ones, in any script. With
    --glosses they are the labels whose gloss is nearest to the text, written NAME:WEIGHT, where the
    weight is the cosine of the TF-IDF vectors, or of those of a network with --sentences.

    Example: lmk data caption-tags crawled.csv -o keywords.csv

    Then: lmk train keywords-lite1 --data keywords.csv -o pretrained
    """
    from lmk.embed.data.label_table import TAGS, LabelTable
    from lmk.embed.errors import ManifestError, UsageError
    from lmk.embed.tags.captions import keywords, read_contexts, weighted_labels
    from lmk.embed.tags.sentences import sentence_encoder

    check_output(output, reads=[table] if glosses is None else [table, glosses])
    if glosses is not None:
        refuse_idle({"--least": least, "--most": most, "--count": count}, "with --glosses")
    else:
        refuse_idle({"--top": top, "--sentences": sentences or None}, "without --glosses")
    named = None if columns is None else [name.strip() for name in columns.split(",")]
    texts = read_contexts(table, named)
    pictures = LabelTable(table)
    if pictures.column not in (None, TAGS):
        remedy = "rename the column, or leave it out: lmk reads it before tags"
        raise ManifestError(f"has labels already: {pictures.column}", where=table, remedy=remedy)
    found: Sequence[Sequence[str]]
    if glosses is None:
        found = keywords(
            list(texts.values()),
            least=LEAST if least is None else least,
            most=MOST if most is None else most,
            count=count,
        )
    else:
        told = _read_glosses(glosses)
        encode = sentence_encoder() if sentences else None
        near = weighted_labels(list(texts.values()), told, top=top or TOP, encode=encode)
        found = [[f"{name}:{w:.4f}" for name, w in own if w >= 5e-5] for own in near]
    if not any(found):
        remedy = "lower --least or raise --most" if glosses is None else "write other glosses"
        raise UsageError("no word is left", where=table, remedy=remedy)
    labels = dict(zip(texts, found, strict=True))
    write_text(output, pictures.with_labels(labels))
    names = {tag.rpartition(":")[0] if glosses else tag for own in found for tag in own}
    facts = {
        "output": str(output),
        "pictures": len(found),
        "without_tag": sum(not own for own in found),
        "tags": len(names),
        "tags_a_picture": sum(map(len, found)) / max(len(found), 1),
    }
    note_root(pictures, output)
    if as_json:
        echo_json(facts)
        return
    echo(
        f"{output}: {counted(len(found), 'picture')}, {counted(len(names), 'tag')}, "
        f"{facts['tags_a_picture']:.1f} a picture; without any: {facts['without_tag']:,}"
    )


@click.command("add-tags", short_help="Add what follows from tags, and what comes with them.")
@click.argument("table", type=_PATH)
@_output
@relations_option
@relations_by_option
@click.option(
    "--predictions",
    type=_PATH,
    metavar="CSV",
    help="What `lmk tag -o` says of the same pictures, best with a tagger that learnt from others: "
    "what it sees in most pictures of a tag is added to all of them.",
)
@click.option(
    "--sure",
    type=FloatRange(0, 1),
    help=f"Score above which a prediction sees a tag.  [default: {SURE}]",
)
@click.option(
    "--above",
    type=FloatRange(0, 1),
    help=f"Part of a tag's pictures in more than which another is seen.  [default: {ABOVE}]",
)
@_as_json
def add_tags(
    table: Path,
    output: Path,
    relations: Path | None,
    relations_by: str | None,
    predictions: Path | None,
    sure: float | None,
    above: float | None,
    as_json: bool,
) -> None:
    """Add to the tags in TABLE what follows from them, and what comes with them.

    Give --relations ("forest" means "tree"), --predictions ("beach" comes with "sea"), or both:
    then a tag that follows from another is not taken for one that merely comes with it.

    Example: lmk data add-tags photos.csv --relations relations.csv -o more.csv
    """
    from lmk.embed.data.label_table import LabelTable
    from lmk.embed.errors import ManifestError, UsageError
    from lmk.embed.tags.cooccurrence import add_tags as more_tags
    from lmk.embed.tags.hierarchy import RelationGraph

    check_output(output, reads=[p for p in (table, relations, predictions) if p is not None])
    if predictions is None:
        refuse_idle({"--sure": sure, "--above": above}, "without --predictions")
    if relations is None and predictions is None:
        remedy = "give --relations or --predictions"
        raise UsageError("nothing says what to add", remedy=remedy)
    graph = named_relations(relations, relations_by) or RelationGraph({})
    pictures = LabelTable(table)
    if not any(pictures.labels.values()):
        remedy = "give a CSV with a column tags, several apart by blanks"
        raise ManifestError("no picture has a tag", where=table, remedy=remedy)
    if all(_WEIGHTED.fullmatch(tag) for own in pictures.labels.values() for tag in own):
        remedy = "add tags first, and weigh them then"
        raise ManifestError("its tags have weights", where=table, remedy=remedy)
    together: dict[str, tuple[str, ...]] = {}
    if predictions is not None:
        together = _together(
            pictures,
            predictions,
            graph,
            SURE if sure is None else sure,
            ABOVE if above is None else above,
        )
    labels = {id_: more_tags(own, together, graph) for id_, own in pictures.labels.items()}
    write_text(output, pictures.with_labels(labels))
    note_root(pictures, output)
    added = [len(labels[id_]) - len(own) for id_, own in pictures.labels.items()]
    if as_json:
        facts: dict[str, Any] = {"output": str(output), "pictures": len(added)}
        facts |= {"changed": sum(map(bool, added)), "added": sum(added), "together": together}
        echo_json(facts)
        return
    echo(
        f"{output}: {counted(sum(added), 'tag')} added to {sum(map(bool, added)):,} of "
        f"{counted(len(added), 'picture')} (column {pictures.column})"
    )
    for tag in sorted(together)[:_SHOWN]:
        echo(f"  {tag} comes with {', '.join(together[tag])}")
    if len(together) > _SHOWN:
        echo(f"  and {len(together) - _SHOWN:,} more tags: see --json")


def _together(
    pictures: LabelTable, predictions: Path, graph: RelationGraph, sure: float, above: float
) -> dict[str, tuple[str, ...]]:
    """The tags that come with each tag, by the pictures that have labels and predictions."""
    import numpy as np

    from lmk.embed.errors import UsageError
    from lmk.embed.tags.cooccurrence import cooccurrence, cooccurring_tags
    from lmk.eval.files.tag_files import read_predictions

    scores = read_predictions(predictions)
    ids = [id_ for id_ in pictures.labels if id_ in scores]
    if not ids:
        remedy = f"tag the pictures of {pictures.path}: lmk tag -o"
        raise UsageError("names none of the pictures", where=predictions, remedy=remedy)
    if len(ids) < len(pictures.labels):
        lacking = len(pictures.labels) - len(ids)
        echo(f"lmk: {predictions}: {counted(lacking, 'picture')} without a row", err=True)
    names = sorted({tag for id_ in ids for tag in pictures.labels[id_]})
    seen_names = sorted({tag for id_ in ids for tag in scores[id_]})
    column, seen_column = ({name: i for i, name in enumerate(each)} for each in (names, seen_names))
    own = np.zeros((len(ids), len(names)), np.bool_)
    seen = np.zeros((len(ids), len(seen_names)), np.bool_)
    for row, id_ in enumerate(ids):
        own[row, [column[tag] for tag in pictures.labels[id_]]] = True
        seen[row, [seen_column[tag] for tag, score in scores[id_].items() if score > sure]] = True
    return cooccurring_tags(cooccurrence(own, seen), names, seen_names, graph, above=above)


def _read_glosses(path: Path) -> dict[str, str]:
    """The text of each label.

    Raises:
        ManifestError: the table cannot be read, or has no such columns; a label that is empty or
            comes twice.
    """
    from lmk.embed.data.manifest_table import read_table
    from lmk.embed.errors import ManifestError
    from lmk.embed.tables.label_text import plain_name

    rows = read_table(path, {"label", "text"})
    if not {"label", "text"} <= set(rows):
        remedy = "name a CSV with those"
        raise ManifestError("has no columns label and text", where=path, remedy=remedy)
    labels = rows["label"].map(plain_name)
    if not labels.all():
        remedy = "name the label of each text"
        raise ManifestError("a label is empty", where=path, remedy=remedy)
    if not labels.is_unique:
        twice = labels[labels.duplicated()].iloc[0]
        remedy = "join the texts of a label"
        raise ManifestError(f"has the label {twice} twice", where=path, remedy=remedy)
    if not len(rows):
        raise ManifestError("holds no rows", where=path, remedy="list at least one label")
    return dict(zip(labels, rows["text"], strict=True))
