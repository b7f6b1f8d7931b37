"""Epsilon, v and flow on equal terms: one testbed, one data order, each model judged by the truth measured on itself.

For each variant of the digits model: how many captions of each tier it reproduces; where the scores look (t_hi, t_lo);
every row of `diffmem bench --suite digits`; how norm and cosine separate along a grid of sigma/alpha; the low-noise norm
against each other score on the same captions and noises, paired. A model that does not ship (another training seed) joins
with --model and --truth and replaces its entry in the result; the others stay.

    python benchmarks/predictions/run.py [--draws 4] [--out result.json]
    python benchmarks/predictions/run.py --name epsilon-seed-1 --model DIR --truth DIR/truth_text.parquet
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from diffmem.bench.planted import NEGATIVES, SCORES, caption_groups, rows_of, scored, sides
from diffmem.evaluation.paired import compare_paired
from diffmem.evaluation.roc import auroc
from diffmem.models.target import Target
from diffmem.randomness import noise_bank
from diffmem.runs.provenance import provenance
from diffmem.scores.prompt.needs import NoiseRatio, SamplerStep
from diffmem.scores.spec import parse_score
from diffmem.testbeds import digits
from diffmem.testbeds.digits.shipped import variant

LOW, FIRST = "score-difference:over=ratio", "score-difference"
RATIOS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4)
GRID = {"norm": "score-difference:over=ratio,ratio={}", "cosine": "alignment:ratio={}"}
RIVALS = (FIRST, "alignment", "anisotropy")
RESULT = Path(__file__).with_name("result.json")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of a model that does not ship")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--runs", type=Path, help="folder that keeps the rows, so that a second call only adds")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.model is not None:
        models = {options.name or options.model.name: (options.model, options.truth)}
    else:
        models = {
            prediction: (path, path.with_name(f"truth_{variant('text', prediction)}.parquet"))
            for prediction in ("epsilon", "v", "flow")
            for path in [digits.model_path("text", prediction)]
        }
    report = json.loads(options.out.read_text()) if options.out.exists() else {"models": {}}
    truths = {}
    for name, (model, file) in models.items():
        truths[name] = pq.read_table(file).to_pylist()
        facts = {k.decode(): v.decode() for k, v in pq.read_schema(file).metadata.items() if k != b"ARROW:schema"}
        entry, values = measured(name, model, truths[name], options)
        report["models"][name] = {"truth": facts | {"labels": labels(truths[name])}, **entry}
        report["models"][name]["_values"] = values
        print(name, "done", flush=True)
    if len(models) > 1:
        report["common_captions"] = common(truths, {n: report["models"][n]["_values"] for n in models})
    for entry in report["models"].values():
        entry.pop("_values", None)
    report |= {"draws": options.draws, "seed": options.seed, "provenance": provenance().model_dump()}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    draw_figure(report["models"], options.out.with_suffix(".png"))


def labels(truth):
    """Captions by tier, count in training and label."""
    counts = Counter((row["tier"], row["count"], row["label"]) for row in truth)
    return [{"tier": t, "count": c, "label": label, "captions": n} for (t, c, label), n in sorted(counts.items())]


def measured(name, model, truth, options):
    """The entry of one model, and the values {score: {caption id: [draws]}} of the scores that are compared."""
    result = scored(
        model, truth, "testbed:digits", SCORES, options.draws, options.seed, True, kept(options, name, "scores")
    )
    values = {spec: result.values(parse_score(spec).label) for spec in (LOW, *RIVALS)}
    schedule = Target.from_pretrained(model).denoiser.schedule
    where = {
        name: at(schedule, m.resolve(schedule)) for name, m in (("t_hi", SamplerStep(0)), ("t_lo", NoiseRatio(0.2)))
    }
    entry = {
        "where": where,
        "rows": rows_of(truth, result, options.seed),
        "low_noise_norm_against": paired(truth, values),
        "steering_at_t_lo": steering(model, truth, options),
        "levels": levels(name, model, truth, schedule, options),
    }
    return entry, values


def kept(options, *names):
    return None if options.runs is None else options.runs.joinpath(*names)


def at(schedule, t):
    alpha, sigma = schedule.at(t)
    return {"t": round(t, 2), "alpha": round(alpha, 5), "sigma_over_alpha": round(sigma / alpha, 4)}


def levels(name, model, truth, schedule, options):
    """AUROC of norm and cosine on pure noise fed along a grid of sigma/alpha."""
    grid = [(r, what, spec.format(r)) for r in RATIOS for what, spec in GRID.items()]
    specs = [spec for *_, spec in grid]
    result = scored(
        model, truth, "testbed:digits", specs, options.draws, options.seed, True, kept(options, name, "levels")
    )
    means = {}
    table = result.run.store.read("scores", ["prompt_id", "score", "value", "status"]).to_pylist()
    for row in table:
        if row["status"] == "ok":
            means.setdefault(row["score"], {}).setdefault(row["prompt_id"], []).append(row["value"])
    found = {ratio: {"ratio": ratio, **at(schedule, schedule.time_at_ratio(ratio))} for ratio in RATIOS}
    for ratio, what, spec in grid:
        values = means[parse_score(spec).label]
        for tier in NEGATIVES:
            p, n = (np.array([np.mean(values[i]) for i in ids]) for ids in sides(truth, tier))
            found[ratio][f"{what}_{tier}"] = round(auroc(p, n), 4)
        if what == "norm":
            for side, ids in zip(("reproduced", "others"), sides(truth, "all"), strict=True):
                found[ratio][f"median_norm_{side}"] = float(np.median([np.mean(values[i]) for i in ids]))
    return list(found.values())


def steering(model, truth, options):
    """What the prompt adds to pure noise at t_lo, in epsilon: medians over captions of its size and direction.

    size: ||delta||; to_noise: cos(delta, x); to_unconditional: cos(delta, eps_u), which is the alignment; across: the same
    with the part of eps_u along x taken out.
    """
    denoiser = Target.from_pretrained(model).denoiser
    t = denoiser.schedule.time_at_ratio(0.2)
    noises = noise_bank(options.seed, range(options.draws), denoiser.sample_shape)
    rows = []
    with torch.no_grad():
        cond = denoiser.encode_prompts([row["caption"] for row in truth])
        for x in noises:
            u = denoiser.predict(x[None], t, denoiser.null(), "epsilon").flatten(1)
            batches = [cond.select(range(i, min(i + 64, len(truth)))) for i in range(0, len(truth), 64)]
            outputs = [denoiser.predict(x.expand(len(b), -1, -1, -1), t, b, "epsilon").flatten(1) for b in batches]
            delta, noise = torch.cat(outputs) - u, x.flatten()[None]
            across = u - (u @ noise.T) / (noise @ noise.T) * noise
            cosines = [torch.nn.functional.cosine_similarity(v, delta) for v in (noise, u, across)]
            rows.append(torch.stack([delta.norm(dim=1), *cosines], 1))
    means = torch.stack(rows).mean(0).numpy()
    number = {row["id"]: i for i, row in enumerate(truth)}
    found = {"reproduced": sides(truth, "all")[0]} | {tier: sides(truth, tier)[1] for tier in NEGATIVES[:-1]}
    names = ("size", "to_noise", "to_unconditional", "across")
    return {
        side: {n: round(float(v), 4) for n, v in zip(names, np.median(means[[number[i] for i in ids]], 0), strict=True)}
        for side, ids in found.items()
    }


def paired(truth, values):
    """The low-noise norm minus each rival, AUROC, same captions and noises, clusters of near-duplicates resampled."""
    groups = caption_groups(truth)
    rows = []
    for rival in RIVALS:
        for tier in NEGATIVES:
            positives, negatives = sides(truth, tier)
            ids = positives + negatives
            outcome = compare_paired(
                np.stack([values[LOW][i] for i in ids]), np.stack([values[rival][i] for i in ids]),
                np.r_[np.ones(len(positives), bool), np.zeros(len(negatives), bool)], [groups[i] for i in ids],
            )  # fmt: skip
            keep = ("first", "second", "difference", "low", "high", "p_value")
            rows.append({"rival": rival, "negatives": tier, **{key: getattr(outcome, key) for key in keep}})
    return rows


def common(truths, values):
    """AUROC on the captions on which all models agree: what differs there is the model's output, not its truth."""
    verdicts = [{row["id"]: row["label"] for row in truth} for truth in truths.values()]
    first = next(iter(truths.values()))
    agreed = [row for row in first if len({verdict[row["id"]] for verdict in verdicts}) == 1]
    found = []
    for name in truths:
        for score in (FIRST, LOW, "alignment", "anisotropy"):
            row = {"model": name, "score": score}
            for tier in NEGATIVES:
                both = sides(agreed, tier)
                p, n = (np.array([values[name][score][i].mean() for i in ids]) for ids in both)
                row |= {f"n_{tier}": len(n), tier: round(auroc(p, n), 4)}
            found.append(row | {"n_positives": len(p)})
    return found


def draw_figure(models, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tiers = ("generic", "hard", "unseen")
    colours = ("#b5460f", "#1f6aa5", "#3c8a3c", "#7a5aa6")
    figure, axes = plt.subplots(2, len(tiers), figsize=(11, 6), sharey=True, sharex=True)
    for row, what in zip(axes, GRID, strict=True):
        for axis, tier in zip(row, tiers, strict=True):
            for (name, entry), colour in zip(models.items(), colours, strict=False):
                x = [level["sigma_over_alpha"] for level in entry["levels"]]
                axis.semilogx(x, [level[f"{what}_{tier}"] for level in entry["levels"]], color=colour, label=name)
            axis.axhline(0.5, color="grey", linewidth=0.7)
            axis.axvline(0.2, color="grey", linewidth=0.7, linestyle=":")
            axis.set_title(f"{what}: reproduced against {tier}", fontsize=10)
    for axis in axes[1]:
        axis.set_xlabel("sigma / alpha (noise →)")
    for row in axes:
        row[0].set_ylabel("AUROC")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
