"""Every prompt score on every planted model at hand, same noises, against each model's own measured truth.

The models that ship (digits in epsilon, v and flow; photos) and those that `makes.py` has trained into --folder. Each
model is one entry of result.json, kept while others are added. `default`: which single score or pair of norms would have
been chosen without a model, and what it then gives on that model, in its worst tier of negatives.

    python benchmarks/detectors/run.py --folder DIR [--only NAME ...] [--draws 2]
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from diffmem.bench.planted import NEGATIVES, caption_groups, rows_of, scored, sides
from diffmem.evaluation.roc import auroc
from diffmem.models.target import Target
from diffmem.runs.provenance import provenance
from diffmem.scores import DEFAULT_SCORE
from diffmem.scores.spec import parse_score, parse_scores
from diffmem.stages.score.rows import Scoring, planned_nfe
from diffmem.testbeds import digits, photos
from diffmem.testbeds.digits.shipped import variant

RESULT = Path(__file__).with_name("result.json")
LEVELS = {f"norm {r}": f"score-difference:over=ratio,ratio={r}" for r in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 12.8)}
LEVELS["norm 0.2"] = DEFAULT_SCORE
LEVELS["norm first"] = "score-difference"
SCORES = (
    *LEVELS.values(), "score-difference:over=steps,steps=10,k=3", "score-difference:over=trajectory,steps=10", "alignment",
    "anisotropy", "anisotropy-paper", "sharpness", "sharpness:at=ratio", "bright-ending:steps=10", "curvature-gap",
    "attention-entropy", "score-evolution:steps=10", "flipd:stop=-2,steps=10", "text-uppercase", "text-ngram",
)  # fmt: skip
TIERS = NEGATIVES[:-1]


def models(folder: Path | None) -> dict[str, tuple[Path, list[dict]]]:
    """Name -> (pipeline folder, truth)."""
    found = {}
    for prediction in ("epsilon", "v", "flow"):
        path = digits.model_path("text", prediction)
        truth = pq.read_table(path.with_name(f"truth_{variant('text', prediction)}.parquet")).to_pylist()
        found[f"digits {prediction}"] = (path, truth)
    found["photos epsilon"] = (photos.model_path(), photos.truth())
    for file in sorted(folder.glob("*.parquet")) if folder else ():
        found[file.stem] = (file.with_suffix(""), pq.read_table(file).to_pylist())
    return found


def measured(name: str, model: Path, truth: list[dict], draws: int, runs: Path | None) -> dict:
    """The entry of one model: rows per score and tier, and the worst tier of every candidate for the default."""
    started = time.perf_counter()
    result = scored(model, truth, name, SCORES, draws, 0, True, None if runs is None else runs / name)
    means = {spec: {i: v.mean() for i, v in result.values(parse_score(spec).label).items()} for spec in SCORES}
    levels = {short: means[spec] for short, spec in LEVELS.items()}
    candidates = levels | {
        f"{a} * {b}": {i: np.log(levels[a][i]) + np.log(levels[b][i]) for i in levels[a]}
        for a, b in itertools.combinations(levels, 2)
    }
    candidates |= {f"{a} / norm first": {i: np.log(v[i]) - np.log(levels["norm first"][i]) for i in v}
                   for a, v in levels.items() if a != "norm first"}  # fmt: skip
    candidates |= {spec: means[spec] for spec in SCORES if spec not in LEVELS.values() and means[spec]}
    return {
        "rows": rows_of(truth, result), "refused": result.refused, "seconds": round(time.perf_counter() - started, 1),
        "nfe_together": planned_nfe(
            parse_scores(SCORES), Target.from_pretrained(model).denoiser, len(truth), Scoring(draws=draws)
        ) / (draws * len(truth)),
        "nfe_each_alone": sum(result.nfe_per_prompt_seed.get(parse_score(s).label, 0.0) for s in SCORES),
        "candidates": {what: areas(truth, values) for what, values in candidates.items()},
        "paired": paired(truth, means),
    }  # fmt: skip


def areas(truth: list[dict], values: dict[str, float]) -> dict[str, float]:
    """AUROC per tier."""
    both = {tier: [np.array([values[i] for i in ids if i in values]) for ids in sides(truth, tier)] for tier in TIERS}
    return {tier: round(auroc(p, n), 4) for tier, (p, n) in both.items() if len(p) and len(n)}


def paired(truth: list[dict], means: dict[str, dict[str, float]], seed: int = 0, rounds: int = 400) -> dict[str, dict]:
    """AUROC of each score minus the default's, all negatives, with a 95 % bootstrap interval over near-duplicate groups."""
    groups = caption_groups(truth)
    random = np.random.default_rng(seed)
    ids = [i for side in sides(truth, "all") for i in side]
    label = np.array([True] * len(sides(truth, "all")[0]) + [False] * (len(ids) - len(sides(truth, "all")[0])))
    members = [np.flatnonzero([groups[i] == g for i in ids]) for g in dict.fromkeys(groups[i] for i in ids)]
    draws = [
        np.concatenate([members[k] for k in random.integers(0, len(members), len(members))]) for _ in range(rounds)
    ]
    draws = [rows for rows in draws if label[rows].any() and not label[rows].all()]
    found = {}
    ours = np.array([means[DEFAULT_SCORE].get(i, np.nan) for i in ids])
    for spec, values in means.items():
        theirs = np.array([values.get(i, np.nan) for i in ids])
        if spec == DEFAULT_SCORE or np.isnan(theirs).any():
            continue

        def gap(rows, theirs=theirs):
            up = label[rows]
            return auroc(theirs[rows][up], theirs[rows][~up]) - auroc(ours[rows][up], ours[rows][~up])

        low, high = np.quantile([gap(rows) for rows in draws], [0.025, 0.975])
        found[spec] = {"difference": round(gap(np.arange(len(ids))), 4), "low": round(low, 4), "high": round(high, 4)}
    return found


def chosen_without(entries: dict[str, dict]) -> dict[str, dict]:
    """Per left-out model: the candidate whose worst tier over the other models is best, and its worst tier on this one."""
    worst = {
        name: {what: min(tiers.values()) for what, tiers in e["candidates"].items()} for name, e in entries.items()
    }
    common = sorted(set.intersection(*(set(w) for w in worst.values())))
    default, before = "norm 0.2", "anisotropy"
    found = {}
    for name in worst:
        others = [w for other, w in worst.items() if other != name]
        floor = {what: min(w[what] for w in others) for what in common}
        best = max(floor, key=floor.__getitem__)
        found[name] = {
            "chosen": best, "floor_on_others": floor[best], "worst_tier_here": worst[name][best],
            "default_worst_tier": worst[name][default], "before_worst_tier": worst[name][before],
            "best_single_here": max(worst[name].values()),
        }  # fmt: skip
    floor = {what: min(w[what] for w in worst.values()) for what in common}
    found["all"] = {"floors": dict(sorted(floor.items(), key=lambda item: -item[1]))}
    return found


def page(report: dict) -> str:
    """The tables of docs/detectors.md, Markdown: AUROC in the worst tier and TPR at 1 % per score and model."""
    entries = report["models"]
    costs, cells = {}, {}
    for name, entry in entries.items():
        for row in entry["rows"]:
            costs.setdefault(row["score"], row["nfe_per_prompt_seed"])
            if row["auroc"] is not None:
                cells.setdefault((row["score"], name), {})[row["negatives"]] = row
    worst = {
        key: min((t for t in tiers if t != "all"), key=lambda t: tiers[t]["auroc"]) for key, tiers in cells.items()
    }
    floor = {s: min(cells[s, n][worst[s, n]]["auroc"] for n in entries if (s, n) in cells) for s in costs}
    lines = [f"| score | NFE | {' | '.join(entries)} | worst |", "|---" * (len(entries) + 3) + "|"]
    for score in sorted(costs, key=lambda s: -floor[s]):
        values = []
        for name in entries:
            if (score, name) not in cells:
                values.append("refused")
                continue
            row, all_of = cells[score, name][worst[score, name]], cells[score, name]["all"]
            interval = f" ({said(row['auroc_low'])}-{said(row['auroc_high'])})" if row["auroc_low"] is not None else ""
            values.append(f"{said(row['auroc'])}{interval}; {said(all_of['tpr_at_1fpr'], 2)}")
        lines.append(f"| `{score}` | {costs[score]:.0f} | {' | '.join(values)} | {said(floor[score])} |")
    lines += [
        "",
        "| left out | chosen on the others | its worst tier here | the default's | `anisotropy`'s | best of all here |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in report["default"].items():
        if name != "all":
            figures = ("worst_tier_here", "default_worst_tier", "before_worst_tier", "best_single_here")
            lines.append(f"| {name} | {found['chosen']} | {' | '.join(said(found[f]) for f in figures)} |")
    return "\n".join(lines)


def said(value: float | None, digits: int = 3) -> str:
    """A share without the zero before the point."""
    return "–" if value is None else f"{value:.{digits}f}".replace("0.", ".", 1) if value < 1 else f"{value:.{digits}f}"


def main() -> None:
    """Measure what is not measured yet and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where makes.py has written its models")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--runs", type=Path, help="where rows are kept, so that a call that was stopped goes on")
    parser.add_argument("--page", action="store_true", help="print the tables of docs/detectors.md and stop")
    options = parser.parse_args()
    report = json.loads(options.out.read_text()) if options.out.exists() else {"models": {}}
    if options.page:
        print(page(report))
        return
    # the makes first: they are smaller
    for name, (model, truth) in reversed(models(options.folder).items()):
        if name in report["models"] or (options.only and name not in options.only):
            continue
        report["models"][name] = measured(name, model, truth, options.draws, options.runs)
        print(name, report["models"][name]["seconds"], "s", flush=True)
        write(report, options)
    write(report, options)


def write(report: dict, options: argparse.Namespace) -> None:
    """The file, with the choice of the default over all models in it."""
    report |= {"draws": options.draws, "seed": 0, "provenance": provenance().model_dump()}
    report["default"] = chosen_without(report["models"]) if len(report["models"]) > 1 else {}
    options.out.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
