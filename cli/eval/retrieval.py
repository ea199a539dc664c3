"""The commands `lmk eval retrieval` and `lmk eval revisited`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.eval.options import Draws, bootstrap, parts
from lmk.cli.eval.tables import echo_findings, echo_missing, echo_warnings, score_text
from lmk.cli.index_path import INDEX
from lmk.cli.options import PATH, as_json
from lmk.cli.printing import echo, echo_json
from lmk.cli.tables import echo_table
from lmk.embed.errors import SubmissionError, UsageError

if TYPE_CHECKING:
    from lmk.eval.files.truth import RetrievalTruth
    from lmk.eval.scores.average_precision import RetrievalResult
    from lmk.eval.scores.revisited import Protocol, ProtocolScore, RevisitedTruth


@click.command("retrieval", short_help="Retrieval: mAP@100 of a submission.")
@click.argument("submission", type=PATH)
@click.argument("solution", type=PATH)
@click.option(
    "-k", "ranks", type=click.IntRange(min=1), default=100, help="Number of ranks that count."
)
@click.option("-i", "--index", type=INDEX, help="The index, which has the labels of the pictures.")
@click.option("--gallery", type=PATH, help="A CSV id,landmark_id, instead of an index.")
@as_json
@bootstrap
def retrieval(
    submission: Path,
    solution: Path,
    ranks: int,
    index: Path | None,
    gallery: Path | None,
    as_json: bool,
    draws: Draws,
) -> None:
    """Score SUBMISSION (id,images) against SOLUTION by mean average precision (mAP@100).

    SOLUTION has the right pictures of each query (id,images[,Usage], as GLDv2's retrieval
    solution). With --index or --gallery it has the landmarks of the queries
    (id,landmarks[,Usage]): pictures of the same landmark are right, and queries without a picture
    of their landmark are left out.

    Example: lmk eval retrieval retrieval.csv solution.csv -i gallery.lmk
    """
    from lmk.eval.files.label_match import image_warnings
    from lmk.eval.files.submission import MAX_IMAGES, RetrievalSubmission
    from lmk.eval.files.truth import RetrievalTruth
    from lmk.eval.files.validate import validate_retrieval
    from lmk.eval.scores.average_precision import judge_retrieval

    if index and gallery:
        raise UsageError("--index and --gallery exclude each other", remedy="give one of them")
    lists = RetrievalSubmission.read(submission)
    gallery_ids = None
    if index or gallery:
        labelled = _labelled(index, gallery)
        truth = _truth_by_label(solution, labelled, index or gallery)
        if index:
            gallery_ids = {id_ for id_, _ in labelled}
    else:
        truth = RetrievalTruth.read(solution)
    warnings = image_warnings(lists, truth)
    scores: dict[str, dict[str, Any]] = {
        name: _retrieval_scores(judge_retrieval(lists, truth, usage, k=ranks), draws)
        for name, usage in parts(truth)
    }
    named = set(lists.query_ids)
    scored = [truth.query_ids[row] for row in truth.rows()]
    missing = [query for query in scored if query not in named]
    echo_missing(submission, missing, len(scored), "queries", "they count as empty lists")
    echo_warnings(submission, warnings)
    scores["all"]["warnings"] = list(warnings)
    findings = validate_retrieval(lists, gallery_ids=gallery_ids)
    echo_findings(
        submission, [each for each in findings if each.kind != "too many" or ranks == MAX_IMAGES]
    )
    if as_json:
        echo_json(scores)
    else:
        _echo_retrieval(scores, ranks)
        echo(draws.note())


def _truth_by_label(
    solution: Path, labelled: Sequence[tuple[str, tuple[str, ...]]], source: Path | None
) -> RetrievalTruth:
    """Returns, for each query, the pictures of its landmarks; a query without any is Ignored."""
    from lmk.embed.tables.label_forms import similar_pairs, similar_text
    from lmk.eval.files.truth import IGNORED, RetrievalTruth, Truth

    truth = Truth.read(solution)
    pictures: dict[str, list[str]] = {}
    for id_, labels in labelled:
        for label in labels:
            pictures.setdefault(label, []).append(id_)
    images = tuple(
        tuple(dict.fromkeys(id_ for label in labels for id_ in pictures.get(label, ())))
        for labels in truth.labels
    )
    usage = tuple(old if own else IGNORED for old, own in zip(truth.usage, images, strict=True))
    wanted = {label for labels in truth.labels for label in labels}
    text = similar_text(similar_pairs(wanted, pictures), "label", others=f"those of {source}")
    if not any(images):
        what = f"no query shows a landmark of {source}"
        remedy = text or "do both use the same labels?"
        raise SubmissionError(what, where=solution, remedy=remedy)
    if text:
        echo_warnings(solution, [f"{text}, so they never match"])
    lost = sum(
        old != IGNORED and new == IGNORED for old, new in zip(truth.usage, usage, strict=True)
    )
    if lost:
        echo(
            f"lmk: {solution}: {lost:,} of {len(truth):,} queries show no landmark of "
            f"{source} and are left out",
            err=True,
        )
    return RetrievalTruth(truth.query_ids, images, usage, truth.source)


def _labelled(index: Path | None, gallery: Path | None) -> list[tuple[str, tuple[str, ...]]]:
    """Returns the id and the labels of each gallery picture."""
    from lmk.eval.files.truth import Truth
    from lmk.index.gallery.gallery import Gallery

    if index is None:
        assert gallery is not None
        named = Truth.read(gallery)
        return list(zip(named.query_ids, named.labels, strict=True))
    with Gallery.open(index) as opened:
        rows = opened.role_rows("gallery")
        labels = [opened.labels(row) for row in rows.tolist()]
        return list(zip(opened.ids(rows), labels, strict=True))


def _retrieval_scores(result: RetrievalResult, draws: Draws) -> dict[str, Any]:
    cuts = [cut for cut in (1, 5, 10) if cut < result.k] + [result.k]
    mean, median = result.mean_median_position()
    return {
        "map": result.mean_average_precision(),
        "map_interval": draws.bounds_of_mean(result.average_precisions()),
        "k": result.k,
        "queries": len(result),
        "precision": {str(cut): float(result.precisions(cut).mean()) for cut in cuts},
        "recall": {str(cut): float(result.recalls(cut).mean()) for cut in cuts},
        "mean_precisions": result.mean_precisions().tolist(),
        "mean_first_position": mean,
        "median_first_position": median,
        **vars(draws),
    }


def _echo_retrieval(scores: dict[str, dict[str, Any]], ranks: int) -> None:
    first = next(iter(scores.values()))
    echo_table(
        (
            "",
            f"mAP@{ranks}",
            "queries",
            *(f"P@{cut}" for cut in first["precision"]),
            f"recall@{ranks}",
            "first hit",
        ),
        [
            (
                name,
                score_text(each["map"], each["map_interval"]),
                f"{each['queries']:,}",
                *(f"{value:.4f}" for value in each["precision"].values()),
                f"{each['recall'][str(ranks)]:.4f}",
                f"{each['median_first_position']:g}",
            )
            for name, each in scores.items()
        ],
    )
    echo(f"first hit: the median rank of the first right picture, {ranks + 1} without one")


@click.command("revisited", short_help="Revisited Oxford and Paris: mAP and mP.")
@click.argument("ground_truth", type=PATH)
@click.option("--ranks", type=PATH, help="Rank lists: a .npy file, or a CSV id,images of names.")
@click.option("--columns", is_flag=True, help="The .npy of --ranks has a column for each query.")
@click.option("--database", type=PATH, help="Features of the database: .npy or .safetensors.")
@click.option("--queries", type=PATH, help="Features of the queries, cropped to their boxes.")
@as_json
@bootstrap
def revisited(
    ground_truth: Path,
    ranks: Path | None,
    columns: bool,
    database: Path | None,
    queries: Path | None,
    as_json: bool,
    draws: Draws,
) -> None:
    """Score a ranking of revisited Oxford or Paris: mAP and mP@1, 5, 10, easy, medium and hard.

    GROUND_TRUTH is gnd_roxford5k.pkl or gnd_rparis6k.pkl. --ranks gives the ranking as whole
    numbers [queries, k]: database rows from 0, best first, -1 where a list is shorter. With
    --columns the array is [k, queries], as in revisitop. --ranks can also be a CSV of names.
    --database and --queries give features instead: float rows in the order of the ground truth,
    which are ranked by dot product.

    Example: lmk eval revisited gnd_roxford5k.pkl --database db.npy --queries queries.npy
    """
    from lmk.eval.scores.revisited import read_ground_truth

    if ranks is None and (database is None or queries is None):
        raise UsageError("give --ranks, or both --database and --queries")
    if ranks is not None and (database is not None or queries is not None):
        raise UsageError("--ranks needs no features", remedy="leave out --database and --queries")
    if columns and ranks is None:
        raise UsageError("--columns is for the .npy file of --ranks")
    truth = read_ground_truth(ground_truth)
    try:
        results = _evaluate(truth, ranks, columns, database, queries)
    except ValueError as error:
        raise SubmissionError(str(error), where=ground_truth) from error
    scores = {
        protocol: {
            "map": score.mean_average_precision,
            "map_interval": draws.bounds_of_mean(score.average_precision),
            "queries": int((score.average_precision == score.average_precision).sum()),
            "mean_precision": {str(at): value for at, value in score.mean_precision_at.items()},
            **vars(draws),
        }
        for protocol, score in results.items()
    }
    if as_json:
        echo_json(scores)
    else:
        _echo_revisited(scores)
        echo(draws.note())


def _evaluate(
    truth: RevisitedTruth,
    ranks: Path | None,
    columns: bool,
    database: Path | None,
    queries: Path | None,
) -> dict[Protocol, ProtocolScore]:
    from lmk.eval.scores.revisited import evaluate_features, evaluate_ranks
    from lmk.eval.scores.revisited_files import read_features, read_ranks

    if ranks is not None:
        lists, missing = read_ranks(ranks, truth, columns=columns)
        echo_missing(ranks, missing, len(truth), "queries", "they count as empty lists")
        return evaluate_ranks(lists, truth)
    assert database is not None
    assert queries is not None
    of_database = read_features(database, len(truth.database))
    of_queries = read_features(queries, len(truth))
    if of_database.shape[1] != of_queries.shape[1]:
        what = f"{of_queries.shape[1]} numbers a picture, {database} has {of_database.shape[1]}"
        remedy = "compute both with the same network"
        raise SubmissionError(what, where=queries, remedy=remedy)
    return evaluate_features(of_database, of_queries, truth)


def _echo_revisited(scores: dict[Protocol, dict[str, Any]]) -> None:
    first = next(iter(scores.values()))
    echo_table(
        ("", "mAP", *(f"mP@{at}" for at in first["mean_precision"]), "queries"),
        [
            (
                protocol,
                score_text(each["map"], each["map_interval"]),
                *(f"{value:.4f}" for value in each["mean_precision"].values()),
                f"{each['queries']:,}",
            )
            for protocol, each in scores.items()
        ],
    )
