"""Is InvMM's search that gives up as good as the one that does not, and how much faster is it than one image at a time?

Digits with captions, guidance 2, at most --steps steps. The same images, in one run, four ways: as it ships (many at once, one
check sample first, hopeless checks skipped), also giving up searches that will not arrive, without skipping, and one
at a time with all samples at every check and all steps (what a plain loop does), on the first of each group.

    python benchmarks/invmm/speed.py [--steps 120] [--out speed.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from run import Bench, Images
from scipy.stats import spearmanr

from diffmem.evaluation.roc import auroc
from diffmem.models.target import Target
from diffmem.runs.provenance import provenance
from diffmem.scores.spec import parse_image_score
from diffmem.testbeds import digits

GROUPS = {"plant 20": 2, "plant 10": 2, "plant 5": 4, "plant 2": 4, "hard": 6, "held out, unseen caption": 2}
WAYS = {
    "ships": ("", 16), "gives up early": (",give_up=0.05", 16), "no check skipped": (",skip=false", 16),
    "one at a time": (",skip=false,one_first=false", 1),
}  # fmt: skip
ALONE = 1  # images of each group that are measured one at a time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser, images = Target.from_pretrained(digits.model_path("text")).denoiser, Images()
    rows = []
    for way in options.ways:
        more, batch = WAYS[way]
        items, of = [], {}
        for group, count in GROUPS.items():
            for item in images.items(denoiser, group, min(count, ALONE) if batch == 1 else count):
                items.append(item)
                of[item.id] = group
        score = parse_image_score(f"invmm:steps={options.steps},guidance=2{more}")
        started, cpu = time.perf_counter(), time.process_time()
        for result in score.run(denoiser, items, Bench(batch)):
            rows.append(
                {"way": way, "group": of[result.id], "id": result.id, "evidence": result.evidence,
                 "value": None if np.isinf(result.value) else result.value, "nfe": result.nfe.total,
                 "seconds": None if batch > 1 else time.process_time() - cpu,
                 "steps": result.components["steps"], "gave_up": result.components.get("gave_up", False)}
            )  # fmt: skip
            if batch == 1:
                cpu = time.process_time()
        total = time.process_time() - cpu if batch > 1 else sum(r["seconds"] for r in rows if r["way"] == way)
        for row in rows:
            if row["way"] == way and batch > 1:
                row["batch_cpu_seconds"] = total
        print(way, len(items), f"{total:.0f} s of CPU, {time.perf_counter() - started:.0f} s", flush=True)
        report = {
            "steps": options.steps,
            "summary": summary(rows),
            "rows": rows,
            "provenance": provenance().model_dump(),
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def summary(rows):
    """Per way: cost, how it orders the images compared with the plain search, and what it separates."""
    by_way = {way: {r["id"]: r for r in rows if r["way"] == way} for way in dict.fromkeys(r["way"] for r in rows)}
    alone = by_way.get("one at a time", {})
    found = {}
    for way, mine in by_way.items():
        some = list(mine.values())
        shared = [i for i in mine if i in by_way.get("no check skipped", {})]
        plain = by_way.get("no check skipped", {})
        sides = [[r["evidence"] for r in some if r["group"].startswith("plant") is side] for side in (True, False)]
        entry = {
            "images": len(some), "nfe_per_image": float(np.mean([r["nfe"] for r in some])),
            "cpu_seconds_per_image": cpu(some), "reached": sum(r["value"] is not None for r in some),
            "gave_up": sum(r["gave_up"] for r in some), "auroc_planted": auroc(*map(np.array, sides)),
        }  # fmt: skip
        if len(shared) > 2 and way != "no check skipped":
            pairs = [(mine[i]["evidence"], plain[i]["evidence"]) for i in shared]
            entry["spearman_with_plain"] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
            entry["status_differs"] = [i for i in shared if (mine[i]["value"] is None) != (plain[i]["value"] is None)]
        if alone and way != "one at a time":
            both = [i for i in alone if i in mine]
            plain_nfe = sum(alone[i]["nfe"] for i in both)
            entry["nfe_ratio_to_one_at_a_time"] = plain_nfe / sum(mine[i]["nfe"] for i in both)
            # A batch's time goes to its images by their evaluations.
            per_nfe = some[0]["batch_cpu_seconds"] / sum(r["nfe"] for r in some)
            spent = per_nfe * sum(mine[i]["nfe"] for i in both)
            entry["cpu_ratio_to_one_at_a_time"] = sum(alone[i]["seconds"] for i in both) / spent
        found[way] = entry
    return found


def cpu(some):
    if some[0]["seconds"] is not None:
        return float(np.mean([r["seconds"] for r in some]))
    return some[0]["batch_cpu_seconds"] / len(some)


if __name__ == "__main__":
    main()
