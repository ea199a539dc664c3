"""Output of `lmk data check` as text, JSON and an HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmk.cli.render import counted, page

if TYPE_CHECKING:
    from lmk.embed.data.manifest import Manifest
    from lmk.eval.check.gallery_check import DataFinding, GalleryCheck

_PATHS_IN_A_LINE = 3
PICTURES_IN_A_ROW = 12


def check_lines(check: GalleryCheck, limit: int) -> list[str]:
    """Returns lines of text: for each kind of finding the count and the worst `limit` findings."""
    from lmk.eval.check.gallery_check import KINDS

    lines = [_head(check)]
    for kind, meaning in KINDS.items():
        findings = check.of(kind)
        if not findings:
            continue
        lines += ["", f"{kind}  {len(findings):,}  ({meaning})"]
        lines += [f"  {_line(finding)}" for finding in findings[:limit]]
        if len(findings) > limit:
            lines.append(f"  and {len(findings) - limit:,} more: see --limit, --html or --json")
    return lines


def _head(check: GalleryCheck) -> str:
    summary = counted(len(check.findings), "finding") if check.findings else "nothing found"
    equal = check.pictures - check.photos
    pictures = counted(check.pictures, "picture") + (
        f" ({equal:,} of them equal to others)" * bool(equal)
    )
    hubness = f"; skewness of the {check.k}-occurrence {check.skewness:.2f}" if check.k else ""
    return f"{pictures}: {summary}{hubness}"


def _line(finding: DataFinding) -> str:
    # The first picture of a label error or hub is the finding. The other pictures are evidence.
    alone = finding.kind in ("label_error", "hub")
    shown = finding.pictures[: 1 if alone else _PATHS_IN_A_LINE]
    more = 0 if alone else len(finding.pictures) - len(shown)
    paths = "  ".join(row.path for row in shown) + (f"  and {more} more" if more else "")
    return f"{finding.score:6.3f}  {paths}: {finding.note}"


def check_json(check: GalleryCheck, skipped_others: int) -> dict[str, Any]:
    """Returns a check with all its findings as one JSON object."""
    from lmk.eval.check.gallery_check import KINDS

    return {
        "pictures": check.pictures,
        "photos": check.photos,
        "other_files": skipped_others,
        "k": check.k,
        "skewness": check.skewness,
        "counts": {kind: len(check.of(kind)) for kind in KINDS},
        "findings": [
            {
                "kind": finding.kind,
                "score": finding.score,
                "note": finding.note,
                "suggestion": finding.suggestion,
                "pictures": [
                    {"id": row.id, "path": row.path, "labels": list(row.labels)}
                    for row in finding.pictures
                ],
            }
            for finding in check.findings
        ],
    }


def check_page(check: GalleryCheck, manifest: Manifest, limit: int) -> str:
    """Returns a self-contained HTML page with the pictures of each finding side by side."""
    from lmk.eval.check.gallery_check import KINDS

    return page(
        "data/check.html",
        head=_head(check),
        source=str(manifest.root),
        kinds=[(kind, text, check.of(kind)) for kind, text in KINDS.items() if check.of(kind)],
        limit=limit,
        row=PICTURES_IN_A_ROW,
        file=lambda picture: str(manifest.file(picture)),
    )
