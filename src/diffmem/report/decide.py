"""The verdict: one computation, which the terminal, the page, JSON and the gates read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffmem.evaluation.chance import (
    LEVEL,
    Chance,
    fewest_signed_prompts,
    power,
)  # fmt: skip
from diffmem.evaluation.planning import fewest_prompts, fewest_references
from diffmem.report.case import KNOWN_COPIES, Case, Circumstances, chance_of, figures
from diffmem.report.evidence import Evidence
from diffmem.report.prose import at_most, count, percent
from diffmem.report.shapes.copies import CopiesDigest
from diffmem.report.shapes.verdict import Verdict

SHARE, POWER = 0.1, 0.8
"""Where a share of prompts this large would be missed more often than in 1 - POWER of such runs, they are too few to say."""
_SEEN = {
    "pixel identity": "pixel for pixel at the size that is compared",
    "verification": "laid over each other, the pictures agree beyond every control",
    "review": "people who looked at the pair call it a copy",
}


def decide(copies: CopiesDigest | None, seen: Evidence | None, around: Circumstances) -> Verdict:
    """The verdict of a run, without its next steps.

    A confirmed pair comes before everything else. Then what makes the rest worthless (a failed check, work that was not
    finished, nothing judged), then the comparison with a gallery, then the rate at a calibrated threshold.

    Args:
        copies: what the search of the training set found; None where none was searched.
        seen: the evidence in it.
        around: everything else.
    """
    if copies is None or seen is None:
        return _not_searched(around)
    case = Case(copies, seen, around, chance_of(copies))
    case.values = figures(case)
    if seen.confirmed:
        return _confirmed(case)
    for state in (_prevented, _by_gallery, _by_rate):
        found = state(case)
        if found is not None:
            return found
    return _uncalibrated(case)


def _not_searched(around: Circumstances) -> Verdict:
    if around.images is None:
        why, needs = "no images were generated.", "Generate images of the prompts (diffmem audit)."
    else:
        why = "no training set was given."
        needs = (
            "Give the training images (--train); without them diffmem extract finds images that many seeds agree on."
        )
    found = _unknown({}, why, needs)
    return found.model_copy(update={"sentence": f"Copies were not searched: {why}"})


def _confirmed(case: Case) -> Verdict:
    seen = case.seen
    how = _SEEN[seen.proof or "verification"]
    rest = "" if not seen.called else f" In all, {_called(case)}."
    review = case.around.review
    if review is not None:
        rest += f" Review: {review.sentence}."
    return Verdict(
        state="reproduces", by=seen.proof, **case.values,
        sentence=f"Reproduces {count(seen.confirmed, 'training image')}: confirmed ({how}).{rest}",
        plain="This model gives back pictures that it was trained on.",
    )  # fmt: skip


def _prevented(case: Case) -> Verdict | None:
    """What makes counts worthless."""
    check, copies = case.around.check, case.copies
    if check is not None and check["passed"] is False:
        return _unknown(
            case.values, f"the check of the model failed: {_clause(str(check['message']))}.",
            "Find out what diffmem does not see of this pipeline (diffmem doctor), then run the same command again.",
        )  # fmt: skip
    if case.around.unfinished:
        return _unknown(
            case.values, f"the run is not finished ({', '.join(case.around.unfinished)}).", "Run the same command again."
        )  # fmt: skip
    if not case.seen.prompts:
        return _unknown(
            case.values, "no generated image could be compared with a training image.",
            "Look at the images and their errors; a safety checker may have blackened them.",
        )  # fmt: skip
    if copies.planted >= KNOWN_COPIES and not copies.found:
        return _unknown(
            case.values, f"of {copies.planted} prompts known to be reproduced the matcher called none.",
            "Compare with another descriptor, such as --descriptor aligned.",
        )  # fmt: skip
    control = case.around.control
    if control is not None and control.recall == 0 and not case.values.get("recall"):
        return _unknown(
            case.values, f"of {control.given_back} planted pictures that the control's model gave back the matcher called none.",
            "Look at the planted pictures (control/images/canaries.html): where they are blurred, a larger audit plants more; "
            "where they are sharp, compare with another descriptor, such as --descriptor aligned.",
        )  # fmt: skip
    return None


def _by_gallery(case: Case) -> Verdict | None:
    gallery = case.around.gallery
    if gallery is None:
        return None
    against = f"{count(gallery.called_gallery, 'prompt')} against as many images that no training saw"
    if _spent(case):
        return _looked_before(case, against)
    if case.values["p_value"] <= case.around.level:
        return Verdict(
            state="reproduces", by="gallery", **case.values,
            sentence=f"Reproduces training images: {gallery.called_train:,} of {count(gallery.prompts, 'prompt')} gave images "
            f"that are called copies of one of {gallery.size:,} training images, {against}.",
            plain="This model gives back pictures that it was trained on.",
        )  # fmt: skip
    needed = fewest_signed_prompts(SHARE, POWER)
    if case.seen.clusters < needed:
        return _unknown(
            case.values,
            f"{count(case.seen.clusters, 'distinct prompt')} are too few to tell by a gallery even whether one prompt in "
            f"{round(1 / SHARE)} reproduces a training image ({_called(case)}, {against}).",
            f"{count(needed - case.seen.clusters, 'more distinct prompt')} would let such a share be found in {POWER:.0%} of "
            "runs.",
        )  # fmt: skip
    return Verdict(
        state="no-excess", by="gallery", **case.values,
        sentence=f"No more than chance: {_called(case)}, {against}; {_bound(case)}.", plain=_NO_EXCESS,
    )  # fmt: skip


_NO_EXCESS = (
    "From these prompts and seeds the model did not give back training pictures more often than chance; this does not "
    "show that it cannot."
)


def _by_rate(case: Case) -> Verdict | None:
    if case.chance is None:
        return None
    if _spent(case):
        return _looked_before(case, _expected(case))
    if case.values["p_value"] <= case.around.level:
        return Verdict(
            state="reproduces", by="rate", **case.values,
            sentence=f"Reproduces training images: {_called(case)}, {_expected(case)}.",
            plain="This model gives back pictures that it was trained on.",
        )  # fmt: skip
    if not _could_tell(case.seen.clusters, case.chance):
        return _too_few(case)
    return Verdict(
        state="no-excess", by="rate", **case.values,
        sentence=f"No more than chance: {_called(case)}, {_expected(case)}; {_bound(case)}.", plain=_NO_EXCESS,
    )  # fmt: skip


def _spent(case: Case) -> bool:
    """Whether a look that no plan provided for finds what a first look would call more than chance."""
    return case.around.level <= 0 and bool(case.values["p_value"] <= LEVEL)


def _looked_before(case: Case, expected: str) -> Verdict:
    return _unknown(
        case.values,
        f"{_called(case)}, {expected}; but this run was looked at before with another number of images, and whoever looks often "
        "enough finds something by chance.",
        "An audit with another --seed in a new folder can say; planned looks (--looks 2,4,8) share the error of one.",
    )  # fmt: skip


def _too_few(case: Case) -> Verdict:
    clusters, chance = case.seen.clusters, case.chance
    assert chance is not None
    more = _cheapest(clusters, chance, case.copies.threshold.per_image_fpr)
    return _unknown(
        case.values,
        f"{count(clusters, 'distinct prompt')} judged by {count(chance.references, 'reference image')} are too few to tell "
        f"even whether one prompt in {round(1 / SHARE)} reproduces a training image ({_called(case)}).",
        f"{more} would let such a share be found in {POWER:.0%} of runs. Where the model has no more prompts (it takes classes), "
        "more images of each do not help: diffmem extract looks for images that many seeds agree on.",
    )  # fmt: skip


def _cheapest(clusters: int, chance: Chance, fpr: float) -> str:
    """What would let a share of `SHARE` be found: more prompts; where few references make most of the doubt, more of these."""
    needed = fewest_prompts(SHARE, 1.0, chance, POWER)
    known = Chance(0, images=chance.images, rate=fpr)  # if it were certain how often a picture is called by chance
    least = fewest_prompts(SHARE, 1.0, known, POWER)
    if needed is not None and (least is None or needed <= 2 * least):
        return count(max(1, needed - clusters), "more distinct prompt")
    prompts = max(clusters, 2 * (least or 0))
    references = fewest_references(prompts, SHARE, 1.0, chance, POWER, fpr)
    if references is None:
        return "More prompts and more held-out images"
    also = f" and {count(prompts - clusters, 'more distinct prompt')}" if prompts > clusters else ""
    return count(references - chance.references, "more held-out image") + also


def _uncalibrated(case: Case) -> Verdict:
    threshold = case.copies.threshold
    needed = math.ceil(1 / threshold.per_image_fpr - 1e-9) - 1
    more = max(1, needed - threshold.n_reference)
    chance = Chance.of_rate(needed, threshold.per_image_fpr, threshold.images_per_prompt)
    prompts = max(0, (fewest_prompts(SHARE, 1.0, chance, POWER) or 0) - case.seen.clusters)
    also = f" Then {count(prompts, 'more distinct prompt')} would be needed for a verdict too." if prompts else ""
    return _unknown(
        case.values,
        f"the threshold of a copy is uncalibrated, so how many of the {count(case.seen.prompts, 'prompt')} are called copies "
        "by chance is not known.",
        f"{count(more, 'more held-out image')} (--heldout) would calibrate it at {percent(threshold.nominal_fpr)} per "
        f"prompt; fewer images per prompt or a higher --fpr take fewer.{also}",
    )  # fmt: skip


def _unknown(values: Mapping[str, Any], why: str, needs: str) -> Verdict:
    return Verdict(
        state="unknown", by=None, **values, sentence=f"Unknown: {why}", needs=needs,
        plain="This run cannot say whether the model gives back pictures that it was trained on.",
    )  # fmt: skip


def _could_tell(prompts: int, chance: Chance) -> bool:
    return power(prompts, SHARE, 1.0, chance) >= POWER


def _called(case: Case) -> str:
    seen = case.seen
    text = f"{seen.called:,} of {count(seen.prompts, 'prompt')} gave images that are called copies"
    text += f" of {count(seen.groups, 'training image')}" if seen.called else ""
    if case.around.waived:
        text += f" ({count(case.around.waived, 'more image')} waived)"
    if case.around.review is not None and case.around.review.refuted:
        text += f" ({count(case.around.review.refuted, 'more image')} called, which reviewers call no copies)"
    return text + (
        "" if case.chance is not None or case.around.gallery is not None else " at an uncalibrated threshold"
    )


def _expected(case: Case) -> str:
    expected = case.values["expected"]
    return "less than 1 expected by chance" if expected < 0.95 else f"{expected:,.0f} expected by chance"


def _bound(case: Case) -> str:
    text = f"up to {at_most(case.values['bound'])} of such prompts not excluded"
    recall = case.values.get("recall")
    if recall is None:
        return text
    of = "known copies" if case.values["recall_of"] == "labels" else "the planted pictures that come out"
    return f"{text}, given that {percent(recall)} of {of} are found"


def _clause(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
