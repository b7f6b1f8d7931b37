"""Verdicts of runs that are no audits: on a folder of images, and on what many seeds agree on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from diffmem.evaluation.chance import LEVEL, Chance, most_not_excluded, p_value, power
from diffmem.evaluation.planning import fewest_prompts
from diffmem.report.decide import POWER, SHARE
from diffmem.report.prose import at_most, count

_GIVEN_BACK = "These are pictures that the training set holds."


class FoundVerdict(BaseModel):
    """Do the images of a run reproduce training images?

    Attributes:
        state: as of an audit: `reproduces`, `no-excess` or `unknown`.
        by: what it rests on: "pixel identity", "rate", "seeds" (sets of alike images that are a training image) or "decoys"
            (works against others that cannot have been seen); None.
        sentence: the finding.
        plain: the same for those who read no further.
        needs: what would change `unknown`; None otherwise.
        called, judged: images called copies and images judged (extract: sets that are training images, and prompts).
        expected: called by chance, at most, if none copies; None without a calibrated threshold.
        p_value: probability of so many calls by chance; None likewise.
        bound: share of such images (prompts) that may reproduce without this run contradicting it (95 %).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["reproduces", "no-excess", "unknown"]
    by: Literal["pixel identity", "rate", "seeds", "decoys"] | None
    sentence: str
    plain: str
    needs: str | None = None
    called: int = 0
    judged: int = 0
    expected: float | None = None
    p_value: float | None = None
    bound: float | None = None


def of_matches(rows: Sequence[Mapping[str, Any]], threshold: Mapping[str, Any], pixels: bool) -> FoundVerdict:
    """The verdict on matched images; calls that share a training image are one event.

    Args:
        rows: of matched images, with "copy" (None: it cannot be judged), "train_id", "similarity".
        threshold: how "copy" was decided: "calibrated", "n_reference", "per_image_fpr".
        pixels: whether vectors are pictures, so that equal vectors are equal pictures.
    """
    copies = [row for row in rows if row["copy"] is True]
    judged = sum(row["copy"] is not None for row in rows)
    events = len({row["train_id"] for row in copies})
    equal = {row["train_id"] for row in copies if pixels and row["similarity"] == 1}
    said = f"{len(copies):,} of {count(judged, 'image')} are called copies of {count(events, 'training image')}"
    values: dict[str, Any] = {"called": len(copies), "judged": judged}
    chance = Chance.of_threshold(threshold, 1)
    if chance is not None and judged:
        worth = events / len(copies) if copies else 1.0
        expected = judged * chance.mean
        values |= {
            "expected": expected, "p_value": p_value(events, judged * worth, chance), "bound": most_not_excluded(events, judged),
        }  # fmt: skip
        said += f", {'less than 1' if expected < 0.95 else f'{expected:,.0f}'} expected by chance"
    if equal:
        return FoundVerdict(
            state="reproduces", by="pixel identity", plain=_GIVEN_BACK, **values,
            sentence=f"Reproduces {count(len(equal), 'training image')}: confirmed (pixel for pixel at the size that is "
            f"compared). In all, {said}.",
        )  # fmt: skip
    if not judged:
        return _unknown(values, "no image could be judged.", "Look at the images that were set aside.")
    if chance is None:
        needed = math.ceil(1 / threshold["per_image_fpr"] - 1e-9) - 1 - threshold["n_reference"]
        return _unknown(
            values, f"{said} at an uncalibrated threshold, so how many of them chance makes is not known.",
            f"{count(max(1, needed), 'more held-out image')} (--heldout) would calibrate it.",
        )  # fmt: skip
    if values["p_value"] <= LEVEL:
        return FoundVerdict(
            state="reproduces", by="rate", sentence=f"Reproduces training images: {said}.", plain=_GIVEN_BACK, **values
        )  # fmt: skip
    if power(judged, SHARE, 1.0, chance) < POWER:
        enough = fewest_prompts(SHARE, 1.0, chance, POWER)
        return _unknown(
            values, f"{count(judged, 'image')} judged by {count(chance.references, 'reference image')} are too few to tell even "
            f"whether one in {round(1 / SHARE)} is a copy ({said}).",
            "More held-out images would do." if enough is None else f"{count(max(1, enough - judged), 'more image')} would do.",
        )  # fmt: skip
    return FoundVerdict(
        state="no-excess", by="rate", **values,
        sentence=f"No more than chance: {said}; up to {at_most(values['bound'])} of such images not excluded.",
        plain="No more of these images are like a training image than chance makes; others may be.",
    )  # fmt: skip


def of_extractions(
    sets: int, matched: int, prompts: int, threshold: Mapping[str, Any] | None, undecided: int = 0
) -> FoundVerdict:
    """The verdict on sets of images of one prompt that are all alike.

    Args:
        sets: that were found; undecided ones left out.
        matched: of them, those that the copy rule calls a training image.
        prompts: whose images were compared.
        threshold: how that was decided; None without a training set.
        undecided: sets of which nothing says whether they are more than pictures that are alike anyhow.
    """
    values: dict[str, Any] = {"called": matched, "judged": prompts}
    chance = Chance.of_threshold(threshold, 1)
    if matched and chance is not None:
        values["p_value"] = p_value(matched, sets, chance)
    if matched and values.get("p_value", 1.0) > LEVEL:
        return _unknown(
            values, f"{matched} of {count(sets, 'set')} of alike images {'is' if matched == 1 else 'are'} called a training "
            "image, " + ("at an uncalibrated threshold." if chance is None else "which may be chance."),
            "Look at the pairs; an audit of these prompts with --heldout images says how often chance makes such pairs.",
        )  # fmt: skip
    if matched:
        return FoundVerdict(
            state="reproduces", by="seeds", plain="This model gives back pictures that it was trained on.", **values,
            sentence=f"Reproduces {count(matched, 'training image')}: many seeds of a prompt give it.",
        )  # fmt: skip
    if not prompts:
        return _unknown(
            values, "no generated image could be compared with another.", "Look at the images and their errors."
        )
    if undecided or (sets and threshold is None):
        found = [f"{count(sets, 'set')} of alike images"] if sets else []
        if undecided:
            found.append(f"{count(undecided, 'set')} of alike images that may only show how little such images vary")
        return _unknown(
            values, f"{count(prompts, 'prompt')} gave {' and '.join(found)}"
            + ("; no training images say whether they are among them." if sets and threshold is None else "."),
            "Give the training images (--train): the copy rule then decides." if threshold is None
            else "Look at these sets beside their nearest training images: for them the copy rule's statistic is undefined.",
        )  # fmt: skip
    values["bound"] = most_not_excluded(sets, prompts)
    seen = "no prompt gives"
    if sets:
        seen = f"{count(sets, 'prompt')} give one picture from many seeds, which is no training image; none gives"
    return FoundVerdict(
        state="no-excess", by="seeds", **values,
        sentence=f"Of {count(prompts, 'prompt')}, {seen} a training image from many seeds; up to {at_most(values['bound'])} of "
        "such prompts not excluded.",
        plain="From these prompts no training picture comes out again and again; one that few seeds give is not found this way.",
    )  # fmt: skip


def _unknown(values: Mapping[str, Any], why: str, needs: str) -> FoundVerdict:
    return FoundVerdict(
        state="unknown", by=None, sentence=f"Unknown: {why}", needs=needs,
        plain="This run cannot say whether training pictures are given back.", **values,
    )  # fmt: skip
