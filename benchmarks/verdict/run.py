"""How often is a verdict wrong, and what does it find? Simulated audits, as rows: no model and no images.

    python benchmarks/verdict/run.py [--part safe ...] [--audits 2000] [--out result.json]

Parts: safe (audits of models that copy nothing: how many are called `reproduces`), power (audits with a planted share),
plan (the power that `diffmem plan` promises against that of simulated audits of that size), bound (how often the share that
`no-excess` does not exclude holds the true one), looks (several looks at one audit, by a plan and without one). Parts that are
run replace their entry in the result, the others stay.

The statistic of an image that copies nothing has a part common to near-duplicate prompts, one common to a prompt's images
and its own; the reference images are such images of prompts of their own. Calls that agree in prompt go to the same training
image. The code is that of the product: the threshold, the counting of evidence, the verdict.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from audits import judged
from scipy.stats import norm, t

from diffmem.copies.calibration import threshold_from
from diffmem.copies.references import References
from diffmem.evaluation.chance import LEVEL, Chance, fewest_calls
from diffmem.evaluation.looks import spending_levels
from diffmem.evaluation.planning import plan_audit
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.runs.provenance import provenance

TAILS = {"normal": lambda z: z, "heavy": lambda z: t.ppf(norm.cdf(z), 3)}
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def audit(random, prompts, images, references, tail, alike, share=0.0, seeds=1.0):
    """The verdict of one simulated audit, and how many of its prompts reproduce a training image."""
    ((verdict, copied),) = looked_at(random, prompts, images, references, tail, alike, share, seeds, {images: LEVEL})
    return verdict, copied


def looked_at(random, prompts, images, references, tail, alike, share, seeds, levels):
    """The verdicts of one simulated audit at several looks, and how many of its prompts reproduce a training image.

    Args:
        prompts: how many; in clusters of 1 to 4 near-duplicates.
        images: per prompt.
        references: for the threshold, at 1 % per prompt.
        tail: of the statistic.
        alike: share of the statistic's variance common to a cluster, and again to a prompt.
        share: of the prompts that reproduce a training image.
        seeds: of such a prompt that do.
        levels: images per prompt at each look -> level of its test.
    """
    shape = TAILS[tail]
    known = shape(random.standard_normal(references))
    sizes = random.integers(1, 5, prompts)
    cluster = np.repeat(np.arange(prompts), sizes)[:prompts]
    parts = (random.standard_normal(prompts)[cluster], random.standard_normal(prompts))
    own = random.standard_normal((prompts, images))
    common = np.sqrt(alike) * (parts[0] + parts[1])
    value = shape(common[:, None] + np.sqrt(1 - 2 * alike) * own)
    copies = (random.random(prompts) < share)[:, None] & (random.random((prompts, images)) < seeds)
    value[copies] = np.inf
    # Images of near-duplicate prompts tend to the same training image as much as their statistics agree.
    group = np.where(
        random.random((prompts, images)) < 2 * alike,
        cluster[:, None],
        random.integers(10_000, 13_000, (prompts, images)),
    )
    group[copies] = (20_000 + cluster)[:, None].repeat(images, 1)[copies]
    stems = ["".join(letters) for letters in LETTERS[random.integers(0, 26, (prompts, 36))]]
    texts = {f"{i:05}": f"{stems[cluster[i]]}{'abcd'[i % 4]}" for i in range(prompts)}
    return [
        (judged(value[:, :n], group[:, :n], rule(known, n), texts, level), int(copies[:, :n].any(1).sum()))
        for n, level in levels.items()
    ]


def rule(known, images):
    return threshold_from([References("held-out", known)], "similarity", 0.85, 0.01, images)


def cells(count):
    """Kinds of audits, and how many of each."""
    found = [
        (prompts, images, references, tail, alike)
        for prompts, (images, references), tail, alike in itertools.product(
            (60, 302), ((1, 100), (1, 1000), (4, 400), (4, 2000)), TAILS, (0.0, 0.35)
        )
    ]
    return [(cell, count // len(found) + (i < count % len(found))) for i, cell in enumerate(found)]


NAMES = ("prompts", "images_per_prompt", "references", "tail", "alike")


def safe(count):
    rows, total = [], {}
    for number, (cell, many) in enumerate(cells(count)):
        states = [audit(np.random.default_rng([1, number, i]), *cell)[0].state for i in range(many)]
        counted = {state: states.count(state) for state in ("reproduces", "no-excess", "unknown")}
        rows.append({**dict(zip(NAMES, cell, strict=True)), "audits": many, **counted})
        total = {state: total.get(state, 0) + n for state, n in counted.items()}
        print(rows[-1], flush=True)
    return {"rows": rows, "audits": count, **total}


def power(count):
    rows = []
    many = max(100, count // 10)
    for share, references, images in itertools.product((0.01, 0.02, 0.03, 0.05, 0.1), (300, 2000), (1, 4)):
        if references < 400 and images > 1:
            continue
        cell = (302, images, references, "normal", 0.35)
        made = [audit(np.random.default_rng([2, i]), *cell, share=share)[0] for i in range(many)]
        hits = sum(v.state == "reproduces" for v in made)
        rows.append({**dict(zip(NAMES, cell, strict=True)), "share": share, "audits": many, "power": hits / many,
                     "interval": clopper_pearson(hits, many)})  # fmt: skip
        print(rows[-1], flush=True)
    return {"rows": rows}


def plan(count):
    """Independent prompts, as the plan counts them: the threshold is drawn anew in each audit."""
    rows, random = [], np.random.default_rng(3)
    for detect, seeds, references in itertools.product((0.01, 0.02, 0.05, 0.1), (1.0, 0.5), (None, 1000)):
        made = plan_audit(detect, 0.8, seeds, references=references)
        k = made.images_per_prompt
        chance = Chance.of_rate(made.references, 1 - (1 - made.fpr) ** (1 / k), k)
        needed, hits, false = fewest_calls(made.prompts, chance), 0, 0
        for _ in range(count):
            ordered = np.sort(random.random(made.references))
            limit = ordered[made.references - chance.exceeding]
            by_chance = (random.random((made.prompts, k)) > limit).any(1)
            copies = (random.random(made.prompts) < detect) & (random.random((made.prompts, k)) < seeds).any(1)
            hits += (by_chance | copies).sum() >= needed
            false += by_chance.sum() >= needed
        rows.append({"detect": detect, "copying_seeds": seeds, **asdict(made), "audits": count,
                     "realised_power": hits / count, "false": int(false)})  # fmt: skip
        print(rows[-1], flush=True)
    return {"rows": rows, "largest_gap": max(abs(row["power"] - row["realised_power"]) for row in rows)}


def bound(count):
    rows = []
    many = max(100, count // 5)
    for share, alike in itertools.product((0.0, 0.01, 0.02, 0.03), (0.0, 0.35)):
        cell = (302, 1, 2000, "normal", alike)
        made = [audit(np.random.default_rng([4, i]), *cell, share=share)[0] for i in range(many)]
        bounds = np.array([v.bound for v in made])
        rows.append({**dict(zip(NAMES, cell, strict=True)), "share": share, "audits": many,
                     "bound_holds": float((bounds >= share).mean()), "median_bound": float(np.median(bounds))})  # fmt: skip
        print(rows[-1], flush=True)
    return {"rows": rows}


def looks(count):
    """Audits of models that copy nothing, looked at with 2, 4 and 8 images per prompt: by a plan, and each time as if first.

    With a share that reproduces, every second seed of it: the power by the plan, and the images that early ends spare.
    """
    images, rows = (2, 4, 8), []
    planned = dict(zip(images, spending_levels(images), strict=True))
    # Ranks alone count here, so that the tail of the statistic changes nothing.
    for tail, alike, share in itertools.product(("normal",), (0.0, 0.35), (0.0, 0.05)):
        many = count // 2 if share == 0 else max(50, count // 20)
        wrong = {"planned": 0, "as_if_first": 0, "last_alone": 0}
        made = 0
        for i in range(many):
            levels = dict.fromkeys(images, LEVEL)
            verdicts = looked_at(np.random.default_rng([5, i]), 302, 8, 4000, tail, alike, share, 0.5, levels)
            p = [verdict.p_value for verdict, _ in verdicts]  # nothing else decides here: there is no pair to confirm
            assert all((verdict.state == "reproduces") == (verdict.p_value <= LEVEL) for verdict, _ in verdicts)
            found = [own <= planned[n] for own, n in zip(p, images, strict=True)]
            wrong["planned"] += any(found)
            wrong["as_if_first"] += min(p) <= LEVEL
            wrong["last_alone"] += p[-1] <= LEVEL
            made += images[found.index(True)] if any(found) else images[-1]
        rows.append({"prompts": 302, "looks": images, "references": 4000, "tail": tail, "alike": alike, "share": share,
                     "copying_seeds": 0.5, "audits": many, **wrong, "images_per_prompt": made / many})  # fmt: skip
        print(rows[-1], flush=True)
    safe_ones = [row for row in rows if row["share"] == 0]
    total = {name: sum(row[name] for row in safe_ones) for name in ("planned", "as_if_first", "last_alone")}
    return {"rows": rows, "audits": sum(row["audits"] for row in safe_ones), "levels": planned, **total}


PARTS = {part.__name__: part for part in (safe, power, plan, bound, looks)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--audits", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    options = parser.parse_args()
    for part in options.part:
        began = time.monotonic()
        found = PARTS[part](options.audits)
        result = json.loads(options.out.read_text()) if options.out.exists() else {}
        result[part] = {**found, "seconds": time.monotonic() - began}
        result["provenance"] = provenance().model_dump()
        options.out.write_text(json.dumps(result, indent=1, default=lambda number: number.item()) + "\n")


if __name__ == "__main__":
    main()
