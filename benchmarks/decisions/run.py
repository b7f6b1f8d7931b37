"""Realised against nominal false-positive rate over random calibration/test splits, and what early exit saves.

The captions of the digits testbed that are measured as not reproduced are split at random, half to calibrate, half to
test; near-duplicate captions stay together. Every score is computed once.

    python benchmarks/decisions/run.py [--splits 20] [--draws 8] [--out result.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from diffmem.data.prompts import Prompt, PromptList
from diffmem.errors import UsageError
from diffmem.evaluation.calibration import Setting, calibrate_threshold
from diffmem.evaluation.sequential import calibrate_sequential
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.models.target import Target
from diffmem.runs.provenance import provenance
from diffmem.scores import DEFAULT_SCORE
from diffmem.stages.score.score import score
from diffmem.testbeds import digits

SCORES = (DEFAULT_SCORE, "score-difference", "alignment", "anisotropy-paper")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    truth = [row for row in digits.truth("text") if row["label"] != "sometimes"]
    prompts = PromptList(tuple(Prompt(row["id"], row["caption"]) for row in truth), "testbed:digits")
    result = score(Target.from_pretrained(digits.model_path("text")), prompts, SCORES, draws=options.draws)
    positive = np.array([row["label"] == "reproduced" for row in truth])
    tiers = np.array([row["tier"] for row in truth])
    groups = near_duplicate_groups([row["caption"] for row in truth])
    rows = []
    for label in SCORES:
        values = np.stack([result.values(label)[row["id"]] for row in truth])
        setting = Setting(score=label, version="1", draws=options.draws, noise="bank", model="digits")
        for rate in (0.01, 0.05):
            rows.append(study(values, positive, tiers, groups, setting, rate, options) | {"score": label})
            print(rows[-1], flush=True)
    report = {
        "rows": rows, "splits": options.splits, "draws": options.draws, "seed": options.seed,
        "negatives": int((~positive).sum()), "positives": int(positive.sum()), "provenance": provenance().model_dump(),
    }  # fmt: skip
    options.out.write_text(json.dumps(report, indent=1) + "\n")


def study(values, positive, tiers, groups, setting, rate, options):
    """Means and standard deviations over the splits."""
    negatives = np.flatnonzero(~positive)
    clusters = np.unique(groups[negatives])
    rates, powers, saved, saved_planted, early_rates, early_powers = [], [], [], [], [], []
    for split in range(options.splits):
        rng = np.random.default_rng([options.seed, split])
        chosen = set(rng.permutation(clusters)[: len(clusters) // 2].tolist())
        inside = np.array([groups[i] in chosen for i in negatives])
        reference, test = negatives[inside], negatives[~inside]
        threshold = calibrate_threshold(values[reference].mean(1), rate, setting, "half", "x", groups[reference])
        rates.append(threshold.flags(values[test].mean(1)).mean())
        powers.append(threshold.flags(values[positive].mean(1)).mean())
        try:
            rule = calibrate_sequential(values[reference], rate, 0.05, setting, "half", "x")
        except UsageError:
            continue
        decided, planted = rule.decide(values[test]), rule.decide(values[positive])
        early_rates.append(decided.flagged.mean())
        early_powers.append(planted.flagged.mean())
        saved.append(decided.saved)
        saved_planted.append(planted.saved)

    def mean(x):
        return round(float(np.mean(x)), 4) if x else None

    return {
        "nominal": rate, "realised": mean(rates), "realised_sd": round(float(np.std(rates, ddof=1)), 4),
        "found": mean(powers), "early_realised": mean(early_rates), "early_found": mean(early_powers),
        "early_saved_not_reproduced": mean(saved), "early_saved_reproduced": mean(saved_planted),
    }  # fmt: skip


if __name__ == "__main__":
    main()
