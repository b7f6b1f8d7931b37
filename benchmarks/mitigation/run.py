"""Every mitigation over its sweep on the digits testbed, the same seeds before and after; the trade-off and its picture.

Captions measured as reproduced and captions measured as not, spread over their tiers. A copy is what diffmem calls one (the
threshold is calibrated on held-out digits at 1 % per caption), aligned an image that shows the digit its caption names.
Intervals: 95 %, captions resampled; before and after are paired. Resumable:

    python benchmarks/mitigation/run.py --work DIR [--captions 30] [--draws 4] [--methods wen,sail]
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from diffmem.bench.mitigation import REFERENCE, SAMPLING, captions, headlines, settings_of
from diffmem.evaluation.paired import mean_difference
from diffmem.experiments._arm import Reference
from diffmem.experiments.mitigate.compare import OTHER
from diffmem.experiments.mitigate.run import mitigate
from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.spec import parse_mitigation
from diffmem.models.target import Target
from diffmem.runs.provenance import provenance
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import Matching
from diffmem.testbeds import digits
from diffmem.testbeds.alignment import digits_alignment

SWEEPS = {
    "random-tokens": ("count=3", "count=6"),
    "word-repetition": ("count=2", "count=12"),
    "random-numbers": ("count=6",),
    "embedding-noise": ("strength=2",),
    "wen": (
        "pull=0.3,lr=0.1,steps=20", "pull=0.6,lr=0.1,steps=20", "pull=0.2,lr=0.05,steps=30,along=gradient",
    ),
    "anisotropy": (
        "weights=0/1,target=0,lr=0.1", "weights=0/1,target=-0.4,lr=0.1", "weights=0/1,target=-0.25,lr=0.1,ratio=0.1",
        "weights=0/1,target=-0.25,lr=0.1,ratio=0.4", "weights=1/5,target=-0.5,lr=0.1,steps=20",
        "weights=0/1,target=-0.25,lr=0.1,steps=20",
        "weights=0/1,target=-0.2,lr=0.05,steps=30,along=gradient,ratio=0.1",
        "weights=0/1,target=-0.3,lr=0.05,steps=30,along=gradient,ratio=0.1",
    ),
    "low-noise-norm": (
        "pull=0.02", "pull=0.09,ratio=0.2", "pull=0.06,ratio=0.2", "pull=0.0375,ratio=0.05", "pull=0.02,ratio=0.05",
    ),
    "transition-static": ("until=500", "until=700"),
    "opposite-guidance": ("until=150",),
    "ren": ("mask=false",),
    "prss": ("tokens=1,low=0.3,high=0.6", "tokens=3,low=0.3,high=0.6"),
    "amg": ("dissimilarity=0",),
}  # fmt: skip
"""Settings beside those of the suite."""
PAIRS = (
    ("anisotropy", "none"), ("anisotropy", REFERENCE), ("anisotropy", "wen"), ("low-noise-norm", "none"),
    ("low-noise-norm", REFERENCE), ("low-noise-norm", "anisotropy"),
)  # fmt: skip
SHOWN = 9  # methods named in the picture beside rewriting: those of the smallest area


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--captions", type=int, default=30)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--methods", default=",".join(MITIGATIONS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = Target.from_pretrained(digits.model_path("text"), name="testbed:digits")
    inputs = digits.materialize(options.work / "data")
    names = sorted(options.methods.split(","), key=lambda name: name == "sail")  # the slowest last
    tried = [one for name in dict.fromkeys([REFERENCE, *names]) for one in all_settings(name)]
    index = Reference.of(inputs.train, None, Matching()).index_in(options.work / "run")
    result = mitigate(
        target, captions(options.captions), tried, index, pictures=inputs.train, out=options.work / "run",
        heldout=inputs.held_out,
        settings=Generation(images_per_prompt=options.draws, seed=1, batch=60, sampling=SAMPLING), alignment=digits_alignment(),
        silent=False,
    )  # fmt: skip
    print(result.report())
    half = options.draws // 2
    report = {
        "captions": options.captions, "draws": options.draws, "root_seed": 1, "steps": 20, "guidance": 2.0,
        "rows": [short(row) for row in result.summary.rows],
        "headlines": [short(r) for r in headlines(result, index, names, (range(half), range(half, 2 * half)))],
        "headline_chosen_on": "the first half of the draws; its figures are from the second half",
    }  # fmt: skip
    report["area"] = areas(report["rows"])
    report["pairs"] = pairs(result, report["headlines"], half)
    report["provenance"] = provenance().model_dump(mode="json")
    here = Path(__file__).parent
    text = json.dumps(report, indent=1, allow_nan=False)
    (here / "result.json").write_text(text.replace(str(options.work), "WORK") + "\n")
    draw(report, here / "tradeoff.png")


def all_settings(name):
    made = settings_of(name)
    more = [parse_mitigation(f"{name}:{text}") for text in SWEEPS.get(name, ())]
    return list({one.label: one for one in [*made, *more]}.values())


def short(row):
    """Numbers rounded."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def areas(rows):
    """Per method the mean share of copies left over alignments from 0 to 1, with the best setting at each: lower is better.

    A setting that keeps alignment a serves every demand up to a; no mitigation serves all up to its own.
    """
    plain = rows[0]
    found = {}
    for name in dict.fromkeys(row["method"] for row in rows[1:]):
        mine = [r for r in rows if r["method"] == name and r["status"] == "ok"]
        if not mine:
            continue
        points = [(r["alignment_after"], r["copied_after"]) for r in mine] + [
            (plain["alignment_after"], plain["copied_after"])
        ]
        grid = np.linspace(0, plain["alignment_after"], 201)
        found[name] = round(float(np.mean([min(c for a, c in points if a >= g - 1e-9) for g in grid])), 4)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def pairs(result, chosen, half):
    """Copies left and alignment of the headline settings, one minus the other, paired on the second half of the draws."""
    settings = {row["method"]: row["setting"] for row in chosen}
    found = []
    for one, two in PAIRS:
        if one not in settings or (two != "none" and two not in settings):
            continue
        a, b = result.results[settings[one]].table, result.results["none" if two == "none" else settings[two]].table
        other = np.array([prompt.group == OTHER for prompt in result.results["none"].arm.prompts])[a.prompt]
        side = ~other & a.judged & b.judged & (a.draw >= half)
        row = {"first": settings[one], "second": two if two == "none" else settings[two], "images": int(side.sum())}
        for name in ("copied", "aligned"):
            x, y = getattr(a, name)[side].astype(float), getattr(b, name)[side].astype(float)
            difference, low, high = mean_difference(x, y, a.prompt[side])
            row[name] = {
                "first": round(float(x.mean()), 4), "second": round(float(y.mean()), 4),
                "difference": round(difference, 4), "low": round(low, 4), "high": round(high, 4),
            }  # fmt: skip
        found.append(row)
    return found


def draw(report, path):
    """Copies left against alignment: a method's undominated settings joined and named in the plot, all others as dots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in report["rows"] if row["status"] == "ok"]
    plain, least = rows[0], next(r["alignment_after"] for r in rows if r["setting"] == REFERENCE)
    figure, axis = plt.subplots(figsize=(11, 7), layout="constrained")
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(0, 1.08)
    axis.axhspan(least, 1.08, color="#13705a", alpha=0.08, lw=0)
    axis.text(
        0.99, 1.055, f"keeps the alignment of {REFERENCE} at its default", fontsize=9, color="#13705a", ha="right"
    )
    axis.text(0.005, 1.055, "best", fontsize=11, color="#13705a", weight="bold")
    axis.plot(plain["copied_after"], plain["alignment_after"], "s", color="black", ms=9, zorder=5)
    labels = [((plain["copied_after"], plain["alignment_after"]), "no mitigation", "black")]
    colors, lines = plt.get_cmap("tab10"), []
    for number, name in enumerate(report["area"]):
        mine = [(r["copied_after"], r["alignment_after"]) for r in rows if r["method"] == name]
        edge = frontier(mine)
        best = max(edge, key=lambda point: point[1] - point[0])
        if name == "rewrite":
            axis.plot(*best, "*", color="black", ms=13, zorder=5)
            labels.append((best, "rewrite, given the answer", "black"))
        elif number <= SHOWN:
            color = colors(number % 10)
            axis.plot(*zip(*mine, strict=True), "o", color=color, ms=3.5, alpha=0.45)
            heavy = {"lw": 2.6, "ms": 7} if name in (REFERENCE, "anisotropy") else {"lw": 1.3, "ms": 5}
            axis.plot(*zip(*edge, strict=True), "-o", color=color, **heavy)
            labels.append((best, name, color))
            lines += [
                tuple(np.add(a, part * np.subtract(b, a))) for a, b in pairwise(edge) for part in np.linspace(0, 1, 40)
            ]
        else:
            axis.plot(*zip(*mine, strict=True), "o", color="0.75", ms=4)
    axis.plot(
        [],
        [],
        "o",
        color="0.75",
        ms=4,
        label=f"methods with a larger area: {', '.join(list(report['area'])[SHOWN + 1 :])}",
    )
    axis.plot(
        [], [], "o", color="0.45", ms=3.5, alpha=0.45, label="pale: settings that another of the same method beats"
    )
    place(axis, labels, [(r["copied_after"], r["alignment_after"]) for r in rows] + lines)
    axis.set_xlabel("images that are copies of training images (share)")
    axis.set_ylabel("images that show the digit asked for (share)")
    axis.set_title("What each mitigation leaves of the copies, and what it costs")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def frontier(points):
    """The points that no other beats in both, from few copies to many."""
    kept, highest = [], -1.0
    for point in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if point[1] > highest:
            kept.append(point)
            highest = point[1]
    return kept


def place(axis, labels, points):
    """Write every label beside its point, where it covers fewest points, lines and other labels."""
    from matplotlib.patheffects import withStroke

    taken, offsets = [], [(dx, dy) for r in (12, 24, 40, 60) for dx in (r, -r, 0) for dy in (0, r, -r) if dx or dy]
    at = axis.transData.transform
    dots = [at(point) for point in points]
    for point, text, color in labels:
        x, y = at(point)
        width, height = 8.0 * len(text), 16.0

        def box(offset, x=x, y=y, width=width, height=height):
            left = x + offset[0] - (width if offset[0] < 0 else width / 2 if offset[0] == 0 else 0)
            return left, y + offset[1] - height / 2, left + width, y + offset[1] + height / 2

        def covered(offset):
            a = box(offset)
            over = sum(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in taken)
            frame = axis.bbox
            out = a[0] < frame.x0 or a[2] > frame.x1 or a[1] < frame.y0 or a[3] > frame.y1 - 24
            return (
                60 * over
                + 20 * out
                + sum(a[0] < u < a[2] and a[1] < v < a[3] for u, v in dots)
                + 0.01 * max(map(abs, offset))
            )

        best = min(offsets, key=covered)
        taken.append(box(best))
        side = "left" if best[0] > 0 else "right" if best[0] < 0 else "center"
        pixels = 72 / axis.figure.dpi
        axis.annotate(
            text, point, (best[0] * pixels, best[1] * pixels), textcoords="offset points", ha=side, va="center",
            fontsize=9, color=color, weight="bold", zorder=6, path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip


if __name__ == "__main__":
    main()
