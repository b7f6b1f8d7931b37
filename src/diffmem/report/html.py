"""The report: one HTML file that loads nothing and runs at most one small script, whose hash it names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffmem.atomic import write_atomic
from diffmem.errors import DataError
from diffmem.report import prose
from diffmem.report.charts import histogram_chart, interval_chart, roc_chart, scale_chart
from diffmem.report.digest import build_digest, write_digest
from diffmem.report.measures.charts import curve_chart, kinds, scatter_chart, strip_chart
from diffmem.report.measures.pictures import measured_pictures
from diffmem.report.page import as_bytes, render_page
from diffmem.report.pictures import Pictures
from diffmem.report.redaction import Redaction, View, embed, hide_prompts
from diffmem.report.shape import Digest
from diffmem.report.shapes.copies import PairDigest
from diffmem.report.verdict import STATISTICS

FILE = "report.html"
LIMIT = 15_000_000
"""Bytes that a report may have."""
IMAGE_BUDGET = 8_000_000
"""Bytes that its pictures may have; pairs beyond it are shown without them."""


def write_report(
    run_path: str | Path, redact: Redaction = "none", hash_prompts: bool = False, out: str | Path | None = None
) -> Path:
    """Write `summary.json` and the report of a run.

    Args:
        run_path: the run directory; `summary.json`, which holds prompts as they are, is written only there.
        redact: what becomes of generated and training images: "blur" a few averaged pixels, "hash" none at all.
        hash_prompts: show hashes instead of prompts.
        out: the report's file; `report.html` in the run directory by default.

    Returns:
        The path of the report.

    Raises:
        DataError: there is no run, or a file of it is damaged.
    """
    folder = Path(run_path)
    digest = build_digest(folder)
    write_digest(folder, digest)
    path = folder / FILE if out is None else Path(out)
    if path.is_dir():
        raise DataError(f"'{path}' is a folder; --out takes the name of a file.")
    write_atomic(path, as_bytes(render(folder, digest, redact, hash_prompts)))
    return path


def render(folder: Path, digest: Digest, redact: Redaction = "none", hash_prompts: bool = False) -> str:
    """The page, at most LIMIT bytes: where a run has more to show, long tables and galleries are cut, and say so."""
    pictures = _embed_all(folder, digest, redact)
    measured = measured_pictures(folder, digest.measures, redact)
    shown = hide_prompts(digest) if hash_prompts else digest
    for share in (1, 2, 4, 8, 16, 64, 256):
        page = _page(_fewer(shown, share), shown, pictures, measured, redact, hash_prompts)
        if len(as_bytes(page)) <= LIMIT:
            return page
    raise DataError(f"The report of this run would be larger than {LIMIT / 1e6:.0f} MB; its summary.json holds it all.")


def _fewer(digest: Digest, share: int) -> Digest:
    """The digest with one of `share` rows of its table and pairs of its galleries, the first ones."""
    if share == 1:
        return digest
    rows = digest.table.rows[: max(1, len(digest.table.rows) // share)]
    galleries = tuple(
        gallery.model_copy(update={"pairs": gallery.pairs[: max(1, len(gallery.pairs) // share)]})
        for gallery in digest.galleries
    )
    return digest.model_copy(update={"table": digest.table.model_copy(update={"rows": rows}), "galleries": galleries})


def _embed_all(folder: Path, digest: Digest, redact: Redaction) -> dict[str, tuple[View, View]]:
    """Image key -> generated and training picture; none are opened where none may be shown."""
    found: dict[str, tuple[View, View]] = {}
    if redact == "hash":
        hidden = View(None, "not shown in this report")
        return {pair.image_key: (hidden, hidden) for gallery in digest.galleries for pair in gallery.pairs}
    opened = Pictures(folder, digest)
    spent = 0
    for gallery in digest.galleries:
        for pair in gallery.pairs:
            if spent > IMAGE_BUDGET:
                full = View(None, "left out to keep the file small")
                found[pair.image_key] = (full, full)
                continue
            sides = _sides(opened, pair, redact)
            spent += sum(len(side.picture.uri) for side in sides if side.picture is not None)
            found[pair.image_key] = sides
    return found


def _sides(opened: Pictures, pair: PairDigest, redact: Redaction) -> tuple[View, View]:
    try:
        generated = View(embed(opened.generated(pair), redact), "")
    except DataError as problem:
        generated = View(None, str(problem))
    image, problem_text = opened.training(pair)
    if image is None:
        return generated, View(None, problem_text or "the image is not to be had")
    return generated, View(embed(image, redact), "")


def _page(
    digest: Digest,
    whole: Digest,
    pictures: dict[str, tuple[View, View]],
    measured: dict[str, tuple[View, View]],
    redact: Redaction,
    hash_prompts: bool,
) -> str:
    source = files("diffmem.report")
    run_name = Path(digest.run).resolve().name
    statistic = "" if digest.copies is None else STATISTICS[digest.copies.threshold.statistic]
    return render_page(
        source / "template.html", script=(source / "sort.js").read_text(encoding="utf-8"),
        title=f"Memorization report: {prose.shorten(digest.model.name or run_name, 80)}",
        kicker=f"Memorization report · {digest.created[:10]}", headline=digest.headline, limits=[*digest.limits, *digest.notes],
        d=digest, whole=whole, pictures=pictures, measured=measured, redact=redact, hashed=hash_prompts,
        statistic=statistic, plan=flat(digest.plan), run_name=run_name,
        histogram_chart=histogram_chart, roc_chart=roc_chart, scale_chart=scale_chart, interval_chart=interval_chart,
        strip_chart=strip_chart, curve_chart=curve_chart, scatter_chart=scatter_chart, kinds=kinds,
    )  # fmt: skip


def flat(plan: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """A nested plan as (dotted name, value), without what was left to its default (null)."""
    found: list[tuple[str, str]] = []
    for key, value in plan.items():
        if isinstance(value, dict):
            found += flat(value, f"{before}{key}.")
        elif value is not None:
            words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((before + key, words))
    return found
