"""How well a run's scores find what is memorized: on given or measured labels, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffmem.errors import DataError
from diffmem.evaluation.bootstrap import auroc_interval, tpr_interval
from diffmem.evaluation.roc import tpr_at_fpr
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.experiments._run import Run, folder_of
from diffmem.experiments.evaluate.labels import given_labels, measured_labels
from diffmem.renamed import renamed
from diffmem.runs.manifest import read_manifest
from diffmem.runs.store import RunStore

Labels = Literal["given", "measured"]


@dataclass(frozen=True)
class RunScores:
    """A run's prompts and values, read from its directory.

    Attributes:
        prompts: id -> row of the prompts stage.
        values: score label -> prompt id -> values per draw.
    """

    prompts: dict[str, dict[str, Any]]
    values: dict[str, dict[str, np.ndarray]]


def read_scores(run: Run | str | Path) -> RunScores:
    """All values of a run, per draw; rows with errors are absent."""
    folder = folder_of(run)
    read_manifest(folder)
    store = RunStore(folder)
    prompts = {row["prompt_id"]: row for row in store.read("prompts").to_pylist()}
    found: dict[str, dict[str, dict[int, float] | list[float]]] = {}
    for table in store.stream("scores", ["prompt_id", "score", "draw", "value", "components", "status"]):
        for row in table.to_pylist():
            if row["status"] != "ok":
                continue
            by_prompt = found.setdefault(row["score"], {})
            if row["draw"] is None:
                by_prompt[row["prompt_id"]] = json.loads(row["components"] or "{}").get("per_draw", [row["value"]])
            else:
                draws = by_prompt.setdefault(row["prompt_id"], {})
                assert isinstance(draws, dict)
                draws[row["draw"]] = row["value"]
    values = {label: {p: _array(draws) for p, draws in by_prompt.items()} for label, by_prompt in found.items()}
    return RunScores(prompts, values)


def labels_of(folder: Path, prompts: Mapping[str, dict[str, Any]], how: Labels) -> dict[str, dict[str, Any]]:
    """Prompt id -> {"label", "tier", ...}, from the prompt list or from the run's own generations."""
    labels = measured_labels(folder) if how == "measured" else given_labels(prompts)
    if not any(entry["label"] is True for entry in labels.values()):
        hint = (
            "measure them (--labels measured), or name the list's column when it is read (audit --labels COLUMN)"
            if how == "given"
            else "give a list with labels (--labels given)"
        )
        raise DataError(f"No prompt of '{folder}' is labelled memorized, so nothing can be evaluated: {hint}.")
    return labels


@renamed(rate="fpr")
def evaluate(run: Run | str | Path, labels: Labels = "given", fpr: float = 0.01, seed: int = 0) -> list[dict[str, Any]]:
    """AUROC and TPR at a false-positive rate of every score, with cluster-aware 95 % intervals.

    Args:
        run: a run with scores, or its folder.
        labels: those of the prompt list, or measured on the run's own generations.
        fpr: false-positive rate.
        seed: of the resampling.

    Returns:
        Rows {"score", "negatives", "n_positives", "n_negatives", "auroc", "auroc_low", "auroc_high", "tpr", "tpr_low",
        "tpr_high", "nominal_fpr", "realised_fpr", "clusters", "n_eff", "reason"}; one per score for all negatives, and
        one for each tier of negatives where the prompt list names tiers (a column `tier` or `group`).

    Examples:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> from pathlib import Path
        >>> lines = ["prompt,memorized", "RED FOX,true", "OLD BARN,true", "a hen,false", "two ships at sea,false"]
        >>> _ = Path("prompts.csv").write_text(chr(10).join(lines))
        >>> prompts = dm.load_prompts("prompts.csv", labels="memorized")
        >>> scored = dm.score(network, prompts, "text-uppercase", out="runs/scored")
        >>> [(row["score"], row["auroc"]) for row in dm.evaluate("runs/scored")]
        [('text-uppercase', 1.0)]
    """
    scores = read_scores(run)
    known = labels_of(folder_of(run), scores.prompts, labels)
    groups = prompt_groups(scores.prompts)
    rows = []
    for score, values in scores.values.items():
        positives = [p for p in values if known.get(p, {}).get("label") is True]
        for tier, negatives in _tiers(
            scores.prompts, [p for p in values if known.get(p, {}).get("label") is False]
        ).items():
            rows.append({"score": score, "negatives": tier} | _row(values, positives, negatives, groups, fpr, seed))
    return rows


def _row(
    values: Mapping[str, np.ndarray],
    positives: Sequence[str],
    negatives: Sequence[str],
    groups: Mapping[str, int],
    fpr: float,
    seed: int,
) -> dict[str, Any]:
    counts = {"n_positives": len(positives), "n_negatives": len(negatives)}
    both = [*positives, *negatives]
    clusters = [len({groups[p] for p in part}) for part in (positives, negatives)]
    if min(clusters) < 2:
        return counts | {
            "auroc": None,
            "reason": f"{clusters[0]} and {clusters[1]} distinct prompts; two of each are needed",
        }
    matrix = np.stack([values[p] for p in both])
    truth = np.r_[np.ones(len(positives), bool), np.zeros(len(negatives), bool)]
    numbers = np.array([groups[p] for p in both])
    area = auroc_interval(matrix, truth, numbers, seed=seed)
    tpr = tpr_interval(matrix, truth, numbers, fpr, seed=seed)
    point = tpr_at_fpr(matrix[truth].mean(1), matrix[~truth].mean(1), fpr)
    return counts | {
        "auroc": area.value, "auroc_low": area.low, "auroc_high": area.high, "tpr": tpr.value, "tpr_low": tpr.low,
        "tpr_high": tpr.high, "nominal_fpr": fpr, "realised_fpr": point.realised_fpr if point.measurable else None,
        "clusters": area.clusters_positive + area.clusters_negative, "n_eff": area.n_eff, "reason": area.reason or tpr.reason,
    }  # fmt: skip


def _tiers(prompts: Mapping[str, dict[str, Any]], negatives: Sequence[str]) -> dict[str, list[str]]:
    tiers: dict[str, list[str]] = {"all": list(negatives)}
    for p in negatives:
        extra = json.loads(prompts[p]["extra"] or "{}")
        name = extra.get("tier") or prompts[p]["group"]
        if name is not None:
            tiers.setdefault(str(name), []).append(p)
    return tiers if len(tiers) <= 20 else {"all": tiers["all"]}


def prompt_groups(prompts: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Prompt id -> number of its group of near-duplicate texts."""
    numbers = near_duplicate_groups([row["text"] for row in prompts.values()])
    return {p: int(number) for p, number in zip(prompts, numbers, strict=True)}


def _array(draws: dict[int, float] | list[float]) -> np.ndarray:
    return np.array([draws[d] for d in sorted(draws)] if isinstance(draws, dict) else draws, np.float64)
