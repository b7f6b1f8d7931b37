"""Charts of a copying lab: one measure over all cells, and copying against alignment. Inline SVG as in `charts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from diffmem.report.charts import _svg, _text, _upright, ticks
from diffmem.report.prose import number, percent

WIDTH = 760
LINE = 26


def cells_chart(cells: Sequence[Mapping[str, Any]], column: str, name: str, share: bool) -> Markup:
    """One line per cell: a small dot per seed with its interval over images, a large one at the mean of the seeds.

    Args:
        cells: {"number", "name", "rows"} with rows as the table's, done ones only.
        column: which figure.
        name: of the axis.
        share: whether values are shares, on an axis that begins at 0.
    """
    left, right, top, bottom = 300, 20, 6, 38
    height = top + bottom + LINE * len(cells)
    ends = [row[f"{column}{end}"] for cell in cells for row in cell["rows"] for end in ("", "_low", "_high")]
    known = [float(value) for value in ends if value is not None]
    if not known:
        return Markup("")
    low, high = min(known), max(known)
    low = 0.0 if share else low - 0.05 * (high - low)
    high = max(high, low + 1e-6)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - right)

    body = []
    for value in ticks(low, high, 6):
        body.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{height - bottom}"/>')
        body.append(_text(x(value), height - bottom + 15, percent(value) if share else number(value, 3)))
    body.append(_text((left + WIDTH - right) / 2, height - 5, f"{name} →", "axis-name"))
    for place, cell in enumerate(cells):
        y = top + LINE * (place + 0.5)
        body.append(_text(left - 10, y + 4, f"{cell['name']}  ·  {cell['number']}", "tick", "end"))
        values = [row[column] for row in cell["rows"] if row[column] is not None]
        count = len(values)
        for turn, row in enumerate(r for r in cell["rows"] if r[column] is not None):
            at = y + (turn - (count - 1) / 2) * min(6.0, 18 / max(count, 1))
            if row[f"{column}_low"] is not None:
                a, b = x(row[f"{column}_low"]), x(row[f"{column}_high"])
                body.append(
                    f'<rect class="interval" x="{a:.1f}" y="{at - 1.5:.1f}" width="{max(1.0, b - a):.1f}" height="3" rx="1.5"/>'
                )
            body.append(f'<circle class="dot" cx="{x(row[column]):.1f}" cy="{at:.1f}" r="2.5"/>')
        if values:
            body.append(f'<circle class="dot called" cx="{x(sum(values) / count):.1f}" cy="{y:.1f}" r="5"/>')
    words = "; ".join(
        f"{cell['name']}: {number(sum(v) / len(v), 3)}"
        for cell in cells
        if (v := [row[column] for row in cell["rows"] if row[column] is not None])
    )
    return _svg(WIDTH, height, "wide", f"{name} by cell", words, "".join(body))


def tradeoff_chart(points: Sequence[tuple[int, float, float]], x_name: str, y_name: str) -> Markup:
    """Cells by number: copying to the right, what it is paid with upwards; best is the upper left corner.

    Args:
        points: (number, share copied, alignment) per cell.
        x_name: of the axis to the right.
        y_name: of the axis upwards.
    """
    if not points:
        return Markup("")
    width, height, left, right, top, bottom = 560, 330, 64, 24, 16, 46
    x_high = max(0.02, *(p[1] for p in points)) * 1.06
    y_low, y_high = min(p[2] for p in points), max(p[2] for p in points)
    margin = max(0.02, 0.08 * (y_high - y_low))
    y_low, y_high = max(0.0, y_low - margin), min(1.0 + margin, y_high + margin)

    def x(value: float) -> float:
        return left + value / x_high * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - (value - y_low) / (y_high - y_low) * (height - top - bottom)

    body = []
    for value in ticks(0.0, x_high, 5):
        body.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{height - bottom}"/>')
        body.append(_text(x(value), height - bottom + 15, percent(value)))
    for value in ticks(y_low, y_high, 5):
        body.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        body.append(_text(left - 6, y(value) + 4, percent(value) if y_high <= 1.1 else number(value, 3), "tick", "end"))
    body.append(_text((left + width - right) / 2, height - 8, f"{x_name} →", "axis-name"))
    body.append(_upright(14, (top + height - bottom) / 2, f"{y_name} →", "axis-name"))
    placed: list[tuple[float, float]] = []
    for index, copied, aligned in points:
        a, b = x(copied), y(aligned)
        # Labels of cells that lie together are moved apart, in the order of the table.
        offset = 12 * sum(abs(a - u) < 14 and abs(b - v) < 12 for u, v in placed)
        placed.append((a, b))
        body.append(f'<circle class="dot called" cx="{a:.1f}" cy="{b:.1f}" r="4.5"/>')
        body.append(_text(a + 8 + offset, b + 4, str(index), "key", "start"))
    words = "; ".join(f"cell {i}: {percent(c)} copied, {number(v, 3)} {y_name}" for i, c, v in points)
    return _svg(width, height, "tradeoff", f"{x_name} against {y_name}", words, "".join(body))
