"""What the states of a verdict have in common: the circumstances of a run, and the figures that every state carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffmem.evaluation.chance import (
    LEVEL,
    Chance,
    excess_interval,
    most_not_excluded,
    p_value,
    share_interval,
    sign_test,
)  # fmt: skip
from diffmem.report.evidence import Evidence, Gallery
from diffmem.report.review.shape import ReviewDigest
from diffmem.report.shapes.copies import ControlDigest, CopiesDigest, ImageCounts

KNOWN_COPIES = 10
"""Prompts known to be reproduced from which on the share found among them is a recall."""


@dataclass(frozen=True)
class Circumstances:
    """What stands in the way of a verdict, and what there is beside the counts.

    Attributes:
        check: fact of the check of the model; None where it was not made.
        unfinished: stages that were stopped before their end.
        images: generated ones.
        gallery: the two-gallery control, if there is one.
        waived: images that are called copies, but whose pairs are accepted.
        control: the positive control, if there is one.
        review: what reviewers say, if anybody labelled a pair.
        level: probability at most with which this look says `reproduces` by chance; 0: earlier looks have spent it.
    """

    check: Mapping[str, Any] | None = None
    unfinished: tuple[str, ...] = ()
    images: ImageCounts | None = None
    gallery: Gallery | None = None
    waived: int = 0
    control: ControlDigest | None = None
    review: ReviewDigest | None = None
    level: float = LEVEL


@dataclass
class Case:
    """What the states have in common while a verdict is made."""

    copies: CopiesDigest
    seen: Evidence
    around: Circumstances
    chance: Chance | None
    values: dict[str, Any] = field(default_factory=dict)


def chance_of(copies: CopiesDigest) -> Chance | None:
    """How often chance calls a prompt a copy at the run's threshold; None where it is uncalibrated."""
    return Chance.of_threshold(copies.threshold.model_dump())


def figures(case: Case) -> dict[str, Any]:
    """The numbers that every state carries, as far as they are known."""
    seen, copies = case.seen, case.copies
    values: dict[str, Any] = {"called": seen.called, "prompts": seen.prompts, "independent": seen.events,
                              "confirmed": seen.confirmed}  # fmt: skip
    if not seen.prompts:
        return values
    share = seen.called / seen.prompts
    worth = seen.events / seen.called if seen.called else seen.clusters / seen.prompts
    ends = share_interval(seen.called * worth, seen.prompts * worth)
    values |= {"share": share, "share_interval": ends}
    if copies.planted >= KNOWN_COPIES and copies.found:
        values |= {"recall": copies.found / copies.planted, "recall_of": "labels"}
    elif case.around.control is not None and case.around.control.recall:
        values |= {"recall": case.around.control.recall, "recall_of": "control"}
    values["bound"] = most_not_excluded(min(seen.events, seen.clusters), seen.clusters, values.get("recall") or 1.0)
    gallery = case.around.gallery
    if gallery is not None:
        values |= _gallery_figures(gallery)
    elif case.chance is not None:
        values |= {
            "expected": seen.prompts * case.chance.mean, "excess": share - case.chance.mean,
            "excess_interval": excess_interval(share, ends, case.chance),
            "p_value": p_value(seen.events, seen.prompts * worth, case.chance),
        }  # fmt: skip
    return values


def _gallery_figures(gallery: Gallery) -> dict[str, Any]:
    apart = gallery.only_train + gallery.only_gallery
    excess = (gallery.called_train - gallery.called_gallery) / gallery.prompts
    # The share of discordant events on one side, scaled to all prompts: an exact interval of a paired difference.
    low, high = share_interval(gallery.only_train, apart) if apart else (0.5, 0.5)
    discordant = apart / gallery.prompts
    spread = share_interval(apart, gallery.prompts)[1]
    ends = (
        (min(excess, discordant * (2 * low - 1)), max(excess, discordant * (2 * high - 1)))
        if apart else (-spread, spread)
    )  # fmt: skip
    return {
        "expected": float(gallery.called_gallery), "excess": excess, "excess_interval": ends,
        "p_value": sign_test(gallery.only_train, gallery.only_gallery),
    }  # fmt: skip
