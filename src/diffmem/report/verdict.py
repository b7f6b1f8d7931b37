"""What a digest says in sentences: the checks that ran, and what the report cannot show."""

from __future__ import annotations

from typing import Any, Literal

from diffmem.evaluation.chance import Chance, p_value
from diffmem.report.measures.shape import MeasuresDigest
from diffmem.report.prose import at_most, count, number, percent, percents
from diffmem.report.shape import Check, PromptCounts
from diffmem.report.shapes.copies import CopiesDigest, ImageCounts
from diffmem.report.shapes.scores import ScoreDigest
from diffmem.runs.manifest import Manifest

RISING = ("similarity", "verified")
"""Statistics that rise towards a copy."""
STATISTICS = {
    "similarity": "similarity",
    "ratio": "d1/d2",
    "normalised": "normalised distance",
    "verified": "verified evidence",
}
"""How the statistic of a match is called where people read it; for the two distances lower is more alike."""

_UNLIKELY = 0.025
"""Probability below which as many false calls fail the check of the rate: one side of a 95 % interval."""


def limits(
    copies: CopiesDigest | None,
    images: ImageCounts | None,
    measures: MeasuresDigest | None = None,
    prompts: bool = True,
) -> tuple[str, ...]:
    """What the report cannot show."""
    said = []
    if prompts or measures is None:
        said.append(
            "Scores rank the prompts of one model; without a calibration on reference prompts they are no verdict."
        )
    if measures is not None:
        said.append(
            "Measures of images rank the images of one model at one setting; they are not comparable between models, and "
            "none of them proves that an image was, or was not, in the training set."
        )
        if not measures.held_out:
            said.append("No held-out images were measured: how high images lie that the model never saw is not known.")
        if measures.latent:
            said.append("The model works in a latent space: what was measured is an image's latent, not its pixels.")
    if images is None:
        said.append("No images were generated: whether a training image is copied was not looked at.")
    elif copies is None:
        said.append(
            "No training set was searched: agreement between seeds hints at memorization, but which image is copied, "
            "and whether any is, cannot be known."
        )
    else:
        said.append(
            f"Copies were searched among {copies.searched} training images with {copies.descriptor}, which misses "
            f"{copies.misses or 'what it was not made for'}. Images that are not among these cannot be found."
        )
        if not copies.calibrated:
            said.append("The threshold of a copy is uncalibrated: its false-positive rate is unknown.")
        said.append("That no copy was found from a prompt does not show that there is none: few seeds were tried.")
    return tuple(said)


def checks(
    fact: dict[str, Any] | None,
    fit: dict[str, Any] | None,
    refused: dict[str, str],
    manifest: Manifest,
    prompts: PromptCounts,
    scores: tuple[ScoreDigest, ...],
    images: ImageCounts | None,
    copies: CopiesDigest | None,
) -> tuple[Check, ...]:
    """Everything that was looked at, also where nothing was found."""
    found = [
        Check(check="scoring sees the pipeline's network", state="not run", found="this model was not compared")
        if fact is None
        else Check(
            check="scoring sees the pipeline's network",
            state="not run" if fact["passed"] is None else "passed" if fact["passed"] else "failed",
            found=str(fact["message"]),
        )
    ]
    if fit is not None:
        state = (
            "not run"
            if fit["passed"] is None
            else "failed"
            if not fit["passed"]
            else "note"
            if fit["warning"]
            else "passed"
        )
        found.append(Check(check="the model is what it was declared to be", state=state, found=str(fit["message"])))
    for name, stage in manifest.stages.items():
        total = f" of {stage.total:,}" if stage.total is not None else ""
        found.append(
            Check(
                check=f"stage {name} is complete", state="passed" if stage.state == "done" else "failed",
                found=f"{stage.state}: {stage.done:,}{total} rows in {number(stage.seconds, 3)} s",
            )
        )  # fmt: skip
    if prompts.total:
        cut = f"{count(prompts.truncated, 'prompt')} of {prompts.total:,} longer: the model saw their beginning only"
        found.append(
            Check(check="prompts fit the tokenizer", state="note" if prompts.truncated else "passed",
                  found=cut if prompts.truncated else f"all {prompts.total:,}")
        )  # fmt: skip
    found += [Check(check=f"score {label}", state="not run", found=reason) for label, reason in refused.items()]
    for score in scores:
        if score.score not in refused and (score.errors or score.skipped):
            text = f"{score.errors:,} errors, {score.skipped:,} skipped, {score.prompts:,} with a value"
            reason = f": {score.reason}" if score.reason else ""
            found.append(Check(check=f"score {score.score}", state="note", found=text + reason))
    if images is not None:
        found.append(
            Check(
                check="images can be judged",
                state="note" if images.errors or images.degenerate else "passed",
                found=f"{images.made:,} made, {images.errors:,} failed, {images.degenerate:,} black or constant "
                "(set aside)"
                + (
                    f"; {images.uncounted:,} beyond --images-per-prompt are kept, not counted"
                    if images.uncounted
                    else ""
                ),
            )
        )
    return tuple(found) + (_copy_checks(copies) if copies is not None else ())


def _copy_checks(copies: CopiesDigest) -> tuple[Check, ...]:
    read = f"{copies.searched:,} described, {copies.unreadable:,} unreadable"
    found = [Check(check="training images", state="note" if copies.unreadable else "passed", found=read)]
    threshold = copies.threshold
    if threshold.calibrated and threshold.realised_interval is not None:
        low, high = threshold.realised_interval
        text = (
            f"flags {percent(threshold.realised_fpr)} of {threshold.n_reference:,} reference images (95 % interval "
            f"{percents(low, high)}; nominal {percent(threshold.per_image_fpr)} per image)"
        )
        found.append(Check(check="copy threshold is calibrated", state="passed", found=text))
    else:
        found.append(
            Check(check="copy threshold is calibrated", state="failed", found=threshold.note or "no reference")
        )
    if copies.realised_fpr_interval is not None:
        low, high = copies.realised_fpr_interval
        text = (
            f"{copies.false:,} of {count(copies.negatives, 'prompt')} known not to be reproduced were called copies: "
            f"{percent(copies.realised_fpr)} (95 % interval {percents(low, high)}; nominal "
            f"{percent(copies.nominal_fpr)})"
        )
        state: Literal["passed", "failed"] = "passed" if low <= copies.nominal_fpr else "failed"
        chance = Chance.of_threshold(threshold.model_dump())
        if chance is not None and state == "failed" and p_value(copies.false, copies.negatives, chance) > _UNLIKELY:
            # The rate of a threshold that rests on so few references is itself known to within this interval only.
            state, most = "passed", chance.interval()[1]
            text += f"; a threshold set by {count(chance.references, 'reference')} allows up to {at_most(most)}"
        found.append(Check(check="false positives on labelled prompts", state=state, found=text))
    return tuple(found)
