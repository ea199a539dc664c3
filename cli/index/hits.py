"""The command `lmk index hits`, which writes the hits of gallery pictures by distractors."""

from __future__ import annotations

from pathlib import Path

import click

from lmk.cli.index_path import INDEX
from lmk.cli.options import FILE, as_json
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import check_output, counted, write_text
from lmk.embed.errors import UsageError
from lmk.embed.shell_words import shell_word


@click.command(short_help="Write how often distractors are near a picture.")
@click.argument("index", type=INDEX)
@click.option("-o", "--output", type=FILE, required=True, help="The CSV file to write.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help="Nearest pictures to count of each distractor.  [default: as in the penalty, or 20]",
)
@as_json
def hits(index: Path, output: Path, top: int | None, as_json: bool) -> None:
    """Write how often each picture of INDEX is among the nearest of its distractors.

    The CSV has the columns id, mean_cosine and n_picked. The column n_picked is the number of
    distractors that have the picture among their nearest; mean_cosine is the mean cosine between
    these distractors and the picture. A picture with a large n_picked attracts photos of no
    landmark, so the penalty lowers its score. Rows are in descending order of n_picked.

    Example: lmk index hits gallery.lmk -o hits.csv
    """
    import numpy as np
    import pandas as pd

    from lmk.index.gallery.gallery import Gallery
    from lmk.rerank.fit.saved import saved_distractors, saved_pipeline
    from lmk.rerank.fit.tables import exact_searcher
    from lmk.rerank.steps.penalty import PenaltyStep, count_hits

    check_output(output)
    with Gallery.open(index) as gallery:
        rows = gallery.role_rows("gallery")
        distractors = saved_distractors(gallery)
        if not distractors.mask.any():
            remedy = f"add some: lmk index add {shell_word(index)} pictures/ --distractors"
            raise UsageError("holds no distractors", where=index, remedy=remedy)
        step = saved_pipeline(gallery).step_that_needs("hits")
        top = top or (PenaltyStep().top if step is None else step.table_size())
        searcher = exact_searcher(gallery.view())
        hits = count_hits(searcher, distractors, rows=gallery.rows, gallery=len(rows), top=top)
        columns = {"id": gallery.ids(rows), "mean_cosine": hits.mean[rows]}
        table = pd.DataFrame(columns | {"n_picked": hits.counts[rows]})
    table = table.sort_values(["n_picked", "mean_cosine", "id"], ascending=[False, False, True])
    write_text(output, table.to_csv(index=False, lineterminator="\n"))
    picked = int(np.count_nonzero(table["n_picked"]))
    if as_json:
        facts = {"output": str(output), "pictures": len(table), "picked": picked,
                 "top": top}  # fmt: skip
        echo_json(facts)
    else:
        echo(f"{output}: {counted(len(table), 'picture')}, {picked:,} of them near a distractor")
