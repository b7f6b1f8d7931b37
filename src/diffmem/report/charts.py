"""Charts as inline SVG: no script, no style attributes; colours come from the page's classes, shapes tell them apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from diffmem.report.prose import number, percent, percents
from diffmem.report.shapes.base import Interval
from diffmem.report.shapes.scores import Histogram, Roc


def _svg(width: int, height: int, kind: str, title: str, description: str, body: str) -> Markup:
    """A chart with its title and description for those who cannot see it."""
    return Markup(
        f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}: '
        f'{escape(description)}"><title>{escape(title)}</title><desc>{escape(description)}</desc>{body}</svg>'
    )


def _text(x: float, y: float, words: str, kind: str = "tick", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _upright(x: float, y: float, words: str, kind: str) -> str:
    turn = f"translate({x:.1f} {y:.1f}) rotate(-90)"
    return f'<text class="{kind}" transform="{turn}" text-anchor="middle">{escape(words)}</text>'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high], at most about `most` of them."""
    rough = (high - low) / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * m for m in (1, 2, 5, 10) if scale * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def histogram_chart(data: Histogram, name: str) -> Markup:
    """Shares per bin: all prompts, or with labels those known to be reproduced above the axis and the others below."""
    width, height, left, right, top, bottom = 340, 200, 4, 4, 24, 32
    low, high = data.edges[0], data.edges[-1]
    mirrored = data.positive is not None and data.negative is not None

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    base = (top + (height - bottom)) / 2 if mirrored else height - bottom
    body = []
    groups: list[tuple[Sequence[int], str, int]] = [(data.total, "bar all", 1)]
    if data.positive is not None and data.negative is not None:
        groups = [(data.positive, "bar pos", 1), (data.negative, "bar neg", -1)]
    for counts, kind, way in groups:
        room = (base - top - 4) if way > 0 else (height - bottom - base - 4)
        tallest = max(max(counts), 1)
        for i, n in enumerate(counts):
            if n:
                a, b, tall = x(data.edges[i]), x(data.edges[i + 1]), max(1.0, room * n / tallest)
                y = base - tall if way > 0 else base
                body.append(
                    f'<rect class="{kind}" x="{a + 0.5:.1f}" y="{y:.1f}" width="{max(0.5, b - a - 1):.1f}" '
                    f'height="{tall:.1f}"/>'
                )
    body.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{base:.1f}" y2="{base:.1f}"/>')
    for value in ticks(low, high):
        body.append(_text(min(max(x(value), 16), width - 16), height - 17, number(value, 3)))
    body.append(_text(width - right, height - 1, "more memorized →", "axis-name", "end"))
    words = f"{sum(data.total):,} prompts between {number(low)} and {number(high)}"
    if data.positive is not None and data.negative is not None:
        body.append(_text(left, 13, f"▲ reproduced ({sum(data.positive):,})", "key pos-ink", "start"))
        body.append(_text(width - right, 13, f"▼ not ({sum(data.negative):,})", "key neg-ink", "end"))
        words += (
            f"; above the axis {sum(data.positive)} known to be reproduced, below {sum(data.negative)} known not to"
        )
    return _svg(width, height, "histogram", f"Distribution of {name}", words, "".join(body))


def roc_chart(data: Roc, name: str) -> Markup:
    """TPR against FPR on log axes; where fewer than one negative would be flagged it is greyed: not measurable."""
    width, height, left, right, top, bottom = 250, 200, 52, 6, 8, 36
    finest = 1 / data.negatives
    least_x = min(0.01, 10.0 ** math.floor(math.log10(finest / 2)))
    least_y = min(0.1, 10.0 ** math.floor(math.log10(1 / data.positives)))

    def x(rate: float) -> float:
        return left + (1 - math.log10(max(rate, least_x)) / math.log10(least_x)) * (width - left - right)

    def y(rate: float) -> float:
        return height - bottom - (1 - math.log10(max(rate, least_y)) / math.log10(least_y)) * (height - top - bottom)

    body = []
    limit = x(finest)
    if limit - left > 1:
        body.append(
            f'<rect class="unmeasured" x="{left}" y="{top}" width="{limit - left:.1f}" height="{height - top - bottom}"/>'
        )
        if limit - left > 16:
            body.append(_upright((left + limit) / 2 + 4, (top + height - bottom) / 2, "not measurable", "tick"))
    for axis_ticks, place, vertical in ((least_x, x, True), (least_y, y, False)):
        for power in range(round(math.log10(axis_ticks)), 1):
            at, label = place(10.0**power), percent(10.0**power)
            if vertical:
                body.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}"/>')
                body.append(_text(min(at, width - 14), height - bottom + 14, label))
            else:
                body.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
                body.append(_text(left - 5, at + 4, label, "tick", "end"))
    chance = " ".join(f"{x(r):.1f},{y(r):.1f}" for r in _log_space(max(least_x, least_y), 1.0))
    body.append(f'<polyline class="chance" points="{chance}"/>')
    body.append(f'<path class="curve" d="{_steps(data, lambda rate: x(max(rate, finest)), y)}"/>')
    for point in data.points:
        if point.measurable:
            a, b = x(max(point.realised_fpr, finest)), y(point.tpr)
            body.append(f'<circle class="mark" cx="{a:.1f}" cy="{b:.1f}" r="4"/>')
    body.append(_text((left + width - right) / 2, height - 4, "false-positive rate", "axis-name"))
    body.append(_upright(11, (top + height - bottom) / 2, "true-positive rate", "axis-name"))
    words = f"AUROC {data.auroc:.3f} with {data.positives} positives and {data.negatives} negatives. " + "; ".join(
        f"at {percent(p.nominal_fpr)} false positives {percent(p.tpr) if p.measurable else 'not measurable'}"
        for p in data.points
    )
    return _svg(width, height, "roc", f"ROC of {name} on log axes", words, "".join(body))


def _log_space(low: float, high: float) -> list[float]:
    return [10 ** (math.log10(low) + i / 10 * (math.log10(high) - math.log10(low))) for i in range(11)]


def _steps(data: Roc, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """The curve as a path: at one FPR the TPR of its threshold, level until the next FPR."""
    path = ""
    for fpr, tpr in data.curve:
        path += f"H{x(fpr):.1f}V{y(tpr):.1f}" if path else f"M{x(fpr):.1f} {y(tpr):.1f}"
    return path + f"H{x(1.0):.1f}"


def scale_chart(value: float, threshold: float, similarity: bool, name: str, called: bool) -> Markup:
    """Where one pair lies beside the threshold: the side of copies is shaded, the pair is a dot, filled if called."""
    width, height, pad, line = 220, 26, 8, 12
    low = min(0.0, value, threshold)
    high = max(1.0, value, threshold) if similarity else max(1.5 * threshold, 1.05 * value, 1e-9)

    def x(number_on_scale: float) -> float:
        return pad + (number_on_scale - low) / (high - low) * (width - 2 * pad)

    start, end = (x(threshold), width - pad) if similarity else (pad, x(threshold))
    dot = "dot called" if called else "dot"
    body = (
        f'<line class="axis" x1="{pad}" x2="{width - pad}" y1="{line}" y2="{line}"/>'
        f'<rect class="copy-side" x="{start:.1f}" y="{line - 4}" width="{max(0.0, end - start):.1f}" height="8" rx="2"/>'
        f'<line class="limit" x1="{x(threshold):.1f}" x2="{x(threshold):.1f}" y1="{line - 9}" y2="{line + 9}"/>'
        f'<circle class="{dot}" cx="{x(value):.1f}" cy="{line}" r="5"/>'
    )
    side = "on the side of copies" if called else "not a copy"
    words = f"{name} {number(value, 3)}, threshold {number(threshold, 3)}: {side}"
    return _svg(width, height, "scale", f"{name} beside the threshold", words, body)


def interval_chart(share: float, interval: Interval, name: str) -> Markup:
    """A share in [0, 1] as a dot with its interval as a bar."""
    width, height, pad, line = 220, 24, 8, 10

    def x(rate: float) -> float:
        return pad + rate * (width - 2 * pad)

    low, high = interval
    body = (
        f'<line class="axis" x1="{pad}" x2="{width - pad}" y1="{line}" y2="{line}"/>'
        f'<rect class="interval" x="{x(low):.1f}" y="{line - 4}" width="{max(2.0, x(high) - x(low)):.1f}" height="8" '
        f'rx="4"/><circle class="dot called" cx="{x(share):.1f}" cy="{line}" r="4.5"/>'
        + _text(pad, height - 1, "0", "tick", "start")
        + _text(width - pad, height - 1, "100 %", "tick", "end")
    )
    return _svg(width, height, "scale", name, f"{percent(share)}, {percents(low, high)}", body)
