"""Where on the noise scale do norm and cosine tell memorized prompts from others? (Asthana & Belagiannis 2026)

On the digits testbed: AUROC of the norm ||delta|| and of the cosine cos(eps_u, delta), each on the same pure noises fed at
every time of a 25-step sampler, for captions measured as reproduced against each tier of the others.

    python benchmarks/regimes/run.py [--draws 2] [--steps 25] [--out result.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from diffmem.evaluation.roc import auroc
from diffmem.models.target import Target
from diffmem.randomness import noise_bank
from diffmem.runs.provenance import provenance
from diffmem.scores.prompt.alignment import alignment
from diffmem.scores.prompt.score_difference import score_difference
from diffmem.testbeds import digits

TIERS = ("generic", "hard", "unseen")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = Target.from_pretrained(digits.model_path("text")).denoiser
    truth = [row for row in digits.truth("text") if row["label"] != "sometimes"]
    positive = np.array([row["label"] == "reproduced" for row in truth])
    tiers = np.array([row["tier"] for row in truth])
    bank = noise_bank(0, range(options.draws), denoiser.sample_shape)
    rows = []
    with torch.no_grad():
        cond = denoiser.encode_prompts([row["caption"] for row in truth])
        for t in denoiser.schedule.sampling_times(options.steps):
            norms, cosines = np.zeros((options.draws, len(truth))), np.zeros((options.draws, len(truth)))
            for draw in range(options.draws):
                u = denoiser.predict(bank[draw : draw + 1], t, denoiser.null())
                for start in range(0, len(truth), 64):
                    part = cond.select(range(start, min(start + 64, len(truth))))
                    x = bank[draw : draw + 1].expand(len(part), -1, -1, -1)
                    c = denoiser.predict(x, t, part)
                    norms[draw, start : start + len(part)] = score_difference(c, u.expand_as(c))
                    cosines[draw, start : start + len(part)] = alignment(u.expand_as(c), c - u, "elements")
            alpha, sigma = denoiser.schedule.at(t)
            row = {"t": t, "sigma_over_alpha": round(sigma / alpha, 4)}
            for tier in TIERS:
                others = ~positive & (tiers == tier)
                row[f"norm_{tier}"] = round(auroc(norms.mean(0)[positive], norms.mean(0)[others]), 4)
                row[f"cosine_{tier}"] = round(auroc(cosines.mean(0)[positive], cosines.mean(0)[others]), 4)
            rows.append(row)
            print(row, flush=True)
    report = {"rows": rows, "draws": options.draws, "seed": 0, "provenance": provenance().model_dump()}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    draw_figure(rows, options.out.with_suffix(".png"))


def draw_figure(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TIERS), figsize=(11, 3.4), sharey=True)
    ratio = [row["sigma_over_alpha"] for row in rows]
    for axis, tier in zip(axes, TIERS, strict=True):
        axis.semilogx(ratio, [row[f"norm_{tier}"] for row in rows], color="#b5460f", label="norm")
        axis.semilogx(ratio, [row[f"cosine_{tier}"] for row in rows], color="#1f6aa5", linestyle="--", label="cosine")
        axis.axhline(0.5, color="grey", linewidth=0.7)
        axis.axvline(0.2, color="grey", linewidth=0.7, linestyle=":")
        axis.set_title(f"reproduced against {tier}", fontsize=10)
        axis.set_xlabel("sigma / alpha (noise →)")
    axes[0].set_ylabel("AUROC")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
