"""The report: one HTML file that loads nothing and runs at most one small script, whose hash it names."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from diffmem.atomic import write_atomic
from diffmem.errors import DataError
from diffmem.report import prose
from diffmem.report.charts import histogram_chart, interval_chart, roc_chart, scale_chart
from diffmem.report.digest import build_digest, write_digest
from diffmem.report.measures.section import measures_section
from diffmem.report.pictures import Pictures
from diffmem.report.redaction import Embedded, Redaction, embed, hide_prompts
from diffmem.report.shape import Digest, PairDigest
from diffmem.report.verdict import STATISTICS

FILE = "report.html"
LIMIT = 15_000_000
"""Bytes that a report may have."""
IMAGE_BUDGET = 8_000_000
"""Bytes that its pictures may have; pairs beyond it are shown without them."""


@dataclass(frozen=True)
class Side:
    """One picture of a pair: embedded, or None with the reason."""

    picture: Embedded | None
    reason: str


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
    write_atomic(path, render(folder, digest, redact, hash_prompts).encode("utf-8", errors="backslashreplace"))
    return path


def render(folder: Path, digest: Digest, redact: Redaction = "none", hash_prompts: bool = False) -> str:
    """The page, at most LIMIT bytes: where a run has more to show, long tables and galleries are cut, and say so."""
    pictures = _embed_all(folder, digest, redact)
    shown = hide_prompts(digest) if hash_prompts else digest
    for share in (1, 2, 4, 8, 16, 64, 256):
        page = _page(folder, _fewer(shown, share), shown, pictures, redact, hash_prompts)
        if len(page.encode("utf-8", errors="backslashreplace")) <= LIMIT:
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


def _embed_all(folder: Path, digest: Digest, redact: Redaction) -> dict[str, tuple[Side, Side]]:
    """Image key -> generated and training picture; none are opened where none may be shown."""
    found: dict[str, tuple[Side, Side]] = {}
    if redact == "hash":
        hidden = Side(None, "not shown in this report")
        return {pair.image_key: (hidden, hidden) for gallery in digest.galleries for pair in gallery.pairs}
    opened = Pictures(folder, digest)
    spent = 0
    for gallery in digest.galleries:
        for pair in gallery.pairs:
            if spent > IMAGE_BUDGET:
                full = Side(None, "left out to keep the file small")
                found[pair.image_key] = (full, full)
                continue
            sides = _sides(opened, pair, redact)
            spent += sum(len(side.picture.uri) for side in sides if side.picture is not None)
            found[pair.image_key] = sides
    return found


def _sides(opened: Pictures, pair: PairDigest, redact: Redaction) -> tuple[Side, Side]:
    try:
        generated = Side(embed(opened.generated(pair), redact), "")
    except DataError as problem:
        generated = Side(None, str(problem))
    image, problem_text = opened.training(pair)
    if image is None:
        return generated, Side(None, problem_text or "the image is not to be had")
    return generated, Side(embed(image, redact), "")


def _page(
    folder: Path,
    digest: Digest,
    whole: Digest,
    pictures: dict[str, tuple[Side, Side]],
    redact: Redaction,
    hash_prompts: bool,
) -> str:
    source = files("diffmem.report")
    style = (source / "style.css").read_text(encoding="utf-8")
    script = (source / "sort.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "visible": prose.visible, "number": prose.number, "percent": prose.percent, "shorten": prose.shorten,
    }  # fmt: skip
    environment.globals |= {
        "count": prose.count, "histogram_chart": histogram_chart, "roc_chart": roc_chart, "scale_chart": scale_chart,
        "interval_chart": interval_chart,
    }  # fmt: skip
    template = environment.from_string((source / "template.html").read_text(encoding="utf-8"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {content_hash(style)}; script-src {content_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    statistic = "" if digest.copies is None else STATISTICS[digest.copies.threshold.statistic]
    return template.render(
        d=digest, whole=whole, pictures=pictures, redact=redact, hashed=hash_prompts, statistic=statistic,
        policy=policy, style=Markup(style), script=Markup(script), plan=_flat(digest.plan),
        run_name=Path(digest.run).resolve().name,
        measures=measures_section(folder, digest.measures, environment, redact),
    )  # fmt: skip


def content_hash(text: str) -> str:
    """The source expression by which a Content-Security-Policy admits an inline block."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _flat(plan: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """A nested plan as (dotted name, value), without what was left to its default (null)."""
    found: list[tuple[str, str]] = []
    for key, value in plan.items():
        if isinstance(value, dict):
            found += _flat(value, f"{before}{key}.")
        elif value is not None:
            words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((before + key, words))
    return found
