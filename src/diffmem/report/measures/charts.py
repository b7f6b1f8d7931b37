"""Charts of measured images as inline SVG, in the manner of `charts`: colours from classes, shapes tell apart."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from diffmem.report.charts import _svg, _text, _upright, ticks
from diffmem.report.measures.groups import HELD_OUT_NAME, drawn
from diffmem.report.measures.shape import GroupCurve, GroupStats, MeasureScore, Pairing
from diffmem.report.prose import number, shorten, visible

KINDS = 6
"""Line styles that the page has; further groups use them again."""


def kinds(groups: Sequence[GroupCurve | GroupStats]) -> dict[str, int]:
    """Group name -> line style and colour, the same in every chart of a score: held-out ones 0, the others 1, 2, …"""
    own = [group.name for group in groups if group.name != HELD_OUT_NAME]
    return {HELD_OUT_NAME: 0} | {name: 1 + place % (KINDS - 1) for place, name in enumerate(own)}


def strip_chart(score: MeasureScore) -> Markup:
    """One row of bars per group over the evidence, to its own scale; the held-out images last.

    Infinite values are one bar of their own at the left end, as they have no place on the scale.
    """
    names = [
        *(g for g in score.groups if g.name != HELD_OUT_NAME),
        *(g for g in score.groups if g.name == HELD_OUT_NAME),
    ]
    width, left, right, row, bottom = 340, 4, 4, 44, 30
    apart = 34 if score.infinite else 0
    height = row * len(names) + bottom
    low, high = (score.edges[0], score.edges[-1]) if score.edges else (0.0, 1.0)
    colours = kinds(drawn(names))
    meaning = "more surely seen" if score.membership else "more memorized"

    def x(value: float) -> float:
        return left + apart + (value - low) / (high - low) * (width - left - apart - right)

    body = []
    for place, group in enumerate(names):
        base = row * (place + 1) - 4
        kind = f"bar kind-{colours[group.name]}" if group in drawn(names) else "bar all"
        tallest = max(*group.counts, group.infinite, 1)
        if group.infinite:
            tall = max(1.0, (row - 20) * group.infinite / tallest)
            body.append(f'<rect class="{kind}" x="{left + 2}" y="{base - tall:.1f}" width="18" height="{tall:.1f}"/>')
        for i, n in enumerate(group.counts):
            if n:
                a, b, tall = x(score.edges[i]), x(score.edges[i + 1]), max(1.0, (row - 20) * n / tallest)
                body.append(f'<rect class="{kind}" x="{a + 0.5:.1f}" y="{base - tall:.1f}" '
                            f'width="{max(0.5, b - a - 1):.1f}" height="{tall:.1f}"/>')  # fmt: skip
        body.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{base}" y2="{base}"/>')
        body.append(
            _text(left, base - row + 17, f"{visible(shorten(group.name, 40))} ({group.images:,})", "key", "start")
        )
    if score.infinite:
        body.append(_text(left + 11, height - 16, "∞"))
    for value in ticks(low, high) if score.edges else ():
        body.append(_text(min(max(x(value), apart + 16), width - 16), height - 16, number(value, 3)))
    body.append(_text(width - right, height - 2, f"evidence, {meaning} →", "axis-name", "end"))
    words = "; ".join(_in_words(group) for group in names)
    return _svg(
        width, height, "strips", f"Distribution of {visible(shorten(score.score, 60))} by group", words, "".join(body)
    )


def _in_words(group: GroupStats) -> str:
    median = group.median if isinstance(group.median, str) else number(group.median)
    return f"{visible(shorten(group.name, 40))}: {group.images} images, median {median}"


def curve_chart(
    groups: Sequence[GroupCurve], title: str, x_name: str, y_name: str, log_x: bool, cap: float | None = None
) -> Markup:
    """Median (line) and quartiles (band) of each group; a dashed line at the cap."""
    import math

    width, height, left, right, top, bottom = 340, 220, 46, 8, 8, 34
    shown = groups[:KINDS]
    places = [v for g in shown for v in g.x if v > 0 or not log_x]
    low, high = min(places), max(places)
    least, most = min(v for g in shown for v in g.low), max(v for g in shown for v in g.high)
    if cap is not None:
        most = max(most, cap)
    if not most > least:
        least, most = least - 0.5, most + 0.5
    if not high > low:
        high = low * 2 if log_x else low + 1

    def x(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if log_x else (value - low) / (high - low)
        return left + share * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - (value - least) / (most - least) * (height - top - bottom)

    body = []
    for value in ticks(least, most):
        body.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        body.append(_text(left - 5, y(value) + 4, number(value, 3), "tick", "end"))
    for value in _log_ticks(low, high) if log_x else ticks(low, high):
        body.append(_text(min(max(x(value), left + 8), width - 14), height - bottom + 14, number(value, 3)))
    if cap is not None:
        body.append(f'<line class="chance" x1="{left}" x2="{width - right}" y1="{y(cap):.1f}" y2="{y(cap):.1f}"/>')
        body.append(_text(left + 4, y(cap) + 12, "cap", "tick", "start"))
    colours = kinds(groups)
    for group in shown:
        place = colours[group.name]
        points = [(x(v), a, b, c) for v, a, b, c in zip(group.x, group.low, group.median, group.high, strict=True)
                  if v > 0 or not log_x]  # fmt: skip
        band = [f"{p:.1f},{y(c):.1f}" for p, _, _, c in points] + [f"{p:.1f},{y(a):.1f}" for p, a, _, _ in points[::-1]]
        line = " ".join(f"{p:.1f},{y(b):.1f}" for p, _, b, _ in points)
        body.append(f'<polygon class="band kind-{place}" points="{" ".join(band)}"/>')
        body.append(f'<polyline class="line kind-{place}" points="{line}"/>')
    body.append(_text((left + width - right) / 2, height - 4, x_name, "axis-name"))
    body.append(_upright(11, (top + height - bottom) / 2, y_name, "axis-name"))
    words = "; ".join(
        f"{visible(shorten(g.name, 40))} ({g.images} images) ends at {number(g.median[-1])}" for g in shown
    )
    return _svg(width, height, "curves", title, words, "".join(body))


def _log_ticks(low: float, high: float) -> list[float]:
    import math

    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**power for power in powers] or [low, high]


def scatter_chart(pair: Pairing) -> Markup:
    """Membership evidence (across) against memorization evidence (up); held-out images are open squares."""
    width, height, left, right, top, bottom = 340, 260, 50, 8, 8, 36

    def span(values: Sequence[float]) -> tuple[float, float]:
        low, high = min(values), max(values)
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    (x_low, x_high), (y_low, y_high) = (span([point[i] for point in pair.points]) for i in (0, 1))

    def x(value: float) -> float:
        return left + 4 + (value - x_low) / (x_high - x_low) * (width - left - right - 8)

    def y(value: float) -> float:
        return height - bottom - 4 - (value - y_low) / (y_high - y_low) * (height - top - bottom - 8)

    body = [f'<line class="axis" x1="{left}" x2="{width - right}" y1="{height - bottom}" y2="{height - bottom}"/>',
            f'<line class="axis" x1="{left}" x2="{left}" y1="{top}" y2="{height - bottom}"/>']  # fmt: skip
    for value in ticks(x_low, x_high, 4):
        body.append(_text(x(value), height - bottom + 14, number(value, 2)))
    for value in ticks(y_low, y_high):
        body.append(_text(left - 4, y(value) + 4, number(value, 3), "tick", "end"))
    for a, b, held in pair.points:
        if held:
            body.append(f'<rect class="point held" x="{x(a) - 2.5:.1f}" y="{y(b) - 2.5:.1f}" width="5" height="5"/>')
        else:
            body.append(f'<circle class="point own" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.6"/>')
    what = " (rank)" if pair.ranks else ""
    one, other = (visible(shorten(name, 24)) + what for name in (pair.membership, pair.memorization))
    body.append(_text((left + width - right) / 2, height - 4, f"{one}: seen in training →", "axis-name"))
    body.append(_upright(11, (top + height - bottom) / 2, f"{other}: memorized →", "axis-name"))
    words = f"{pair.images} images, rank correlation {pair.spearman:.2f}"
    return _svg(width, height, "scatter", f"{one} beside {other}", words, "".join(body))
