"""The commands `lmk data caption-tags` and `lmk data add-tags`, which derive tags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.options import (
    FILE,
    PATH,
    as_json,
    named_relations,
    note_root,
    refuse_idle,
    relations_by_option,
    relations_option,
)
from lmk.cli.printing import echo, echo_json
from lmk.cli.ranges import FloatRange
from lmk.cli.render import check_output, counted, write_text
from lmk.embed.errors import ManifestError, UsageError

if TYPE_CHECKING:
    from lmk.embed.data.label_table import LabelTable
    from lmk.embed.tags.hierarchy import RelationGraph

_SHOWN = 10
_WEIGHTED = re.compile(r".+:-?[\d.]+(e-?\d+)?")  # as --glosses and `lmk tag -o` write them
LEAST, MOST, TOP = 5, 0.05, 5
SURE, ABOVE = 0.95, 0.5

_output = click.option(
    "-o",
    "--output",
    type=FILE,
    required=True,
    metavar="CSV",
    help="CSV file to write: TABLE with the new tags and all its other columns.",
)


@click.command("caption-tags", short_help="Make tags from captions and titles.")
@click.argument("table", type=PATH)
@_output
@click.option(
    "--columns",
    metavar="NAME,NAME",
    help="Columns with the texts.  [default: title, description, caption and tags, those that "
    "exist]",
)
@click.option(
    "--least",
    type=click.IntRange(1),
    help=f"Ignore words in fewer texts than this.  [default: {LEAST}]",
)
@click.option(
    "--most",
    type=FloatRange(0, 1),
    help=f"Ignore words in more than this share of the texts.  [default: {MOST}]",
)
@click.option(
    "--count", type=click.IntRange(1), help="Use only this many words, the most frequent ones."
)
@click.option(
    "--glosses",
    type=PATH,
    metavar="CSV",
    help="CSV with the columns label and text (synonyms, a definition). The labels with the most "
    "similar texts become the tags, instead of words.",
)
@click.option(
    "--sentences",
    is_flag=True,
    help="With --glosses: compare meanings by a network for English sentences (the extra "
    "sentences) instead of words.",
)
@click.option("--top", type=click.IntRange(1), help=f"Labels of a text.  [default: {TOP}]")
@as_json
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
    """Make tags from the texts in TABLE, a CSV with the column id: weak labels for pretraining.

    The tags are the words of a text, in any script, without very common and very rare words. With
    --glosses they are the labels whose gloss is most similar to the text, written NAME:WEIGHT. The
    weight is the cosine of TF-IDF vectors, or with --sentences of sentence embeddings.

    Example: lmk data caption-tags crawled.csv -o keywords.csv

    Then: lmk train keywords-lite1 --data keywords.csv -o pretrained
    """
    from lmk.embed.data.label_table import TAGS, LabelTable
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
        remedy = "rename or remove the column, which lmk reads before tags"
        raise ManifestError(f"has labels already: {pictures.column}", where=table, remedy=remedy)
    tag_lists: Sequence[Sequence[str]]
    if glosses is None:
        tag_lists = keywords(
            list(texts.values()),
            least=LEAST if least is None else least,
            most=MOST if most is None else most,
            count=count,
        )
    else:
        gloss_texts = _read_glosses(glosses)
        encode = sentence_encoder() if sentences else None
        near = weighted_labels(list(texts.values()), gloss_texts, top=top or TOP, encode=encode)
        tag_lists = [[f"{name}:{w:.4f}" for name, w in own if w >= 5e-5] for own in near]
    if not any(tag_lists):
        remedy = "lower --least or raise --most" if glosses is None else "write other glosses"
        raise UsageError("no word is left", where=table, remedy=remedy)
    labels = dict(zip(texts, tag_lists, strict=True))
    write_text(output, pictures.with_labels(labels))
    names = {tag.rpartition(":")[0] if glosses else tag for own in tag_lists for tag in own}
    facts = {
        "output": str(output),
        "pictures": len(tag_lists),
        "without_tag": sum(not own for own in tag_lists),
        "tags": len(names),
        "tags_a_picture": sum(map(len, tag_lists)) / max(len(tag_lists), 1),
    }
    note_root(pictures, output)
    if as_json:
        echo_json(facts)
        return
    echo(
        f"{output}: {counted(len(tag_lists), 'picture')}, {counted(len(names), 'tag')}, "
        f"{facts['tags_a_picture']:.1f} a picture; without any: {facts['without_tag']:,}"
    )


@click.command("add-tags", short_help="Add tags that other tags imply.")
@click.argument("table", type=PATH)
@_output
@relations_option
@relations_by_option
@click.option(
    "--predictions",
    type=PATH,
    metavar="CSV",
    help="Output of `lmk tag -o` for the same pictures, preferably by a tagger trained on others. "
    "A tag predicted in most pictures of another tag is added to all of those.",
)
@click.option(
    "--sure",
    type=FloatRange(0, 1),
    help=f"A score above this counts as a predicted tag.  [default: {SURE}]",
)
@click.option(
    "--above",
    type=FloatRange(0, 1),
    help=f"Share of a tag's pictures above which another tag is added.  [default: {ABOVE}]",
)
@as_json
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
    """Add tags to TABLE that its tags imply, or that usually occur with them.

    --relations names implied tags ("forest" implies "tree"). --predictions shows tags that occur
    together ("beach" with "sea"). With both, an implied tag does not also count as co-occurring.

    Example: lmk data add-tags photos.csv --relations relations.csv -o more.csv
    """
    from lmk.embed.data.label_table import LabelTable
    from lmk.embed.tags.cooccurrence import add_tags as more_tags
    from lmk.embed.tags.hierarchy import RelationGraph

    check_output(output, reads=[p for p in (table, relations, predictions) if p is not None])
    if predictions is None:
        refuse_idle({"--sure": sure, "--above": above}, "without --predictions")
    if relations is None and predictions is None:
        remedy = "give --relations or --predictions"
        raise UsageError("no source of tags is given", remedy=remedy)
    graph = named_relations(relations, relations_by) or RelationGraph({})
    pictures = LabelTable(table)
    if not any(pictures.labels.values()):
        remedy = "give a CSV with a column tags (several, separated by blanks)"
        raise ManifestError("no picture has a tag", where=table, remedy=remedy)
    if all(_WEIGHTED.fullmatch(tag) for own in pictures.labels.values() for tag in own):
        remedy = "add tags before weights"
        raise ManifestError("its tags have weights", where=table, remedy=remedy)
    together: dict[str, tuple[str, ...]] = {}
    if predictions is not None:
        sure, above = (SURE if sure is None else sure), (ABOVE if above is None else above)
        together = _together(pictures, predictions, graph, sure, above)
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
        echo(f"  {tag} occurs with {', '.join(together[tag])}")
    if len(together) > _SHOWN:
        echo(f"  and {len(together) - _SHOWN:,} more tags: see --json")


def _together(
    pictures: LabelTable, predictions: Path, graph: RelationGraph, sure: float, above: float
) -> dict[str, tuple[str, ...]]:
    """Returns, for each tag, the predicted tags that often occur in pictures with the tag."""
    import numpy as np

    from lmk.embed.tags.cooccurrence import cooccurrence, cooccurring_tags
    from lmk.eval.files.tag_files import read_predictions

    scores = read_predictions(predictions)
    ids = [id_ for id_ in pictures.labels if id_ in scores]
    if not ids:
        remedy = f"tag the pictures of {pictures.path} with lmk tag -o"
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
    """Returns the text of each label in a table."""
    from lmk.embed.data.manifest_table import read_table
    from lmk.embed.tables.label_text import plain_name

    rows = read_table(path, {"label", "text"})
    if not {"label", "text"} <= set(rows):
        remedy = "name a CSV with these columns"
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
