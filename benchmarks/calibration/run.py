"""Do the intervals cover, do the tests keep their level? Simulated studies with known truth.

    python benchmarks/calibration/run.py [--part coverage ...] [--replications 2000] [--out result.json]

Parts: few (95 % intervals of means, shares, paired differences and AUROC of 5 to 30 clusters), coverage (95 % intervals of
AUROC and of TPR at 1 % and 5 % FPR), comparison (type-I error of the paired test), thresholds (realised against nominal
FPR), discoveries (FDR of Benjamini-Hochberg), sequential (false alarms and saving of early exit). Parts that are run replace
their entry in the result, the others stay.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
from scipy.stats import norm

from diffmem.evaluation.bootstrap import auroc_interval, tpr_interval
from diffmem.evaluation.calibration import Setting, calibrate_threshold
from diffmem.evaluation.conformal import benjamini_hochberg, conformal_p_values
from diffmem.evaluation.estimate import Bootstrap
from diffmem.evaluation.paired import compare_paired, mean_difference
from diffmem.evaluation.sequential import calibrate_sequential
from diffmem.evaluation.simulation import Simulation
from diffmem.runs.provenance import provenance

PROMPTS, ICCS, DRAWS, AUROCS = (100, 500), (0.0, 0.3, 0.5), (1, 4), (0.75, 0.9, 0.98)
BOOTSTRAP = 400
SETTING = Setting(score="simulated", version="1", draws=1, noise="none", model="none")


def settings():
    for prompts, icc, draws, auroc in itertools.product(PROMPTS, ICCS, DRAWS, AUROCS):
        yield Simulation(prompts, auroc, icc, draws)


def named(simulation):
    return {"prompts_per_label": simulation.prompts, "icc": simulation.icc, "draws": simulation.draws,
            "auroc": simulation.auroc}  # fmt: skip


def coverage(replications):
    rows = []
    for simulation in settings():
        random = np.random.default_rng(1)
        inside, widths = [], []
        fewer = max(1, replications // 4)
        tails = {rate: [] for rate in (0.01, 0.05)}
        for i in range(replications):
            values, labels, groups = simulation.draw(random)
            found = auroc_interval(values, labels, groups, seed=i, replicates=BOOTSTRAP)
            inside.append(found.low <= simulation.auroc <= found.high)
            widths.append(found.high - found.low)
            if i < fewer:
                for rate, hits in tails.items():
                    tail = tpr_interval(values, labels, groups, rate, seed=i, replicates=BOOTSTRAP)
                    hits.append((tail.low <= simulation.tpr(rate) <= tail.high, tail.high - tail.low))
        row = {**named(simulation), "replications": replications, "auroc_coverage": np.mean(inside),
               "auroc_width": np.mean(widths), "tpr_replications": fewer}  # fmt: skip
        for rate, hits in tails.items():
            name = f"tpr_at_{round(100 * rate)}fpr"
            row |= {f"{name}_true": simulation.tpr(rate), f"{name}_coverage": np.mean([h for h, _ in hits]),
                    f"{name}_width": np.mean([w for _, w in hits])}  # fmt: skip
        rows.append(row)
        print({k: round(float(v), 4) for k, v in row.items()}, flush=True)
    return rows


def comparison(replications):
    rows = []
    for prompts, icc, draws, auroc in itertools.product(PROMPTS, (0.0, 0.4), DRAWS, (0.75, 0.95)):
        simulation = Simulation(prompts, auroc, icc, draws, scores=2)
        random = np.random.default_rng(2)
        p_values = {"auroc": [], "tpr": []}
        for i in range(replications):
            (first, second), labels, groups = simulation.draw(random)
            second = (first + second) / np.sqrt(2)  # correlated scores: the first, and a mixture with the second
            better = Simulation(prompts, auroc, icc, draws).separation * (np.sqrt(2) - 1)
            second -= better * labels[:, None]  # ... whose separation is brought back to the first's
            for statistic, found in p_values.items():
                result = compare_paired(first, second, labels, groups, statistic, 0.05, seed=i, replicates=BOOTSTRAP)
                found.append(result.p_value)
        row = {**named(simulation), "replications": replications}
        row |= {f"{name}_type1_at_5pct": np.mean(np.array(p) <= 0.05) for name, p in p_values.items()}
        rows.append(row)
        print({k: round(float(v), 4) for k, v in row.items()}, flush=True)
    return rows


def thresholds(replications):
    rows = []
    for reference, rate, icc in itertools.product((99, 400, 1000), (0.01, 0.05), (0.0, 0.4)):
        # Reference and new prompts share the noises, so both come from one draw; at AUROC .5 the labels mean nothing.
        simulation = Simulation(10_000, 0.5, icc)
        random, realised, covered = np.random.default_rng(3), [], []
        for _ in range(replications):
            values, labels, groups = simulation.draw(random)
            known, group, new = values[labels, 0][:reference], groups[labels][:reference], values[~labels, 0]
            made = calibrate_threshold(known, rate, SETTING, "simulated", "-", group, date="-")
            realised.append(np.mean(made.flags(new)))
            covered.append(made.realised_low <= realised[-1] <= made.realised_high)
        rows.append({"reference": reference, "nominal_fpr": rate, "icc": icc, "replications": replications,
                     "realised_fpr": np.mean(realised), "realised_sd": np.std(realised),
                     "interval_coverage": np.mean(covered)})  # fmt: skip
        print({k: round(float(v), 4) for k, v in rows[-1].items()}, flush=True)
    return rows


def discoveries(replications):
    rows = []
    for level, memorized in itertools.product((0.05, 0.1, 0.2), (0, 20, 100)):
        random, false, power = np.random.default_rng(4), [], []
        for _ in range(replications):
            scores = random.standard_normal(500) + 4.0 * (np.arange(500) < memorized)
            flagged = benjamini_hochberg(conformal_p_values(scores, random.standard_normal(1000)), level).flagged
            false.append(flagged[memorized:].sum() / max(1, flagged.sum()))
            power.append(flagged[:memorized].mean() if memorized else np.nan)
        rows.append({"level": level, "prompts": 500, "memorized": memorized, "reference": 1000,
                     "replications": replications, "fdr": np.mean(false),
                     "power": np.mean(power) if memorized else None})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def sequential(replications):
    """Reference and judged prompts are scored with the same noises, so they come from one draw of the simulation."""
    rows = []
    for reference, rate, draws in itertools.product((400, 1000), (0.01, 0.05), (4, 8)):
        random = np.random.default_rng(5)
        simulation = Simulation(reference + 500, 0.99, draws=draws, own_noise=1.0)
        found = []
        for i in range(replications):
            values, labels, _ = simulation.draw(random)
            negatives, positives = values[~labels], values[labels]
            known, judged = negatives[:reference], np.concatenate([negatives[reference:], positives[:100]])
            setting = SETTING.model_copy(update={"draws": draws})
            full = calibrate_threshold(known.mean(1), rate, setting, "simulated", "-", date="-").flags(judged.mean(1))
            rule = calibrate_sequential(known, rate, 0.05, setting, "simulated", "-", seed=i, date="-")
            decided = rule.decide(judged)
            flags = decided.flagged
            found.append((flags[:500].mean(), full[:500].mean(), flags[500:].mean(), full[500:].mean(),
                          (flags == full).mean(), decided.saved, 1 - decided.draws[:500].mean() / draws))  # fmt: skip
        names = ("false_alarms", "false_alarms_all_draws", "tpr", "tpr_all_draws", "agreement", "saved",
                 "saved_negatives")  # fmt: skip
        rows.append({"reference": reference, "nominal_fpr": rate, "draws": draws, "replications": len(found),
                     **dict(zip(names, np.mean(found, 0), strict=True))})  # fmt: skip
        print({k: round(float(v), 4) for k, v in rows[-1].items()}, flush=True)
    return rows


def few(replications):
    """Clusters of 1 to 8 items; a third of the variance lies between clusters."""
    rows = []
    for clusters, kind in itertools.product(
        (5, 8, 10, 15, 30), ("normal", "skewed", "share .3", "share .05", "paired")
    ):
        random, inside, widths, none = np.random.default_rng(6), [], [], 0
        for _ in range(replications):
            groups = np.repeat(np.arange(clusters), random.integers(1, 9, clusters))
            if kind == "skewed":
                values, truth = (
                    0.5 * (random.exponential(1, len(groups)) + random.exponential(1, clusters)[groups]),
                    1.0,
                )
            elif kind.startswith("share"):
                truth = float(kind.split()[1])
                values = random.random(len(groups)) < random.beta(3 * truth, 3 * (1 - truth), clusters)[groups]
            else:
                values = np.sqrt(0.3) * random.standard_normal(clusters)[groups]
                values, truth = values + np.sqrt(0.7) * random.standard_normal(len(groups)), 0.0
            if kind == "paired":
                _, low, high = mean_difference(values, np.zeros(len(groups)), groups)
            else:
                made = Bootstrap(len(groups), groups)
                found = made.share(values) if kind.startswith("share") else made.mean(values)
                low, high = found.low, found.high
            if low is None:
                none += 1
                continue
            inside.append(low <= truth <= high)
            widths.append(high - low)
        rows.append({"figure": kind, "clusters": clusters, "replications": replications, "coverage": np.mean(inside),
                     "width": np.mean(widths), "too_few_to_say": none})  # fmt: skip
        print(rows[-1], flush=True)
    for clusters, icc, auroc in itertools.product((5, 8, 15, 30), (0.0, 0.5), (0.75, 0.95)):
        random, inside, widths, none = np.random.default_rng(7), [], [], 0
        for i in range(max(1, replications // 2)):
            groups = np.repeat(np.arange(2 * clusters), random.integers(1, 9, 2 * clusters))
            labels = groups < clusters
            values = np.sqrt(icc) * random.standard_normal(2 * clusters)[groups] + norm.ppf(auroc) * np.sqrt(2) * labels
            values += np.sqrt(1 - icc) * random.standard_normal(len(groups))
            found = auroc_interval(values, labels, groups, seed=i, replicates=200)
            if found.low is None:
                none += 1
                continue
            inside.append(found.low <= auroc <= found.high)
            widths.append(found.high - found.low)
        rows.append({"figure": f"AUROC {auroc}", "icc": icc, "clusters": clusters, "replications": replications // 2,
                     "coverage": np.mean(inside), "width": np.mean(widths), "too_few_to_say": none})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


PARTS = {f.__name__: f for f in (few, thresholds, discoveries, sequential, comparison, coverage)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--replications", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    options = parser.parse_args()
    for part in options.part:
        began = time.monotonic()
        rows = PARTS[part](options.replications)
        result = json.loads(options.out.read_text()) if options.out.exists() else {}
        result[part] = {"rows": rows, "bootstrap_replicates": BOOTSTRAP, "seconds": time.monotonic() - began}
        result["provenance"] = provenance().model_dump()
        options.out.write_text(json.dumps(result, indent=1, default=lambda number: number.item()) + "\n")


if __name__ == "__main__":
    main()
