"""What a run says of measured images, from its rows and facts alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.report.measures.details import cap_of, detail_of, fitted_of
from diffmem.report.measures.groups import (
    FEWEST,
    Group,
    compare_sets,
    curves,
    drawn,
    edges_of,
    groups_of,
    number_of,
    separate,
    stats,
)  # fmt: skip
from diffmem.report.measures.shape import (
    MeasureCost,
    MeasuredImage,
    MeasureScore,
    MeasuresDigest,
    Pairing,
    ShiftFact,
)  # fmt: skip
from diffmem.report.prose import count, shorten
from diffmem.runs.facts import read_fact
from diffmem.runs.store import RunStore
from diffmem.scores.image import IMAGE_SCORES

SHOWN = 12
POINTS = 600
LONGEST = 300
"""Scores that ask whether an image was seen, which is not whether it is memorized."""
_TARGET = ("key", "image_id", "caption", "member", "group", "duplicates", "note", "status", "error")
_MEASURE = (
    "key", "image_id", "score", "value", "evidence", "error_bar", "components", "status", "error", "nfe",
    "nfe_forward", "nfe_tangent", "nfe_backward", "seconds", "dtype", "device",
)  # fmt: skip


def summarize_measures(folder: Path, shown: int = SHOWN) -> dict[str, Any]:
    """The measures of a run as plain values; empty lists where nothing was measured."""
    found = read_measures(folder, shown)
    return {} if found is None else found.model_dump(mode="json")


def read_measures(folder: Path, shown: int = SHOWN) -> MeasuresDigest | None:
    """The measures of a run; None if it has none.

    Args:
        folder: the run directory.
        shown: images at either end of a ranking; 0 for all of them at its top.
    """
    store = RunStore(folder)
    rows = store.read("measures", list(_MEASURE)).to_pylist()
    targets = _targets(store)
    if not rows and not targets:
        return None
    fact = read_fact(folder, "measured-model") or {}
    held = [row for row in targets.values() if is_held_out(row)]
    own = [row for row in targets.values() if not is_held_out(row)]
    member = {row["member"] for row in own if row["status"] == "ok"}
    trained = member.pop() if len(member) == 1 else None
    measured = "trained" if trained else "measured"
    strips = _strips(store)
    scores = tuple(
        _score(label, [row for row in rows if row["score"] == label], targets, measured, fact, strips, shown)
        for label in _in_order({row["score"] for row in rows}, fact)
    )
    form = {"L": "grey", "RGB": "RGB"}.get(fact.get("mode", ""), "")
    return MeasuresDigest(
        images=len(own), held_out=len(held), trained=trained,
        unusable=sum(row["status"] == "error" for row in targets.values()),
        converted=sum(row["status"] == "ok" and bool(row["note"]) for row in targets.values()),
        repeats=sum((row["duplicates"] or 1) - 1 for row in own),
        form=f"{fact['width']}×{fact['height']} {form}" if form else None,
        latent=fact.get("space") == "latent", uncaptioned=_uncaptioned(own, held, fact), scores=scores,
        pairings=tuple(_pairings(scores, rows)), shift=_shift(folder), headline=_headline(len(own), len(held), scores),
    )  # fmt: skip


def _uncaptioned(own: list[dict[str, Any]], held: list[dict[str, Any]], fact: dict[str, Any]) -> tuple[int, int]:
    """Images measured without a prompt although the run measures under captions: (measured, held out)."""
    if not (fact.get("conditional") and fact.get("condition") == "caption"):
        return 0, 0
    own_bare, held_bare = (
        sum(row["status"] == "ok" and row["caption"] is None for row in side) for side in (own, held)
    )
    return own_bare, held_bare


def _in_order(labels: set[str], fact: dict[str, Any]) -> list[str]:
    """Scores as they were asked for, those of membership last."""
    asked = [*fact.get("scores", {}), *sorted(labels)]
    return sorted(dict.fromkeys(label for label in asked if label in labels), key=is_membership)


def is_membership(label: str) -> bool:
    """Whether a score asks if an image was seen, rather than how strongly it is memorized."""
    name = label.partition(":")[0]
    return name in IMAGE_SCORES and IMAGE_SCORES.get(name).about.kind == "membership"


def is_held_out(row: dict[str, Any]) -> bool:
    """Whether a row of targets is one of the held-out images."""
    return row["member"] is False and row["image_id"].startswith("heldout/")


def _targets(store: RunStore) -> dict[str, dict[str, Any]]:
    """Image id -> its row; a usable one before one with an error."""
    rows = store.read("targets", list(_TARGET)).to_pylist()
    return {row["image_id"]: row for row in sorted(rows, key=lambda row: bool(row["status"] == "ok"))}


def _strips(store: RunStore) -> set[bytes]:
    """Keys of the measures that have a picture of their own; pictures are not held."""
    found: set[bytes] = set()
    for table in store.stream("measures", ["key", "png"]):
        valid = np.asarray(table["png"].is_valid())
        found.update(table["key"].filter(valid).to_pylist())
    return found


def _score(
    label: str, rows: list[dict[str, Any]], targets: dict[str, dict[str, Any]], measured: str, fact: dict[str, Any],
    strips: set[bytes], shown: int,
) -> MeasureScore:  # fmt: skip
    good = [row for row in rows if row["status"] == "ok" and row["image_id"] in targets]
    bad = sorted(
        (row for row in rows if row["status"] != "ok"),
        # What the measure says itself comes before files that no measure could read.
        key=lambda row: targets.get(row["image_id"], {}).get("status") != "ok",
    )
    value = np.array([row["value"] for row in good], np.float64)
    evidence = np.array([row["evidence"] for row in good], np.float64)
    images = [targets[row["image_id"]] for row in good]
    groups = groups_of(images, measured) if good else []
    edges = edges_of(evidence[np.isfinite(value)])
    parts = [json.loads(row["components"] or "{}") for row in good]
    order = [int(i) for i in np.argsort(-evidence, kind="stable")]
    about = fact.get("scores", {}).get(label, {})
    described = [
        MeasuredImage(
            rank=rank, image_id=good[i]["image_id"], value=number_of(good[i]["value"]), evidence=good[i]["evidence"],
            error_bar=good[i]["error_bar"], held_out=is_held_out(images[i]), group=images[i]["group"],
            duplicates=images[i]["duplicates"], caption=_short(images[i]["caption"]),
            detail=detail_of(parts[i]), fitted=_short(fitted_of(parts[i])),
            target_key=images[i]["key"].hex(), measure_key=good[i]["key"].hex(), strip=good[i]["key"] in strips,
        )
        for rank, i in enumerate(order, 1)
        if not shown or rank <= shown or rank > len(order) - shown
    ]  # fmt: skip
    half = len(described) if not shown else min(shown, -(-len(described) // 2))
    sets = [group for group in groups if group.kind == "set"]
    separations = _separations(groups, evidence, images)
    return MeasureScore(
        score=label, summary=about.get("summary", ""), unit=about.get("unit", "none"),
        high_means=about.get("high_means", "more memorized"), membership=is_membership(label),
        images=len(good), errors=len(bad), infinite=int(np.isinf(value).sum()),
        reason=_short(bad[0]["error"]) if bad else None, edges=tuple(map(float, edges)),
        groups=tuple(stats(group, value, evidence, edges) for group in groups), separations=tuple(separations),
        warning=_warning(sets, evidence), top=tuple(described[:half]), bottom=tuple(described[half:]),
        curves=curves(drawn(groups), parts, lambda part: part.get("curve")),
        spectra=curves(drawn(groups), parts, lambda part: part.get("spectrum")), cap=cap_of(parts), cost=_cost(rows),
    )  # fmt: skip


def _separations(groups: list[Group], evidence: Any, images: list[dict[str, Any]]) -> list[Any]:
    """The measured images against the held-out ones, and each class of repeats against images that occur once."""
    sets = [group for group in groups if group.kind == "set"]
    repeats = [group for group in groups if group.kind == "repeats"]
    found = [compare_sets(sets[0], sets[1], evidence, images)] if len(sets) == 2 else []
    once = repeats[0] if repeats and repeats[0].name == "once" else None
    if once is not None:
        found += [separate(group, once, evidence) for group in repeats[1:]]
        found += [compare_sets(once, sets[1], evidence, images)] if len(sets) == 2 else []
    return [one for one in found if one is not None]


def _warning(sets: list[Group], evidence: Any) -> str | None:
    if len(sets) < 2:
        return None
    own, held = evidence[sets[0].mask], evidence[sets[1].mask]
    if min(len(own), len(held)) < FEWEST or float(np.median(held)) < float(np.median(own)):
        return None
    return (
        f"Held-out images ({len(held)}) lie at or above the {sets[0].name} ones ({len(own)}) by the median of this "
        "measure: it does not tell that the model has seen an image, and a high value alone does not show memorization."
    )


def _cost(rows: list[dict[str, Any]]) -> MeasureCost | None:
    counted = [row for row in rows if row["nfe"] is not None and row["seconds"] is not None]
    if not counted:
        return None
    mean = {name: float(np.mean([row[name] or 0.0 for row in counted])) for name in _MEASURE[9:14]}
    last = counted[-1]
    return MeasureCost(
        **mean, images=len(counted), nfe_total=mean["nfe"] * len(counted), seconds_total=mean["seconds"] * len(counted),
        dtype=last["dtype"], device=last["device"],
    )  # fmt: skip


def _pairings(scores: tuple[MeasureScore, ...], rows: list[dict[str, Any]]) -> list[Pairing]:
    """Every membership score beside every memorization score, on the images that have both."""
    from scipy.stats import rankdata, spearmanr

    by_score: dict[str, dict[str, float]] = {}
    unbounded = {score.score for score in scores if score.infinite}
    for row in rows:
        if row["status"] == "ok":
            by_score.setdefault(row["score"], {})[row["image_id"]] = row["evidence"]
    found = []
    for one in (score.score for score in scores if score.membership):
        for other in (score.score for score in scores if not score.membership):
            both = sorted(by_score.get(one, {}).keys() & by_score.get(other, {}).keys())
            x, y = ([by_score[label][key] for key in both] for label in (one, other))
            if len(both) < FEWEST or len(set(x)) < 2 or len(set(y)) < 2:
                continue
            rho = float(spearmanr(x, y).statistic)
            step = max(1, -(-len(both) // POINTS))
            ranks = bool(unbounded & {one, other})
            if ranks:
                x, y = (rankdata(side).tolist() for side in (x, y))
            points = tuple((x[i], y[i], both[i].startswith("heldout/")) for i in range(0, len(both), step))
            found.append(
                Pairing(membership=one, memorization=other, images=len(both), spearman=rho,
                        interval=_rho_interval(rho, len(both)), points=points, ranks=ranks)
            )  # fmt: skip
    return found


def _rho_interval(rho: float, images: int) -> tuple[float, float] | None:
    """95 % by Fisher's z with the standard error 1.03 / sqrt(n - 3) (Fieller, Hartley & Pearson 1957)."""
    if images < 10 or abs(rho) >= 1:
        return None
    reach = 1.96 * 1.03 / math.sqrt(images - 3)
    return math.tanh(math.atanh(rho) - reach), math.tanh(math.atanh(rho) + reach)


def _shift(folder: Path) -> ShiftFact | None:
    fact = read_fact(folder, "shift")
    return None if fact is None else ShiftFact(**{k: v for k, v in fact.items() if k in ShiftFact.model_fields})


def _headline(images: int, held: int, scores: tuple[MeasureScore, ...]) -> str:
    beside = f" beside {count(held, 'held-out image')}" if held else ""
    with_values = max((score.images for score in scores), default=0)
    what = count(len(scores), "measure")
    have = "has" if with_values == 1 else "have"
    return (
        _finding(scores)
        + f"{count(images, 'image')}{beside} measured one by one with {what}; {with_values:,} {have} a value."
    )


def _finding(scores: tuple[MeasureScore, ...]) -> str:
    """What the first measure that compares groups found, in words; empty where none does."""
    score, found = next(((s, s.separations[0]) for s in scores if s.separations), (None, None))
    if score is None or found is None:
        return ""
    ends = "" if found.interval is None else f" ({found.interval[0]:.2f} to {found.interval[1]:.2f})"
    return (
        f"{found.above:,} of {found.n_positives:,} images of the group '{found.positives}' rank above every one of "
        f"'{found.negatives}' by {score.score} (AUROC {found.auroc:.2f}{ends}). "
    )


def _short(text: str | None) -> str | None:
    return None if text is None else shorten(text, LONGEST)
