"""What to do with each training image, from how strongly the model memorizes it and from its near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffmem.errors import UsageError

Action = str
"""keep, drop, de-duplicate, re-caption, or a change of the image: crop, flip, blur, colour, mix, with its strength after a
colon; `least` until the smallest change that is enough has been found."""
ALTERATIONS = ("drop", "crop", "flip", "blur", "colour", "mix", "least")
LEAST_REFERENCE = 20


@dataclass(frozen=True)
class Candidate:
    """What is known of one image of a training set.

    Attributes:
        id: of the image.
        group: its near-duplicate group.
        evidence: higher = more memorized; None where it was not measured.
        value: the measure in its own sign.
        caption: or None.
        problem: why it cannot be used, or None.
    """

    id: str
    group: int
    evidence: float | None
    value: float | None
    caption: str | None
    problem: str | None = None


@dataclass(frozen=True)
class Proposal:
    """What is proposed for one image, with the reason and the numbers behind it.

    Attributes:
        rank: by falling evidence among the measured images, from 1; None where the image was not measured.
        above_heldout: share of held-out images whose evidence is lower; None without held-out images.
        held: whether the model memorizes it, by the rule of `Rule`.
        group, group_size: near-duplicate group (numbered from 0) and how many images it has.
        keeps: the image of the group that stays, for those that go.
    """

    image_id: str
    action: Action
    reason: str
    rank: int | None
    value: float | None
    evidence: float | None
    above_heldout: float | None
    held: bool
    group: int
    group_size: int
    keeps: str | None
    caption: str | None
    new_caption: str | None

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Rule:
    """When an image is memorized, and what is done then.

    Attributes:
        fpr: an image is memorized if its evidence exceeds that of all but this share of held-out images.
        share: without (enough) held-out images: the share of images with the highest evidence.
        alter: what is done with a held image that has no duplicates; `least`: the smallest change that brings its evidence
            down to the limit.
        recaption: the caption that a held image with a caption of its own gets; None alters the image instead.
    """

    fpr: float = 0.01
    share: float = 0.02
    alter: Literal["drop", "crop", "flip", "blur", "colour", "mix", "least"] = "crop"
    recaption: str | None = None

    def __post_init__(self) -> None:
        if not (0 < self.fpr < 1 and 0 < self.share < 1):
            raise UsageError(f"The rates are {self.fpr} and {self.share}; expected numbers between 0 and 1.")
        if self.alter not in ALTERATIONS:
            raise UsageError(f"There is no alteration {self.alter!r}; it can be {', '.join(ALTERATIONS)}.")


def limit_of(rule: Rule, evidence: Sequence[float], heldout: Sequence[float]) -> tuple[float, str]:
    """The evidence above which an image counts as memorized, and how it was found.

    With n >= 20 held-out images it is their split-conformal quantile: the ceil((n + 1)(1 - rate))-th smallest, their
    largest where n cannot resolve the rate. Otherwise the quantile of the images themselves, which is no rate of errors.
    """
    if len(heldout) >= LEAST_REFERENCE:
        ordered = np.sort(np.asarray(heldout, np.float64))
        place = int(np.ceil((len(ordered) + 1) * (1 - rule.fpr)))
        resolved = place <= len(ordered)
        text = (
            f"above all but {100 * rule.fpr:.3g} % of {len(ordered)} held-out images"
            if resolved
            else f"above all {len(ordered)} held-out images (too few for a rate of {100 * rule.fpr:.3g} %; about "
            f"{100 / (len(ordered) + 1):.3g} %)"
        )
        return float(ordered[min(place, len(ordered)) - 1]), text
    if not len(evidence):
        return float("inf"), "no image was measured"
    text = f"the highest {100 * rule.share:.3g} % of the measured images (no {LEAST_REFERENCE} held-out images to compare with)"
    return float(np.quantile(np.asarray(evidence, np.float64), 1 - rule.share)), text


def propose(candidates: Sequence[Candidate], heldout: Sequence[float], rule: Rule) -> tuple[list[Proposal], str]:
    """What to do with every image of a training set.

    Of each near-duplicate group one image stays, the one with the highest evidence, or else the first. An image that
    stays, has no duplicates and is memorized is re-captioned (if it has a caption that no other image has and a new one is
    given) or altered. That repeats made the model memorize a group is taken to be mended by removing them.

    Args:
        candidates: all images, in the order of the set.
        heldout: evidence of held-out images.
        rule: when and what.

    Returns:
        One proposal per image, the most memorized first, then those that were not measured; and the limit in words.
    """
    measured = [c for c in candidates if c.evidence is not None]
    limit, words = limit_of(rule, [c.evidence for c in measured if c.evidence is not None], heldout)
    reference = np.sort(np.asarray(heldout, np.float64))
    order = sorted(measured, key=lambda c: -(c.evidence or 0.0))
    ranks = {c.id: place for place, c in enumerate(order, 1)}
    sizes = np.bincount([c.group for c in candidates]) if candidates else np.zeros(0, np.int64)
    # Repeats of one picture share its evidence: the group is memorized if its most memorized image is.
    kept = _kept(candidates)
    best: dict[int, float] = {}
    for c in measured:
        best[c.group] = max(best.get(c.group, -np.inf), c.evidence if c.evidence is not None else -np.inf)
    shared = _shared_captions(candidates)
    found = []
    for candidate in candidates:
        held = best.get(candidate.group, -np.inf) > limit
        action, reason, caption = _decide(candidate, int(sizes[candidate.group]), held, kept, shared, rule, words)
        found.append(
            Proposal(
                image_id=candidate.id, action=action, reason=reason, rank=ranks.get(candidate.id),
                value=candidate.value, evidence=candidate.evidence,
                above_heldout=_above(reference, candidate.evidence), held=held, group=candidate.group,
                group_size=int(sizes[candidate.group]),
                keeps=kept[candidate.group] if kept[candidate.group] != candidate.id else None,
                caption=candidate.caption, new_caption=caption,
            )
        )  # fmt: skip
    places = {c.id: i for i, c in enumerate(candidates)}
    found.sort(key=lambda p: (p.rank is None, p.rank or 0, places[p.image_id]))
    return found, words


def _decide(
    candidate: Candidate, size: int, held: bool, kept: dict[int, str], shared: set[str], rule: Rule, words: str
) -> tuple[Action, str, str | None]:
    """Action, reason and new caption of one image."""
    if candidate.problem is not None:
        return "drop", f"it cannot be read: {candidate.problem}", None
    if size > 1 and kept[candidate.group] != candidate.id:
        also = ", which the model memorizes" if held else ""
        return "de-duplicate", f"one of {size} near-duplicates{also}; one of them stays", None
    if not held:
        reason = "not measured" if candidate.evidence is None else f"not {words}"
        return "keep", reason, None
    if size > 1:
        others = "1 near-duplicate of it goes" if size == 2 else f"{size - 1} near-duplicates of it go"
        return "keep", f"memorized ({words}), but {others}: measure again after that", None
    if candidate.caption and candidate.caption not in shared and rule.recaption is not None:
        return "re-caption", f"memorized ({words}) under a caption that no other image has", rule.recaption
    return rule.alter, f"memorized ({words}) without duplicates", None


def _kept(candidates: Sequence[Candidate]) -> dict[int, str]:
    """Group -> the image that stays: readable, the highest evidence, the first of the set."""
    best: dict[int, tuple[tuple[bool, float], str]] = {}
    for c in candidates:
        merit = (c.problem is None, -np.inf if c.evidence is None else c.evidence)
        if c.group not in best or merit > best[c.group][0]:
            best[c.group] = (merit, c.id)
    return {group: name for group, (_, name) in best.items()}


def _shared_captions(candidates: Sequence[Candidate]) -> set[str]:
    """Captions that images of several groups have."""
    seen: dict[str, set[int]] = {}
    for c in candidates:
        if c.caption:
            seen.setdefault(c.caption, set()).add(c.group)
    return {caption for caption, groups in seen.items() if len(groups) > 1}


def _above(reference: NDArray[np.float64], evidence: float | None) -> float | None:
    if evidence is None or not len(reference):
        return None
    return float(np.searchsorted(reference, evidence, side="left") / len(reference))
