"""The verdict on mitigations: does the model still reproduce training images under the best of them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffmem.data.prompts import Prompt
from diffmem.evaluation.chance import LEVEL, Chance, independent_events, most_not_excluded, p_value, power
from diffmem.evaluation.planning import fewest_prompts
from diffmem.experiments._compare import prompt_clusters
from diffmem.experiments._table import ArmTable
from diffmem.experiments._verdict import FoundVerdict
from diffmem.experiments.mitigate.compare import OTHER
from diffmem.report.decide import POWER, SHARE
from diffmem.report.prose import at_most, count


def verdict_of(
    setting: str, table: ArmTable, prompts: Sequence[Prompt], threshold: Mapping[str, Any] | None, before: ArmTable
) -> FoundVerdict:
    """The state of the model under one setting, on the prompts that are to be mitigated.

    Args:
        setting: the best one.
        table: its images.
        prompts: of all arms; the group says which are others.
        threshold: how a copy is called.
        before: the images without mitigation.
    """
    called, judged, events, clusters = _counts(table, prompts)
    values: dict[str, Any] = {"called": called, "judged": judged}
    said = f"under {setting}, {called:,} of {count(judged, 'prompt')} give images that are called copies"
    said += f" (without: {_counts(before, prompts)[0]:,})"
    if not judged:
        return _unknown(values, f"no image under {setting} could be judged.", "Look at the images and their errors.")
    chance = Chance.of_threshold(threshold)
    if chance is None:
        return _unknown(
            values, f"{said}, at an uncalibrated threshold, so how many of them chance makes is not known.",
            "Held-out images (--heldout) would calibrate it.",
        )  # fmt: skip
    worth = events / called if called else clusters / judged
    expected = judged * chance.mean
    values |= {
        "expected": expected, "p_value": p_value(events, judged * worth, chance),
        "bound": most_not_excluded(min(events, clusters), clusters),
    }  # fmt: skip
    said += f", {'less than 1' if expected < 0.95 else f'{expected:,.0f}'} expected by chance"
    if values["p_value"] <= LEVEL:
        return FoundVerdict(
            state="reproduces", by="rate", sentence=f"Still reproduces training images: {said}.", **values,
            plain="Under the best of these settings the model still gives back pictures that it was trained on.",
        )  # fmt: skip
    if power(clusters, SHARE, 1.0, chance) < POWER:
        enough = fewest_prompts(SHARE, 1.0, chance, POWER)
        return _unknown(
            values, f"{count(clusters, 'distinct prompt')} are too few to tell whether one in {round(1 / SHARE)} still "
            f"reproduces a training image ({said}).",
            "More held-out images would do." if enough is None else f"{count(max(1, enough - clusters), 'more distinct prompt')} "
            "would do.",
        )  # fmt: skip
    return FoundVerdict(
        state="no-excess", by="rate", **values,
        sentence=f"No more than chance is left: {said}; up to {at_most(values['bound'])} of such prompts not excluded.",
        plain="Under this setting these prompts and noises give no more copies than chance. It was chosen on them: an audit "
        "under it, with another seed, confirms it.",
    )  # fmt: skip


def _counts(table: ArmTable, prompts: Sequence[Prompt]) -> tuple[int, int, int, int]:
    """(called prompts, judged prompts, independent calls, clusters of judged prompts) of those that are to be mitigated."""
    mine = np.array([prompts[i].group != OTHER for i in table.prompt], bool) & table.judged
    numbers = table.prompt[mine]
    judged, called = np.unique(numbers), table.prompt[mine & table.copied]
    cluster = prompt_clusters(prompts)
    names = {name: code for code, name in enumerate(dict.fromkeys(table.group))}
    groups = np.array(
        [names[name] for name, used in zip(table.group, mine & table.copied, strict=True) if used], np.int64
    )
    events = independent_events(cluster[called], groups) if len(called) else 0
    return len(np.unique(called)), len(judged), events, len(np.unique(cluster[judged]))


def _unknown(values: Mapping[str, Any], why: str, needs: str) -> FoundVerdict:
    return FoundVerdict(
        state="unknown", by=None, sentence=f"Unknown: {why}", needs=needs,
        plain="This comparison cannot say whether training pictures are still given back.", **values,
    )  # fmt: skip
