"""Every mitigation on the digits testbed, the same seeds before and after: copies, alignment, side effects, cost.

30 captions measured as reproduced and 30 measured as not (spread over their tiers), a few images of each. A copy is an
image that matches a training image (d1/d2 < 1/3); aligned is an image that shows the digit its caption names. Intervals
are at 95 %, paired, over captions.

    python benchmarks/mitigation/quick.py [--captions 30] [--draws 4] [--methods wen,sail] [--out result.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from diffmem.errors import MitigationRefused
from diffmem.evaluation.paired import mean_difference
from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.amg import Amg
from diffmem.mitigation.local_index import LocalIndex
from diffmem.mitigation.rewrite import Rewrite
from diffmem.mitigation.spec import parse_mitigation
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.runs.provenance import provenance
from diffmem.testbeds import digits
from diffmem.testbeds.digits.data import to_signed
from diffmem.testbeds.digits.matching import References

BATCH = 60
ROOT = 1  # the truth was measured with another
SAMPLING = Sampling(steps=20, guidance=2.0)
FURTHER = (
    "random-tokens:count=1", "random-tokens:count=2", "word-repetition:count=8", "embedding-noise:strength=0.5",
    "embedding-noise:strength=1", "wen:pull=0.5,lr=0.1,steps=20", "wen:pull=0.3,lr=0.1,steps=20",
    "anisotropy:weights=0/1,target=-0.25,lr=0.1", "anisotropy:weights=0/1,target=-0.25,lr=0.1,steps=20",
    "anisotropy:weights=1/5,target=-0.5,lr=0.1,steps=20", "transition-static:until=300", "transition-static:until=150",
    "opposite-guidance:until=300", "transition-dynamic:before=0", "han-batch:gamma=7,rounds=4,until=300",
    "han-sample:lr=0.1", "ren:start=2", "attenuation:scale=0", "prss:low=0.3,high=0.6", "prss:tokens=2,low=0.3,high=0.6",
    "prss:function=quick:plain_words,low=0.3,high=0.6", "ren:mask=false", "ren:mask=false,start=2", "amg:dissimilarity=3",
    "amg:dissimilarity=0", "amg:despecification=0,deduplication=0",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=30)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--methods", default=",".join(MITIGATIONS))
    parser.add_argument("--defaults", action="store_true", help="defaults only")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = Target.from_pretrained(digits.model_path("text"))
    chosen = captions(options.captions)
    names = sorted(options.methods.split(","), key=lambda name: name == "sail")  # the slowest last
    settings = [
        *names[:-1],
        *([] if options.defaults else [s for s in FURTHER if s.partition(":")[0] in names]),
        names[-1],
    ]
    plain, nfe, seconds = images_of(target, chosen, options.draws)
    report = {"captions": options.captions, "draws": options.draws, "root_seed": ROOT, "steps": 20, "guidance": 2.0}
    report |= {"sampler": "DDIM", "nfe_plain": nfe, "seconds_plain": seconds, "rows": []}
    pictures = {"none": plain}
    for text in settings:
        try:
            made = built(text, target)
            with made.apply(target) as record:
                images, nfe, seconds = images_of(target, chosen, options.draws)
        except MitigationRefused as reason:
            report["rows"].append({"method": text, "status": "refused", "reason": str(reason)})
            continue
        row = {"method": text, "status": "ok", "nfe_per_image": nfe + record.nfe.total / images[..., 0, 0].size}
        row |= {"seconds_per_image": seconds, **compared(chosen, plain, images)}
        report["rows"].append(row)
        pictures[text] = images
        print(" ".join(f"{k}={v if isinstance(v, str | list) else round(v, 3)}" for k, v in row.items()), flush=True)
    report["provenance"] = provenance().model_dump()
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(pictures, chosen, options.out.with_suffix(".png"))


def captions(count):
    """`count` captions of either kind, spread over tiers: (reproduced, not reproduced)."""
    truth = digits.truth("text")
    chosen = {}
    for label in ("reproduced", "not reproduced"):
        tiers = {}
        for row in truth:
            if row["label"] == label:
                tiers.setdefault(row["tier"], []).append(row)
        # From every tier its share, at least one, evenly spaced.
        total = sum(len(rows) for rows in tiers.values())
        rows = []
        for members in tiers.values():
            share = max(1, round(count * len(members) / total))
            rows += [members[i * len(members) // share] for i in range(share)]
        chosen[label] = rows[:count]
    return chosen


def built(text, target):
    made = parse_mitigation(text)
    if made.name == "amg":
        training = digits.load().training
        x0 = torch.from_numpy(np.stack([to_signed(image.pixels) for image in training]))[:, None]
        return Amg(made.settings, LocalIndex(x0, [image.captions[0] for image in training]))
    if made.name == "rewrite":
        return Rewrite(function=plain_words)
    return made


def plain_words(caption):
    """A rewriting that a person could have written: the digit that the caption names, in other words."""
    row = next(row for row in digits.truth("text") if row["caption"] == caption)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return f"a photo of the digit {words[row['digit']]}"


def images_of(target, chosen, draws):
    """Images [captions, draws, 8, 8] in [-1, 1] by label, the pipeline's own NFE and seconds per image."""
    rows = [row for part in chosen.values() for row in part]
    pairs = [(row["caption"], draw) for row in rows for draw in range(draws)]
    evaluations = []
    handle = target.pipeline.unet.register_forward_hook(lambda m, a, o: evaluations.append(len(a[0])))
    calls, found, started = 0, [], time.perf_counter()
    try:
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            found += target.generate([p for p, _ in part], [d for _, d in part], ROOT, SAMPLING)
            calls += len(part)
    finally:
        handle.remove()
    seconds = (time.perf_counter() - started) / calls
    array = np.stack([np.asarray(image.convert("L"), np.float32) / 127.5 - 1 for image in found])
    own = 2 * SAMPLING.steps  # evaluations of the mitigation itself are counted by its record
    assert sum(evaluations) >= own * calls
    return array.reshape(len(rows), draws, 8, 8), own, seconds


def compared(chosen, before, after):
    """Shares before and after, by label, with paired intervals over captions."""
    references = References(digits.load())
    row, start = {}, 0
    for label, rows in chosen.items():
        name = {"reproduced": "memorized", "not reproduced": "others"}[label]
        part = slice(start, start + len(rows))
        start += len(rows)
        shares = {}
        for when, images in (("before", before[part]), ("after", after[part])):
            flat = images.reshape(-1, 8, 8)
            copies = references.match(flat).copies.reshape(images.shape[:2])
            for tier in dict.fromkeys(r["tier"] for r in rows) if name == "memorized" else ():
                row[f"{tier}_copied_{when}"] = float(copies[[r["tier"] == tier for r in rows]].mean())
            named = np.repeat([r["digit"] for r in rows], images.shape[1])
            aligned = (digits.classify(flat)[0] == named).reshape(images.shape[:2])
            shares[when] = (copies.mean(1), aligned.mean(1))
        for what, index in (("copied", 0), ("aligned", 1)):
            one, two = shares["before"][index], shares["after"][index]
            _, low, high = mean_difference(two, one, np.arange(len(rows)))
            row |= {f"{name}_{what}_before": float(one.mean()), f"{name}_{what}_after": float(two.mean())}
            row[f"{name}_{what}_change"] = [round(low, 3), round(high, 3)]
        changed = np.sqrt(((before[part] - after[part]) ** 2).mean((2, 3)))
        row[f"{name}_rms_change"] = float(changed.mean())
    return row


def draw(pictures, chosen, path):
    """One row per setting: the same seeds of some captions, memorized on the left, others on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = len(chosen["reproduced"])
    shown = [*range(0, count, max(1, count // 10)), *range(count, 2 * count, max(1, count // 10))]
    figure, axes = plt.subplots(len(pictures), 1, figsize=(9, 0.5 * len(pictures)))
    for axis, (name, images) in zip(axes, pictures.items(), strict=True):
        strip = np.concatenate([np.pad(images[i, 0], 1, constant_values=0.5) for i in shown if i < len(images)], 1)
        axis.imshow(strip, cmap="gray", vmin=-1, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
