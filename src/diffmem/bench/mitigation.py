"""Every mitigation on the digits testbed, the same seeds before and after: copies, alignment, bystanders, cost."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmem.copies.index import CopyIndex
from diffmem.data.prompts import Prompt, PromptList
from diffmem.experiments._arm import Reference
from diffmem.experiments._run import Run
from diffmem.experiments.mitigate.compare import compare_arms
from diffmem.experiments.mitigate.run import NONE, mitigate
from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.base import Mitigation
from diffmem.mitigation.spec import parse_mitigation
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import Matching
from diffmem.testbeds import digits
from diffmem.testbeds.alignment import digits_alignment

REFERENCE = "random-tokens"
"""A method's headline setting loses no more alignment than this one."""
FURTHER: dict[str, tuple[str, ...]] = {
    "random-tokens": ("count=1", "count=2"),
    "word-repetition": ("count=8",),
    "random-numbers": ("count=1", "count=2"),
    "replace": ("count=8",),
    "embedding-noise": ("strength=0.5", "strength=1"),
    "wen": ("pull=0.5,lr=0.1,steps=20", "pull=0.4,lr=0.1,steps=20", "pull=0.3,lr=0.1,steps=20,along=gradient"),
    "anisotropy": (
        "weights=0/1,target=-0.1,lr=0.1", "weights=0/1,target=-0.25,lr=0.1", "weights=0/1,target=-0.25,lr=0.05,steps=20",
        "weights=0/1,target=-0.25,lr=0.05,steps=30,along=gradient,ratio=0.1",
        "weights=0/1,target=-0.15,lr=0.05,steps=30,along=gradient,ratio=0.1",
    ),
    "low-noise-norm": ("pull=0.06", "pull=0.05", "pull=0.03"),
    "transition-static": ("until=300", "until=150"),
    "transition-dynamic": ("before=0",),
    "opposite-guidance": ("until=300",),
    "han-batch": ("gamma=7,rounds=4,until=300",),
    "han-sample": ("lr=0.1",),
    "ren": ("start=2", "mask=false,start=2"),
    "attenuation": ("scale=0",),
    "prss": ("low=0.3,high=0.6", "tokens=2,low=0.3,high=0.6"),
    "amg": ("dissimilarity=3", "despecification=0,deduplication=0"),
}  # fmt: skip
"""Settings beside the defaults: the published sweeps, and what they become in this model's units."""
SLOW = ("sail",)
SAMPLING = Sampling(steps=20, guidance=2.0)
KEYS = (
    "method", "setting", "status", "reason", "n_prompts", "copied_before", "copied_after", "copied_after_low",
    "copied_after_high", "alignment_before", "alignment_after", "alignment_random", "side_effect_similarity",
    "nfe_per_image", "seconds_per_image",
)  # fmt: skip


def mitigation_suite(
    draws: int = 4, seed: int = 1, silent: bool = False, prompts: int = 30, methods: Sequence[str] = (),
    out: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Each mitigation at its headline setting, on captions that the digits model was measured to reproduce.

    The headline setting has fewest copies among the method's settings that lose no more alignment than random token
    addition at its default. It is chosen on the first half of the draws and reported on the second: what is chosen as the
    best looks too good on the data that it was chosen on.

    Args:
        draws: images per caption, an even number.
        seed: root seed (the truth was measured with another).
        silent: no progress.
        prompts: captions of either kind, spread over tiers.
        methods: names; all by default.
        out: folder of the run, which the same call resumes; None for a temporary one.

    Returns:
        One row per method: `KEYS`, then the paired changes, figures of the bystanders ("others_*"), quality, memory,
        "headline" (how the setting was chosen) and "settings" (how many were tried).
    """
    import torch

    torch.set_num_threads(1)  # so small a network gains nothing from threads
    target = Target.from_pretrained(digits.model_path("text"), name="testbed:digits")
    names = list(methods) or sorted(MITIGATIONS, key=lambda name: name in SLOW)
    with tempfile.TemporaryDirectory(prefix="diffmem-bench-") as folder:
        inputs = digits.materialize(Path(out or folder) / "data")
        tried = [one for name in dict.fromkeys([REFERENCE, *names]) for one in settings_of(name)]
        chosen = captions(prompts)
        place = Path(out or folder) / "run"
        index = Reference.of(inputs.train).index_in(place)
        run = mitigate(
            target, chosen, tried, index, pictures=inputs.train, out=place, heldout=inputs.held_out,
            settings=Generation(images_per_prompt=draws, seed=seed, batch=2 * prompts, sampling=SAMPLING),
            matching=Matching(), alignment=digits_alignment(), silent=silent,
        )  # fmt: skip
        halves = (range(draws // 2), range(draws // 2, draws)) if draws > 1 else (range(1), range(1))
        return headlines(run, index, names, halves)


def settings_of(name: str) -> list[Mitigation]:
    """A method's settings in the suite: its defaults, then `FURTHER`; rewriting is given a function."""
    needed = "function=diffmem.bench.mitigation:plain_words" if name == "rewrite" else ""
    return [parse_mitigation(f"{name}:{text}" if text else name) for text in (needed, *FURTHER.get(name, ()))]


def plain_words(caption: str) -> str:
    """A rewriting that knows the answer: the digit that the caption names, in other words. A bound, not a method."""
    from diffmem.testbeds.digits.captions import DIGIT_WORDS

    named = [word for word in caption.lower().replace(",", " ").split() if word in DIGIT_WORDS]
    return f"a photo of the digit {named[-1]}" if named else caption


def captions(count: int) -> PromptList:
    """`count` captions measured as reproduced and as many measured as not, spread evenly over tiers."""
    rows = digits.truth("text")
    listed: list[Prompt] = []
    for label, value in (("reproduced", True), ("not reproduced", False)):
        tiers: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["label"] == label:
                tiers.setdefault(row["tier"], []).append(row)
        total = sum(map(len, tiers.values()))
        found = []
        for members in tiers.values():
            share = max(1, round(count * len(members) / total))
            found += [members[i * len(members) // share] for i in range(share)]
        listed += [Prompt(row["id"], row["caption"], value) for row in found[:count]]
    return PromptList(tuple(listed), "testbed:digits")


def headlines(
    run: Run, index: CopyIndex, names: Sequence[str], halves: tuple[Sequence[int], Sequence[int]]
) -> list[dict[str, Any]]:
    """One row per method, its setting chosen on one half of the draws, its figures from the other."""
    choosing, reporting = halves
    rows: dict[str, Any] = {row["setting"]: row for row in run.summary.rows}  # type: ignore[attr-defined]
    on = {label: _compared(run, index, label, choosing) for label, row in rows.items() if row["status"] == "ok"}
    on.pop(NONE)
    least = on[REFERENCE]["alignment_after"] if REFERENCE in on else None
    found = []
    for name in names:
        mine = [label for label, row in rows.items() if row["method"] == name]
        sound = [label for label in mine if label in on]
        if not sound:
            refused = rows[mine[0]]
            found.append(_shaped(refused | {"headline": "refused", "settings": len(mine)}))
            continue
        kept = [label for label in sound if least is None or on[label]["alignment_after"] >= least - 1e-9]
        if kept:
            best = min(kept, key=lambda label: (on[label]["copied_after"], -on[label]["alignment_after"]))
            how = f"fewest copies of {len(kept)} settings that keep the alignment of {REFERENCE}"
        else:
            best = max(sound, key=lambda label: on[label]["alignment_after"])
            how = f"no setting keeps the alignment of {REFERENCE}; shown is the one that keeps most"
        figures = _compared(run, index, best, reporting)
        cost = {key: rows[best][key] for key in ("nfe_per_image", "seconds_per_image", "peak_memory_mb")}
        found.append(_shaped(figures | cost | {"headline": how, "settings": len(mine)}))
        if REFERENCE in on:
            found[-1]["alignment_random"] = _compared(run, index, REFERENCE, reporting)["alignment_after"]
    return found


def _compared(run: Run, index: CopyIndex, label: str, draws: Sequence[int]) -> dict[str, Any]:
    before, after = run.results[NONE], run.results[label]
    assert before.table is not None and after.table is not None
    method = after.arm.mitigations[0].name if after.arm.mitigations else NONE
    return compare_arms(method, label, before.table, after.table, before.arm.prompts, index, draws)


def _shaped(row: Mapping[str, Any]) -> dict[str, Any]:
    """The documented keys first, all others behind them."""
    return {key: row.get(key) for key in KEYS} | {key: value for key, value in row.items() if key not in KEYS}
