"""The page of two matched image sets: how alike they are, the most similar pairs, every figure with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffmem.copies.similarity import Similarities
from diffmem.experiments._verdict import FoundVerdict
from diffmem.report import prose
from diffmem.report.charts import _svg, _text, ticks
from diffmem.report.page import write_page
from diffmem.report.prose import number
from diffmem.report.redaction import Embedded
from diffmem.report.shapes.copies import Overlap

PAGE = "match.html"


@dataclass(frozen=True)
class MatchedPair:
    """A generated image and the training image that it is nearest to; None where a picture is not shown."""

    generated: Embedded | None
    training: Embedded | None
    image: str
    train_id: str
    similarity: float
    copied: bool
    repeats: int
    overlap: Overlap | None = None


@dataclass(frozen=True)
class MatchView:
    """What the page shows.

    Attributes:
        facts: (label, text) pairs for its head.
        headline: one sentence.
        similarity: of generated and training images, with both histograms.
        figures: as `copying_rows` gives them.
        pairs: most similar first, each training image once.
        limits: what the numbers cannot show.
        verdict: None in runs of 0.1.0.
    """

    facts: Sequence[tuple[str, str]]
    headline: str
    similarity: Similarities
    figures: Sequence[Mapping[str, Any]]
    pairs: Sequence[MatchedPair]
    limits: Sequence[str]
    verdict: FoundVerdict | None = None


def write_match_page(path: Path, view: MatchView) -> Path:
    """Write the page and give its path."""
    return write_page(
        path, files(__package__) / "page.html", title="Matched images",
        kicker="Generated images against training images",
        headline=view.headline, limits=view.limits, v=view,
        chart=both_histograms(view.similarity),
    )  # fmt: skip


def both_histograms(found: Similarities) -> Markup:
    """Shares per bin of top-1 similarity: generated images above the axis, training images among themselves below."""
    width, height, left, right, top, bottom = 760, 300, 10, 10, 26, 44
    edges = found.edges
    low, high = edges[0], edges[-1]
    above, below = found.generated.histogram, found.background.histogram
    shares = [[n / max(1, sum(counts)) for n in counts] for counts in (above, below)]
    tallest = max(max(part) for part in shares) or 1.0
    base = (top + height - bottom) / 2
    room = base - top - 4

    def x(value: float) -> float:
        return left + (value - low) / ((high - low) or 1.0) * (width - left - right)

    body = []
    for part, kind, way in ((shares[0], "bar pos", 1), (shares[1], "bar neg", -1)):
        for i, share in enumerate(part):
            if share:
                tall = max(1.0, room * share / tallest)
                y = base - tall if way > 0 else base
                wide = max(0.5, x(edges[i + 1]) - x(edges[i]) - 1)
                body.append(
                    f'<rect class="{kind}" x="{x(edges[i]) + 0.5:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}"/>'
                )
    body.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{base:.1f}" y2="{base:.1f}"/>')
    if low < found.threshold < high:
        at = x(found.threshold)
        body.append(f'<line class="chance" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}"/>')
    for value in ticks(low, high, 8):
        body.append(_text(min(max(x(value), 16), width - 16), height - bottom + 16, number(value, 3)))
    body.append(_text(left, 14, f"▲ generated images ({sum(above):,})", "key pos-ink", "start"))
    body.append(
        _text(width - right, 14, f"▼ training images, without themselves ({sum(below):,})", "key neg-ink", "end")
    )
    body.append(_text(width - right, height - 6, "similarity with the nearest training image →", "axis-name", "end"))
    words = (
        f"mean {number(found.generated.mean.value, 3)} of generated images, {number(found.background.mean.value, 3)} among "
        f"training images; {prose.percent(found.generated.share_above.value or 0)} of generated images above "
        f"{number(found.threshold, 3)}"
    )
    return _svg(width, height, "wide", "Similarity with the nearest training image", words, "".join(body))
