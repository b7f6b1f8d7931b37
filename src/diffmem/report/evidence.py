"""What a run holds for and against reproduction, counted so that near-duplicates are one piece of evidence."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffmem.copies.verification import PROVEN, is_proven
from diffmem.evaluation.chance import independent_events
from diffmem.report.columns import PromptColumns
from diffmem.report.matches import Matches, PerPrompt
from diffmem.runs.facts import read_fact

MOST = 2000
"""Prompts whose texts are compared with each other; beyond it each counts for itself."""
LONGEST = 2000
"""Characters of a prompt that are compared."""
Proof = Literal["pixel identity", "verification", "review"]


@dataclass(frozen=True)
class Evidence:
    """Counts that a verdict rests on.

    Attributes:
        prompts: that could be judged.
        clusters: of them, near-duplicate texts counted once.
        called: prompts with an image that is called a copy.
        events: of them, those of near-duplicate texts with the same training image counted once.
        groups: training images that are called copied, near-duplicates counted once.
        confirmed: training images of confirmed pairs, likewise; `proof` says how the first of them was confirmed.
    """

    prompts: int
    clusters: int
    called: int
    events: int
    groups: int
    confirmed: int
    proof: Proof | None


@dataclass(frozen=True)
class Gallery:
    """The same generated images against a gallery that no training saw, near-duplicates counted once.

    Attributes:
        only_train, only_gallery: independent events on one side alone.
        called_train, called_gallery: prompts called against either; of the training set as many images as of the gallery.
        prompts: that were compared.
        size: images of either gallery.
    """

    only_train: int
    only_gallery: int
    called_train: int
    called_gallery: int
    prompts: int
    size: int


def collect(
    fact: dict[str, Any],
    matches: Matches,
    per_prompt: PerPrompt,
    prompts: PromptColumns,
    texts: Callable[[Collection[str]], dict[str, str]],
) -> Evidence:
    """The evidence of a run whose images were matched.

    Args:
        fact: on copies.
        matches: of its images.
        per_prompt: the same by prompt.
        prompts: of the run.
        texts: prompt ids -> their texts.
    """
    judged, called = np.flatnonzero(per_prompt.matched > 0), np.flatnonzero(per_prompt.copied > 0)
    chosen = judged if len(judged) <= MOST else called
    cluster = _clusters(chosen, prompts, texts) if len(chosen) <= MOST else {int(i): int(i) for i in chosen}
    pairs = {
        (int(cluster[int(place)]), int(group))
        for place, group in zip(matches.place[matches.copy], matches.group[matches.copy], strict=True)
    }
    # A prompt whose images copy several training images is one called prompt all the same.
    events = min(len(called), len(pairs))
    identical, proven = confirmed(fact, matches)
    seen = matches.seen if len(matches.seen) else np.zeros(len(identical), bool)
    if len(matches.waived):
        seen = seen & ~matches.waived
    return Evidence(
        len(judged), len(set(cluster.values())) if len(judged) <= MOST else len(judged), len(called), events,
        len(np.unique(matches.group[matches.copy])), len(np.unique(matches.group[identical | proven | seen])),
        "pixel identity" if identical.any() else "verification" if proven.any() else "review" if seen.any() else None,
    )  # fmt: skip


def read_gallery(
    folder: Path, texts: Callable[[Collection[str]], dict[str, str]], refuted: Collection[str] = ()
) -> Gallery | None:
    """The two-gallery control of a run, None where it was not made: prompts called on one side alone, as events.

    Prompts whose calls reviewers have `refuted` are not called on the side of the training set.

    Both galleries are exchangeable picture by picture if nothing is copied, so calls that share a picture, or near-duplicate
    texts, are one event.
    """
    fact = read_fact(folder, "gallery")
    if fact is None:
        return None
    called: dict[str, dict[str, list[str]]] = {
        key: sides | {"train": []} if key in refuted else sides for key, sides in fact["called"].items()
    }
    ids = sorted(called)
    place = {key: i for i, key in enumerate(ids)}
    clusters = np.arange(len(ids))
    if 0 < len(ids) <= MOST:
        from diffmem.evaluation.text_groups import near_duplicate_groups

        found = texts(ids)
        clusters = near_duplicate_groups([found.get(key, key)[:LONGEST] for key in ids])
    only = []
    for side, other in (("train", "gallery"), ("gallery", "train")):
        alone = [key for key in ids if called[key][side] and not called[key][other]]
        names = {name: i for i, name in enumerate(dict.fromkeys(called[key][side][0] for key in alone))}
        only.append(
            independent_events([clusters[place[key]] for key in alone], [names[called[key][side][0]] for key in alone])
        )
    sides = [sum(bool(entry[side]) for entry in called.values()) for side in ("train", "gallery")]
    return Gallery(only[0], only[1], sides[0], sides[1], fact["prompts"], fact["size"])


def confirmed(fact: dict[str, Any], matches: Matches) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which matches [M] are confirmed pairs: by pixel identity, and by geometric verification beyond every control.

    Vectors whose metric is a difference of pixels (`tiled-rms`) are pictures, so equal vectors are equal pictures.
    Verification confirms where the two pictures agree, laid over each other, beyond what is taken to prove a common source
    whatever the threshold (`is_proven`), and beyond the threshold that the run's own controls gave.
    """
    of_pixels = (fact["descriptor"].get("metric") or [None])[0] == "tiled-rms"
    similarity = matches.rows["similarity"].to_numpy()
    whole = ~np.asarray(matches.rows["background"].to_numpy(), bool)
    identical = (similarity == 1) & whole & of_pixels
    verified = np.asarray(matches.rows["verified"].to_numpy(), np.float64)
    for left_out in (matches.waived, matches.refuted):
        if len(left_out):
            identical &= ~left_out
            verified = np.where(left_out, np.nan, verified)
    evidence, reached = np.full(len(verified), np.nan), np.flatnonzero(verified >= PROVEN)
    evidence[reached] = [_nats(alignment) for alignment in matches.rows["alignment"].take(reached).to_pylist()]
    proven = is_proven(verified, evidence)
    if fact["threshold"]["statistic"] == "verified":
        proven &= verified >= fact["threshold"]["value"]
    return identical, proven


def _nats(alignment: str | None) -> float:
    """The evidence that a row of matches holds; NaN where it holds none, as those of diffmem 0.1.0."""
    return float("nan") if alignment is None else json.loads(alignment).get("evidence", float("nan"))


def _clusters(
    places: NDArray[np.int64], prompts: PromptColumns, texts: Callable[[Collection[str]], dict[str, str]]
) -> dict[int, int]:
    """Position of each prompt -> number of its cluster of near-duplicate texts."""
    from diffmem.evaluation.text_groups import near_duplicate_groups

    ids = [prompts.id_of(int(place)) for place in places]
    found = texts(ids)
    groups = near_duplicate_groups([found.get(key, key)[:LONGEST] for key in ids])
    return {int(place): int(group) for place, group in zip(places, groups, strict=True)}
