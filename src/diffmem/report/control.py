"""The positive control of an audit, as its verdict uses it: what a short LoRA planted, and how much of it was found."""

from __future__ import annotations

from pathlib import Path

from diffmem.evaluation.proportion import clopper_pearson
from diffmem.report.prose import count, percent, percents
from diffmem.report.shape import Check
from diffmem.report.shapes.copies import ControlDigest
from diffmem.runs.facts import read_fact

FEWEST = 10
"""Planted pictures that come out, from which on the control says something: shares of fewer measure the planting."""
CAVEAT = (
    "A LoRA's memory is not pre-training's: what a model learned from its training set may come out more or less easily than "
    "what a short LoRA has planted, and training pictures may be harder or easier to recognise than these drawn ones. Pictures "
    "given back may be blurred or half learned, which no rule should call copies: the share of them that is called is what the "
    "matcher finds at least."
)


def read_control(folder: Path) -> ControlDigest | None:
    """The control of a run; None where none was asked for."""
    fact = read_fact(folder, "control")
    if fact is None:
        return None
    if "refused" in fact:
        return ControlDigest(refused=fact["refused"], sentence=f"The positive control was not made: {fact['refused']}")
    found, planted = fact["found"], fact["planted"]
    back, seen = fact["given_back"], fact["found_of_given_back"]
    measured, planted_well = back >= FEWEST, _says_something(found, back)
    return ControlDigest(
        planted=planted, found=found, sensitivity=found / planted if planted_well else None,
        sensitivity_interval=clopper_pearson(found, planted) if planted_well else None,
        given_back=back, found_of_given_back=seen, recall=seen / back if measured else None,
        recall_interval=clopper_pearson(seen, back) if measured else None, controls=fact["controls"],
        controls_found=fact["controls_found"], images_per_prompt=fact["images_per_prompt"], steps=fact["steps"],
        cost=fact["cost"], page=fact["page"], notes=tuple(fact["notes"]), caveat=CAVEAT,
        sentence=_sentence(found, planted, back, seen, fact["controls"], fact["controls_found"]),
    )  # fmt: skip


def _says_something(found: int, back: int) -> bool:
    """Whether enough of the planted pictures came out: what nobody planted well, nobody can find."""
    return max(found, back) >= FEWEST


def _sentence(found: int, planted: int, back: int, seen: int, controls: int, false: int) -> str:
    stayed_out = f"of {controls} that stayed out, {false}"
    if not _says_something(found, back):
        return (
            f"The short LoRA planted too little: of {count(planted, 'picture')} its model gave back {back} and this audit found "
            f"{found} ({stayed_out}). So this control does not say what this audit would find; a larger audit plants more."
        )
    low, high = clopper_pearson(found, planted)
    text = (
        f"Of {count(planted, 'picture')} that a short LoRA planted in a copy of the model, this audit found {found} "
        f"({percent(found / planted)}, 95 % interval {percents(low, high)}); {stayed_out}."
    )
    if back < FEWEST:
        return f"{text} The copy gave back only {back} of them, too few to measure what the matcher misses."
    return f"{text} Of {back} that the copy gave back, the matcher called {seen}."


def control_check(control: ControlDigest) -> Check:
    """The control as a line of the checks."""
    if control.refused is not None:
        return Check(check="positive control", state="not run", found=control.refused)
    state = "passed" if control.sensitivity and not control.controls_found else "note"
    return Check(check="positive control", state=state, found=control.sentence)
