"""Gone or hidden? A model after a removal against the one before, plainly, in its worst seed and under attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffmem.copies.index import CopyIndex
from diffmem.data.prompts import PromptList
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.experiments._compare import Change, compare
from diffmem.experiments._experiment import ArmResult
from diffmem.experiments._table import ArmTable
from diffmem.experiments.mitigate.compare import OTHER, compare_arms
from diffmem.experiments.remove.forget import Forget

LEVEL = 0.05


def row_of(
    name: str, after: ArmResult, before: ArmResult, attacked: ArmResult | None, attacked_before: ArmResult | None,
    prompts: PromptList, aims: Sequence[Forget], index: CopyIndex, saved: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What became of the copies in one model.

    Returns:
        The row of `diffmem.experiments.mitigate.compare.compared`, and: "state" (see `state_of`), "saved" (where the model
        lies in the run), "worst_*" (a prompt counts as copied if one of its images is), "attack_before", "attack_after",
        "attack_change" with intervals (shares of images to be forgotten of which an adversarial embedding gives a copy),
        "attack_control" (the same of kept images) and "attack_p" (Fisher's exact test that those to be forgotten come back
        more often).
    """
    row: dict[str, Any] = {
        "method": name.partition(":")[0],
        "setting": name,
        "status": after.status,
        "reason": after.reason,
    }
    row |= {"saved": saved if after.made is not None else None}
    if before.table is None or after.table is None:
        return row | {"state": "unknown"}
    row |= compare_arms(row["method"], name, before.table, after.table, prompts.prompts, index)
    texts = [prompt.text for prompt in prompts if prompt.group != OTHER]
    then, now = _hits(before.table, len(texts)), _hits(after.table, len(texts))
    row |= _any_copied("worst", then, now, near_duplicate_groups(texts))
    row["worst_of"] = max((len(hits) for hits in now), default=0)
    row |= _attack(attacked, attacked_before, aims, index)
    return row | {"state": state_of(row)}


def state_of(row: Mapping[str, Any]) -> str:
    """One word for what became of the images.

    "not lowered": copies are not fewer than before (95 % interval of the paired change). "hidden": fewer, but embeddings
    searched against the new model bring them back more often than they bring kept images back that were never copied
    (Fisher, 5 %). "spoilt": fewer, but alignment with the prompts is lost, too (95 % interval of its paired change below 0).
    "removed": fewer, and fewer under attack than before, too. "lowered": fewer, and nothing more can be told.
    """
    high = row.get("copied_change_high")
    if high is None:
        change, pairs = row.get("copied_change"), row.get("n_prompts") or 0
        return "unknown" if change is None or pairs == 0 else "lowered" if change < 0 else "not lowered"
    if high >= 0:
        return "not lowered"
    if (p := row.get("attack_p")) is not None and p <= LEVEL:
        return "hidden"
    if (lost := row.get("alignment_change_high")) is not None and lost < 0:
        return "spoilt"
    low_enough = row.get("attack_change_high")
    return "removed" if low_enough is not None and low_enough < 0 else "lowered"


def _attack(
    attacked: ArmResult | None, before: ArmResult | None, aims: Sequence[Forget], index: CopyIndex
) -> dict[str, Any]:  # fmt: skip
    from scipy.stats import fisher_exact

    figures: dict[str, Any] = Change().columns("attack") | {"attack_control": None, "attack_p": None}
    if attacked is None or attacked.table is None or before is None or before.table is None:
        return figures | {"attack_reason": None if attacked is None else attacked.reason}
    groups = index.duplicates().group
    place = {name: int(groups[row]) for row, name in enumerate(index.ids)}
    wanted = [place[one.image] for one in aims]
    then, now = (_aimed(one.table, wanted, place) for one in (before, attacked))
    figures |= _any_copied("attack", then, now, near_duplicate_groups([one.prompt for one in aims]))
    control = _hits(attacked.table, len(attacked.arm.prompts), len(aims))
    back, forced = [any(hits) for hits in now], [any(hits) for hits in control]
    if forced:
        figures["attack_control"] = forced_share(attacked, len(aims))
        counts = [[sum(back), len(back) - sum(back)], [sum(forced), len(forced) - sum(forced)]]
        figures["attack_p"] = float(fisher_exact(counts, alternative="greater").pvalue)
    return figures | {"attack_reason": None}


def _any_copied(
    what: str, before: Sequence[Sequence[bool]], after: Sequence[Sequence[bool]], groups: Any
) -> dict[str, Any]:
    """Shares of prompts of whose judged images at least one is a copy, as columns; prompts without one are left out."""
    then, now = (np.array([float(any(hits)) if hits else np.nan for hits in one]) for one in (before, after))
    return compare(then, now, groups, share=True).columns(what)


def forced_share(attacked: ArmResult, aims: int) -> float | None:
    """Share of the kept images, listed behind the first `aims` prompts, of which an attack gives a copy of any image."""
    if attacked.table is None:
        return None
    hits = _hits(attacked.table, len(attacked.arm.prompts), aims)
    return float(np.mean([any(one) for one in hits])) if hits else None


def _hits(table: ArmTable, stop: int, start: int = 0) -> list[list[bool]]:
    """Per prompt, whether each of its judged images is a copy."""
    return [table.copied[(table.prompt == number) & table.judged].tolist() for number in range(start, stop)]


def _aimed(table: ArmTable | None, wanted: Sequence[int], place: Mapping[str, int]) -> list[list[bool]]:
    """Per prompt, whether each judged image is a copy of the image that was aimed at, or of a near-duplicate of it."""
    assert table is not None
    return [
        [
            bool(table.copied[row]) and place.get(table.train_id[row] or "") == group
            for row in np.flatnonzero((table.prompt == number) & table.judged)
        ]
        for number, group in enumerate(wanted)
    ]
