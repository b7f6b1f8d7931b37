"""The rows of a robustness run: shares of copies without and with a mitigation, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np

from diffmem.evaluation.clusters import Clusters, Floats
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.experiments._compare import compare
from diffmem.experiments.robustness.conditions import Condition

if TYPE_CHECKING:
    from diffmem.experiments.robustness.outcome import Outcome


def rows_of(
    prompts: Sequence[str],
    conditions: Sequence[Condition],
    before: Mapping[str, Outcome],
    after: Mapping[str, Outcome],
    method: str,
    worst_of: Sequence[int],
) -> list[dict[str, Any]]:
    """One row per condition; the seeds give one per number of seeds.

    Returns:
        {"method", "kind", "setting", "status", "reason", "n_prompts", "n_images", "not_judged", "copied_before",
        "copied_after", each with "_low" and "_high", "copied_change", "_low", "_high", "alignment_before", "alignment_after",
        "alignment_change", "_low", "_high", "nfe_per_image", "seconds_per_image"}. "copied" is the probability that a
        prompt's image is a copy; for the worst of N seeds, that one of N images is. Intervals at 95 % over prompts,
        near-duplicates counted once: `share_interval` for shares, resampled prompts for changes.
        Figures are None where the condition was refused; those of alignment, over all images, where it was not judged.
    """
    groups = near_duplicate_groups(list(prompts))
    rows: list[dict[str, Any]] = []
    for condition in conditions:
        one, two = before[condition.label], after[condition.label]
        for count in worst_of if condition.kind == "seeds" else (None,):
            setting = condition.setting if count is None else f"worst of {count}"
            row: dict[str, Any] = {"method": method, "kind": condition.kind, "setting": setting}
            # What the bare model refuses (a sampler that does not fit) is refused for its own reason.
            decisive = one if one.status == "refused" else two
            row |= {"status": decisive.status, "reason": decisive.reason, "n_prompts": len(prompts)}
            row |= {"n_images": sum(len(hits) for hits in one.hits), "not_judged": one.not_judged + two.not_judged}
            row |= {"nfe_per_image": two.nfe, "seconds_per_image": two.seconds}
            rows.append(row | _figures(one, two, 1 if count is None else count, groups) | _alignment(one, two, groups))
    return rows


def worst_of_share(hits: Sequence[bool], count: int) -> float:
    """Probability that at least one of `count` of these images, chosen at random, is a copy: 1 - C(m - h, N)/C(m, N).

    NaN where fewer than `count` images could be judged.
    """
    copies = sum(hits)
    if len(hits) < count:
        return float("nan")
    return 1 - comb(len(hits) - copies, count) / comb(len(hits), count)


def share_interval(values: Floats, groups: Any) -> tuple[float, float]:
    """95 % interval of a mean over prompts of shares [P] in [0, 1]: Clopper-Pearson, a share counting as part of a hit.

    The trials are prompts, near-duplicates counted once (Kish). Where every prompt is 0 or 1 that is the exact interval;
    else it errs on the wide side, for nothing on [0, 1] varies more than a 0 or 1 of the same mean. Resampling few
    prompts would give intervals without width near 0 and 1.
    """
    from scipy.stats import beta

    worth = max(1.0, Clusters.of(groups).effective)
    hits = float(values.mean()) * worth
    low = 0.0 if hits <= 0 else float(beta.ppf(0.025, hits, worth - hits + 1))
    high = 1.0 if hits >= worth else float(beta.ppf(0.975, hits + 1, worth - hits))
    return low, high


def _figures(before: Outcome, after: Outcome, count: int, groups: Any) -> dict[str, Any]:
    names = [f"copied_{what}{end}" for what in ("before", "after", "change") for end in ("", "_low", "_high")]
    shares = [np.array([worst_of_share(hits, count) for hits in one.hits]) for one in (before, after)]
    figures: dict[str, Any] = dict.fromkeys(names)
    for what, values in zip(("before", "after"), shares, strict=True):
        told = np.isfinite(values)
        if told.any():
            values = values[told]
            low, high = share_interval(values, np.asarray(groups)[told])
            figures |= {f"copied_{what}": float(values.mean()), f"copied_{what}_low": low, f"copied_{what}_high": high}
    if len(shares[0]) and len(shares[1]):
        change = compare(shares[0], shares[1], groups)
        figures |= {
            "copied_change": change.change, "copied_change_low": change.change_low,
            "copied_change_high": change.change_high,
        }  # fmt: skip
    return figures


def _alignment(before: Outcome, after: Outcome, groups: Any) -> dict[str, Any]:
    """Means over prompts, and the paired change over those whose words name something that the judge knows."""
    change = ("alignment_change", "alignment_change_low", "alignment_change_high")
    figures: dict[str, Any] = dict.fromkeys(("alignment_before", "alignment_after", *change))
    means = [
        np.array([np.mean(known) if (known := [v for v in mine if v is not None]) else np.nan for mine in one.aligned])
        for one in (before, after)
    ]
    for what, values in zip(("before", "after"), means, strict=True):
        if np.isfinite(values).any():
            figures[f"alignment_{what}"] = float(np.nanmean(values))
    if len(means[0]) and len(means[1]):
        found = compare(means[0], means[1], groups)
        figures |= dict(zip(change, (found.change, found.change_low, found.change_high), strict=True))
    return figures
