"""Every mitigation over its sweep on the digits testbed, the same seeds before and after; the trade-off and its picture.

Captions measured as reproduced and captions measured as not, spread over their tiers. A copy is what diffmem calls one (the
threshold is calibrated on held-out digits at 1 % per caption), aligned an image that shows the digit its caption names.
Intervals: 95 %, captions resampled; before and after are paired. Resumable:

    python benchmarks/mitigation/run.py --work DIR [--captions 30] [--draws 4] [--methods wen,sail]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from diffmem.bench.mitigation import REFERENCE, SAMPLING, captions, headlines, settings_of
from diffmem.copies.text_alignment import digits_alignment
from diffmem.engine.generate import Generation
from diffmem.engine.mitigate import mitigate
from diffmem.engine.mitigate_page import write_page
from diffmem.evaluation.paired import mean_difference
from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.spec import parse_mitigation
from diffmem.models.target import Target
from diffmem.runs.provenance import provenance
from diffmem.testbeds import digits

SWEEPS = {
    "random-tokens": ("count=3", "count=6"),
    "word-repetition": ("count=2", "count=12"),
    "random-numbers": ("count=6",),
    "embedding-noise": ("strength=2",),
    "wen": ("pull=0.3,lr=0.1,steps=20", "pull=0.6,lr=0.1,steps=20"),
    "anisotropy": (
        "weights=0/1,target=0,lr=0.1", "weights=0/1,target=-0.4,lr=0.1", "weights=0/1,target=-0.25,lr=0.1,ratio=0.1",
        "weights=0/1,target=-0.25,lr=0.1,ratio=0.4", "weights=1/5,target=-0.5,lr=0.1,steps=20",
        "weights=0/1,target=-0.25,lr=0.1,steps=20",
    ),
    "transition-static": ("until=500", "until=700"),
    "opposite-guidance": ("until=150",),
    "ren": ("mask=false",),
    "prss": ("tokens=1,low=0.3,high=0.6", "tokens=3,low=0.3,high=0.6"),
    "amg": ("dissimilarity=0",),
}  # fmt: skip
"""Settings beside those of the suite."""
PAIRS = (("anisotropy", "none"), ("anisotropy", REFERENCE), ("anisotropy", "wen"))
SHOWN = 9  # methods with a label in the picture: those that leave fewest copies at the reference's alignment


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
    result = mitigate(
        target, captions(options.captions), tried, inputs.train, out=options.work / "run", heldout=inputs.held_out,
        settings=Generation(draws=options.draws, seed=1, batch=60, sampling=SAMPLING), alignment=digits_alignment(),
        silent=False,
    )  # fmt: skip
    print(write_page(result, "testbed:digits", "digits classifier"))
    half = options.draws // 2
    report = {
        "captions": options.captions, "draws": options.draws, "root_seed": 1, "steps": 20, "guidance": 2.0,
        "rows": [short(row) for row in result.rows],
        "headlines": [short(r) for r in headlines(result, names, (range(half), range(half, 2 * half)))],
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
        a = result.seen[settings[one]]
        b = result.plain if two == "none" else result.seen[settings[two]]
        side = ~a.other & a.made & b.made & (a.draw >= half)
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
    """Copies left against alignment: every setting a dot, a method's settings joined, the best ones named in the plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in report["rows"] if row["status"] == "ok"]
    plain = rows[0]
    named = [name for name in report["area"] if name != "rewrite"][:SHOWN]
    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    colors = plt.get_cmap("tab10")
    for name in report["area"]:
        mine = sorted((r for r in rows if r["method"] == name), key=lambda r: -r["copied_after"])
        x, y = [r["copied_after"] for r in mine], [r["alignment_after"] for r in mine]
        if name in named:
            number = named.index(name)
            axis.plot(x, y, "-o", color=colors(number % 10), lw=1.2, ms=5, alpha=0.9, label=name)
        elif name == "rewrite":
            axis.plot(x, y, "*", color="black", ms=11, label="rewrite (knows the answer)")
        else:
            axis.plot(x, y, "o", color="0.75", ms=4, label="_")
    axis.plot([], [], "o", color="0.75", ms=4, label="other methods")
    reference = next(r for r in rows if r["setting"] == REFERENCE)
    axis.axhline(reference["alignment_after"], color="0.5", lw=0.8, ls=":")
    axis.text(
        0.55,
        reference["alignment_after"] - 0.012,
        f"alignment of {REFERENCE} at its default",
        fontsize=8,
        color="0.4",
        va="top",
    )
    axis.plot(plain["copied_after"], plain["alignment_after"], "s", color="black", ms=8)
    axis.annotate(
        "no mitigation",
        (plain["copied_after"], plain["alignment_after"]),
        (-8, -14),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    axis.annotate("best: nothing copied,\nevery image as asked", (0.0, 1.0), (0.11, 1.045), fontsize=9, color="#13705a",
                  arrowprops={"arrowstyle": "->", "color": "#13705a"}, va="center")  # fmt: skip
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(0, 1.08)
    axis.set_xlabel("images that are copies of training images (share)")
    axis.set_ylabel("images that show the digit asked for (share)")
    axis.set_title("What each mitigation leaves of the copies, and what it costs")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
