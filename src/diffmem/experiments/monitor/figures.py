"""What a checkpoint's measurements say: the gap, what stands out, copies against chance, each at the error it may spend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffmem.copies.precision_recall import NEAREST, precision_recall
from diffmem.evaluation.bootstrap import auroc_interval
from diffmem.evaluation.chance import Chance, fewest_calls, independent_events, most_not_excluded, p_value
from diffmem.evaluation.chance import share_interval as effective_share
from diffmem.evaluation.estimate import Bootstrap
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.evaluation.watching import detectable_share, relative_gap, stand_out
from diffmem.experiments._table import ArmTable
from diffmem.stages.measure.pixels import HELD_OUT

NAMED = 12
"""Images that stand out, named in the summary."""


@dataclass(frozen=True)
class Judging:
    """What generated images of a checkpoint are judged by.

    Attributes:
        threshold: the fact of the calibrated threshold, None where nothing was matched.
        margins: of each image of the table, [n]: statistic minus threshold; 0 or more is a copy.
        heldout: descriptors of held-out images for quality [m, D], or None.
        metric: of these.
    """

    threshold: Mapping[str, Any] | None
    margins: np.ndarray
    heldout: np.ndarray | None
    metric: Any


def of_losses(look: Mapping[str, Any], base: Mapping[str, Any] | None, level: float) -> dict[str, Any]:
    """Columns on the losses: per time the gap with its interval, over all times which images stand out.

    Args:
        look: the fact of the checkpoint.
        base: that of the base (step 0), whose losses of the same images and noises are taken off; None without one.
        level: that this look may spend.
    """
    row: dict[str, Any] = {
        "gaps": [],
        "standing": None,
        "standing_p": None,
        "standing_needed": None,
        "standing_ids": [],
    }
    falls: dict[str, list[float]] = {}
    for time, values in look["losses"].items():
        before = {} if base is None else base["losses"].get(time, {})
        own = {name: value - before.get(name, 0.0) for name, value in values.items() if base is None or name in before}
        train, held = _sides(own)
        if not train or not held:
            row["gaps"].append({"time": float(time), "gap": None, "low": None, "high": None})
            continue
        gap, low, high = relative_gap(list(train.values()), list(held.values()))
        row["gaps"].append({"time": float(time), "gap": gap, "low": low, "high": high})
        for name, value in own.items():
            falls.setdefault(name, []).append(-value)
    whole = {name: float(np.mean(values)) for name, values in falls.items() if len(values) == len(look["losses"])}
    train, held = _sides(whole)
    if train and held:
        found = stand_out(list(train.values()), list(held.values()), level)
        names = [name for name, out in zip(train, found.which, strict=True) if out]
        names.sort(key=lambda name: -train[name])
        row |= {
            "standing": len(names), "standing_of": len(train), "standing_p": found.p, "standing_needed": found.needed,
            "standing_ids": names[:NAMED],
        }  # fmt: skip
    return row


def of_scores(look: Mapping[str, Any]) -> dict[str, Any]:
    """AUROC of training against held-out images per membership score, and of captions' norms against reference captions."""
    found = []
    for label, values in look["scores"].items():
        train, held = _sides(values)
        found.append({"score": label, **_auroc(list(train.values()), list(held.values()))})
    own = [value for name, value in look["norms"].items() if not name.startswith("reference/")]
    others = [value for name, value in look["norms"].items() if name.startswith("reference/")]
    norm = {"score": "low-noise norm", **_auroc(own, others)} if own and others else None
    return {"membership": found, "norm": norm, "norm_train": _mean(own), "norm_reference": _mean(others)}


def of_images(
    look: Mapping[str, Any], table: ArmTable, judging: Judging, level: float, prompts: Sequence[str]
) -> dict[str, Any]:
    """Columns on generated images: copies, the test against chance at this look's level, quality, alignment.

    Args:
        look: the fact of the checkpoint.
        table: its images.
        judging: threshold, margins and held-out images.
        level: that this look may spend.
        prompts: texts in the order of the arm.
    """
    columns = ("calls", "units", "unit_is", "calls_p", "calls_needed", "detectable", "not_excluded")
    row: dict[str, Any] = dict.fromkeys(columns)
    row |= {"images": int(table.made.sum()), "not_judged": int((~table.judged).sum()), "excess": False, "testable": None,
            "copied_images": int(table.copied.sum())}  # fmt: skip
    fixed = table.prompt < look["fixed"]
    row |= _share("copied", table.copied[fixed & table.judged], table.prompt[fixed & table.judged])
    row |= _quality(table, judging, fixed)
    row["alignment"] = _mean([value for value in table.aligned[fixed].tolist() if not math.isnan(value)])
    judged = np.flatnonzero(table.judged)
    if judging.threshold is None or not len(judged):
        return row | {"testable": "no image could be judged" if len(table) else "no images were made"}
    if not judging.threshold["calibrated"]:
        return row | {"testable": "the threshold of a copy is not calibrated: give held-out images (--heldout)"}
    groups = np.unique([str(group) for group in table.group], return_inverse=True)[1]
    if look["by_prompt"]:
        clusters = np.asarray(near_duplicate_groups(list(prompts)))[table.prompt]
        units = len(np.unique(clusters[judged]))
    else:
        clusters, units = np.full(len(table), -1), len(judged)
    called = np.flatnonzero(table.copied & table.judged)
    calls = min(units, independent_events(clusters[called], groups[called]))
    chance = Chance.of_threshold(judging.threshold, look["draws"] if look["by_prompt"] else 1)
    if chance is None:
        return row | {"testable": "too few references state the rate of the threshold of a copy"}
    needed = fewest_calls(units, chance, level)
    row |= {
        "calls": calls, "units": units, "unit_is": "prompts" if look["by_prompt"] else "images",
        "calls_p": p_value(calls, units, chance), "calls_needed": needed,
        "detectable": detectable_share(units, chance, level), "not_excluded": most_not_excluded(calls, units),
    }  # fmt: skip
    if needed > units:
        return row | {
            "testable": f"{units} {row['unit_is']} are too few: no number of copies could be told from chance"
        }
    return row | {"excess": bool(row["calls_p"] <= level)}


def of_margins(table: ArmTable, judging: Judging, look: Mapping[str, Any]) -> dict[str, float | None]:
    """Margin of each fixed image by "prompt/draw"; None where it was not judged."""
    return {
        f"{prompt}/{draw}": None if math.isnan(margin) else float(margin)
        for prompt, draw, margin in zip(
            table.prompt.tolist(), table.draw.tolist(), judging.margins.tolist(), strict=True
        )
        if prompt < look["fixed"]
    }


def _sides(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    held = {name: value for name, value in values.items() if name.startswith(HELD_OUT)}
    return {name: value for name, value in values.items() if name not in held}, held


def _auroc(positives: Sequence[float], negatives: Sequence[float]) -> dict[str, Any]:
    if not positives or not negatives:
        return {"auroc": None, "low": None, "high": None}
    labels = np.array([True] * len(positives) + [False] * len(negatives))
    found = auroc_interval([*positives, *negatives], labels)
    return {"auroc": found.value, "low": found.low, "high": found.high}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _share(name: str, hits: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    if not len(hits):
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    found = Bootstrap(len(hits), groups).share(hits)
    low, high = (
        (found.low, found.high) if found.low is not None else effective_share(float(hits.sum()), float(len(hits)))
    )
    return {name: found.value, f"{name}_low": low, f"{name}_high": high}


def _quality(table: ArmTable, judging: Judging, fixed: np.ndarray) -> dict[str, Any]:
    """Precision of the fixed images against held-out ones: a model that has learned nothing yet has little."""
    empty = {"quality": None, "quality_low": None, "quality_high": None}
    sound = np.flatnonzero(fixed & table.judged)
    if judging.heldout is None or min(len(sound), len(judging.heldout)) <= NEAREST or not table.vectors.shape[1]:
        return empty
    found = precision_recall(
        np.asarray(table.vectors[sound], np.float64), judging.heldout, judging.metric, groups=table.prompt[sound]
    ).precision
    return {"quality": found.value, "quality_low": found.low, "quality_high": found.high}
