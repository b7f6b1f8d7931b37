"""Charts of a watched training: figures over steps with their intervals. Inline SVG as in `diffmem.report.charts`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from diffmem.report.charts import _svg, _text, ticks
from diffmem.report.prose import number, percent

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 30, 42


def steps_chart(
    points: Sequence[tuple[int, float, float | None, float | None]],
    name: str,
    *,
    share: bool,
    band: tuple[float, float] | None = None,
    line: tuple[float, str] | None = None,
    marks: Sequence[tuple[int, str]] = (),
    expected: tuple[float | None, float | None, float | None] | None = None,
) -> Markup:
    """A figure at each checkpoint, joined, with its interval as a bar; nothing where there is no value.

    Args:
        points: (step, value, low, high).
        name: of the figure, above the chart.
        share: whether values are shares.
        band: values between which there is nothing to see (chance).
        line: a value and what it is.
        marks: steps that are marked, with a word.
        expected: a predicted step with its interval, drawn along the bottom.
    """
    known = [(step, value, low, high) for step, value, low, high in points if value is not None]
    if not known:
        return Markup("")
    steps = [step for step, *_ in known]
    far = [value for value in (expected or ()) if value is not None]
    first, last = min(steps), max(*steps, *(min(value, 3 * max(steps)) for value in far), first_above(steps))
    values = (
        [v for _, a, b, c in known for v in (a, b, c) if v is not None] + [*(band or ())] + ([line[0]] if line else [])
    )
    low, high = min(values if line is not None and not share else [0.0, *values]), max(values)
    high = max(high, low + (0.02 if share else 1e-6))

    def x(step: float) -> float:
        return float(LEFT + 14 + (step - first) / max(1, last - first) * (WIDTH - LEFT - RIGHT - 28))

    def y(value: float) -> float:
        return float(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM - 6))

    def told(value: float) -> str:
        return percent(value).replace("-", "−") if share else number(value, 3)

    body = [_text(LEFT, 16, name, "key", "start")]
    if band is not None:
        body.append(
            f'<rect class="band kind-5" x="{LEFT}" y="{y(band[1]):.1f}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{max(1.0, y(band[0]) - y(band[1])):.1f}"/>'
        )
    for value in ticks(low, high, 4):
        body.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        body.append(_text(LEFT - 6, y(value) + 4, told(value), "tick", "end"))
    if line is not None:
        body.append(
            f'<line class="chance" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(line[0]):.1f}" y2="{y(line[0]):.1f}"/>'
        )
        body.append(_text(WIDTH - RIGHT, y(line[0]) - 5, line[1], "tick", "end"))
    for step, word in marks:
        body.append(f'<line class="limit" x1="{x(step):.1f}" x2="{x(step):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        side = "end" if x(step) > (LEFT + WIDTH) / 2 else "start"
        body.append(_text(x(step) + (-5 if side == "end" else 5), TOP + 8, word, "tick", side))
    if expected is not None and expected[1] is not None:
        start, end = x(min(expected[1], last)), x(last if expected[2] is None else min(expected[2], last))
        base = HEIGHT - BOTTOM
        body.append(
            f'<rect class="interval" x="{start:.1f}" y="{base - 3}" width="{max(2.0, end - start):.1f}" height="6" rx="3"/>'
        )
        if expected[0] is not None and expected[0] <= last:
            body.append(f'<circle class="dot" cx="{x(expected[0]):.1f}" cy="{base}" r="4"/>')
    body.append(
        f'<polyline class="curve" fill="none" points="{" ".join(f"{x(s):.1f},{y(v):.1f}" for s, v, *_ in known)}"/>'
    )
    for step, value, below, above in known:
        if below is not None and above is not None:
            body.append(
                f'<line class="axis" x1="{x(step):.1f}" x2="{x(step):.1f}" y1="{y(below):.1f}" y2="{y(above):.1f}"/>'
            )
        body.append(f'<circle class="dot called" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3.5"/>')
    for value in ticks(first, last, 4) if last > first else [first]:
        body.append(_text(x(value), HEIGHT - BOTTOM + 16, f"{round(value):,}"))
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "step →", "axis-name"))
    words = "; ".join(f"step {step:,}: {told(value)}" for step, value, *_ in known)
    return _svg(WIDTH, HEIGHT, "steps", name, words, "".join(body))


def first_above(steps: Sequence[int]) -> int:
    """A step beyond the only one, so that an axis of one checkpoint has a length."""
    return max(steps) + 1 if len(set(steps)) == 1 else max(steps)


def points_of(rows: Sequence[Mapping[str, Any]], column: str) -> list[tuple[int, float, float | None, float | None]]:
    """A column of the summary's rows with its ends."""
    return [
        (row["step"], row[column], row.get(f"{column}_low"), row.get(f"{column}_high"))
        for row in rows
        if row.get(column) is not None and math.isfinite(row[column])
    ]
