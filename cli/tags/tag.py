"""The command `lmk tag`."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.options import (
    FILE,
    PATH,
    json_lines,
    named_relations,
    pictures_argument,
    relations_by_option,
    relations_option,
    root,
)
from lmk.cli.pictures import named_pictures
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import check_output, counted, page, write_text
from lmk.cli.tables import tags_text
from lmk.cli.tags.options import index_option, named_tagger, tagger_option, tiles_option
from lmk.embed.errors import UsageError
from lmk.embed.shell_words import shell_word

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmk.embed.tags.detector import Detector
    from lmk.rerank.answers import GivenTag
    from lmk.rerank.tags.taggers import Tagger
    from lmk.rerank.tags.thresholds import TagThresholds

BEST = 5  # number of best tags in the report of a picture, assigned or not


@dataclass(frozen=True)
class Tagged:
    """A picture and its tags.

    Attributes:
        picture: the path of the picture, or its id in a folder or CSV.
        path: the file.
        tags: the assigned tags, by descending score.
        best: the tags with the largest scores as (name, score, threshold); the threshold is None
            for a tag that is never assigned.
        scores: the score of each tag of the tagger, and of each assigned tag.
    """

    picture: str
    path: str
    tags: tuple[GivenTag, ...]
    best: tuple[tuple[str, float, float | None], ...]
    scores: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Returns the tags for JSON."""
        best = [dict(zip(("tag", "score", "threshold"), one, strict=True)) for one in self.best]
        return {"picture": self.picture, "tags": [asdict(tag) for tag in self.tags], "best": best}


@click.command()
@pictures_argument
@index_option
@tagger_option
@tiles_option
@relations_option
@relations_by_option
@click.option(
    "--detector",
    metavar="FILE|hub",
    help="Also set tags by an object detector: a file with the weights of torchvision's SSDLite, "
    "or `hub` to download them (14 MB).",
)
@click.option(
    "--classes",
    type=PATH,
    metavar="CSV",
    help="Tags for the classes of the detector: the columns class and tag.  [default: the tag of "
    "the same name]",
)
@root
@json_lines
@click.option("--html", type=FILE, help="Write a page with the pictures and their tags.")
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="CSV",
    help="CSV file to write instead of printing: all scores and the tags, for `lmk eval tags`.",
)
def tag(
    images: tuple[Path, ...],
    index: Path | None,
    tagger: Path | None,
    tiles: bool,
    relations: Path | None,
    relations_by: str | None,
    detector: str | None,
    classes: Path | None,
    root: Path | None,
    as_json: bool,
    html: Path | None,
    output: Path | None,
) -> None:
    """Print the tags of each picture: those whose score reaches their threshold.

    The pictures may be files, the pictures of a folder or CSV, or paths on stdin (-).

    By default lmk's own tagger tags-lite1 is used, which knows 18 things. Scores are 0 to 1. A
    trained tagger gives probabilities; an index gives the share of the nearest pictures with the
    tag, weighted by similarity. The threshold is 0.5 unless `lmk tag-thresholds` has fitted it.

    Example: lmk tag photo.jpg --tagger my-tags
    """
    for path in (html, output):
        check_output(path, reads=images)
    if classes is not None and detector is None:
        raise UsageError("needs --detector", where="--classes", remedy="add --detector")
    graph = named_relations(relations, relations_by)
    named = named_pictures(images, root)
    files = [(name, path) for name, path in named.files.items() if name not in named.unseen]
    failed = dict(named.unseen)
    tagged: list[Tagged] = []
    with named_tagger(index, tagger) as opened:
        rules = opened.thresholds
        if graph is not None:
            rules = rules.with_relations(graph)
        if tiles and rules.tags and not rules.tiles:
            note = "the thresholds were fitted without --tiles, which raises scores"
            echo(f"lmk: {note}; run lmk tag-thresholds with --tiles", err=True)
        loaded, tag_of = _detector(detector, classes, opened.names)
        for one in _tagged(opened, rules, files, tiles or rules.tiles, loaded, tag_of, failed):
            if html is not None or output is not None:
                tagged.append(one)
            if as_json:
                echo_json(one.as_dict())
            elif output is None:
                echo(_line(one))
    for name, reason in failed.items():
        echo(f"lmk: {name}: {reason}; it has no tags", err=True)
        if as_json:
            echo_json({"picture": name, "error": reason})
    if html is not None:
        write_text(html, page("tags/tags.html", pictures=tagged, failed=failed))
    if output is not None:
        root_of_paths = _root(tagged, output)
        write_text(output, _table(tagged, root_of_paths))
        if root_of_paths != output.parent.resolve():
            echo(f"lmk: {output}: read it with --root {shell_word(root_of_paths)}", err=True)
        some = sum(bool(one.tags) for one in tagged)
        if not as_json:
            echo(f"{output}: {counted(len(tagged), 'picture')}, {some:,} of them with tags")
    if failed:
        click.get_current_context().exit(1)


def _detector(
    named: str | None, classes: Path | None, tags: Sequence[str]
) -> tuple[Detector | None, Mapping[str, str]]:
    """Returns the detector, and the tag that each class of the detector assigns."""
    from lmk.embed.tags.detector import SsdLite, read_classes, tag_of_class

    if named is None:
        return None, {}
    chosen = None if classes is None else read_classes(classes)
    detector = SsdLite(named)
    tag_of = tag_of_class(detector.labels, tags, chosen)
    if not tag_of:
        remedy = "name the tags of its classes with --classes"
        raise UsageError("no tag has the name of a class of the detector", remedy=remedy)
    return detector, tag_of


def _tagged(
    tagger: Tagger,
    rules: TagThresholds,
    files: Sequence[tuple[str, Path]],
    tiles: bool,
    detector: Detector | None,
    tag_of: Mapping[str, str],
    failed: dict[str, str],
) -> Iterator[Tagged]:
    """Yields each picture with its tags; adds unreadable pictures to `failed`."""
    from lmk.cli.progress import StageProgress
    from lmk.rerank.tags.assign import assign_tags
    from lmk.rerank.tags.taggers import tag_files

    paths = dict(files)
    names_of: dict[str, list[str]] = {}  # A CSV may name a file twice.
    for name, path in files:
        names_of.setdefault(str(path), []).append(name)
    with StageProgress() as progress:
        batches = tag_files(
            tagger,
            files,
            tiles=tiles,
            detector=detector,
            on_progress=progress.stage("pictures", len(files)),
        )
        for batch in batches:
            failed.update(
                {name: skip.reason for skip in batch.skipped for name in names_of[skip.path]}
            )
            given = assign_tags(batch.scores, tagger.names, rules, batch.boxes, tag_of)
            closed = rules.with_ancestors(batch.scores, tagger.names)
            for id_, own, row in zip(batch.ids, given, closed.tolist(), strict=True):
                scores = dict(zip(tagger.names, row, strict=True)) | {t.tag: t.score for t in own}
                yield Tagged(id_, str(paths[id_]), own, _best(scores, rules), scores)


def _best(
    scores: Mapping[str, float], rules: TagThresholds
) -> tuple[tuple[str, float, float | None], ...]:
    names = sorted(scores, key=lambda name: (-scores[name], name))[:BEST]
    needed = rules.values(names).tolist()
    return tuple(
        (name, scores[name], None if value == float("inf") else value)
        for name, value in zip(names, needed, strict=True)
    )


def _line(one: Tagged) -> str:
    if one.tags:
        return f"{one.picture}: {tags_text(one.tags)}"
    name, score, needed = one.best[0]
    needs = "it is never given" if needed is None else f"{needed:.2f} is needed"
    return f"{one.picture}: no tags  (the best guess, {name}, has {score:.2f}; {needs})"


def _root(tagged: Sequence[Tagged], output: Path) -> Path:
    """Returns the folder at which paths start: the table's folder, or one above all pictures."""
    folders = [Path(one.path).resolve().parent for one in tagged]
    own = output.parent.resolve()
    if not folders or all(folder.is_relative_to(own) for folder in folders):
        return own
    return Path(os.path.commonpath(folders))


def _table(tagged: Sequence[Tagged], root: Path) -> str:
    """Returns a CSV id,path,tags,given with all scores as tag:score, and the assigned tags."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "path", "tags", "given"])
    for one in tagged:
        scores = " ".join(f"{name}:{score:.6g}" for name, score in one.scores.items())
        path = Path(one.path).resolve().relative_to(root)
        rows.writerow([one.picture, path.as_posix(), scores, " ".join(tag.tag for tag in one.tags)])
    return text.getvalue()
