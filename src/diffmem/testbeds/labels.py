"""From raw matches to the truth of a text-to-image testbed: rates and labels per caption, and their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from diffmem.testbeds.matching import NEAR_RATIO, RATIO

Sample = dict[str, Any]
REPRODUCED = 1 / 2
NOT_REPRODUCED = 1 / 16
LABELS = ("reproduced", "sometimes", "not reproduced")


def label_of(rate: float, near_rate: float) -> str:
    """The verdict on a caption, with room between yes and no for what two honest judges would call differently.

    Args:
        rate: share of its images that are copies (d1/d2 < 1/3); "reproduced" from 1/2 on.
        near_rate: share with d1/d2 < 1/2, most of which the eye calls copies, too; "not reproduced" up to 1/16.
            Anything else is "sometimes".
    """
    if rate >= REPRODUCED:
        return "reproduced"
    return "not reproduced" if near_rate <= NOT_REPRODUCED else "sometimes"


def summarize(samples: list[Sample], prompts: Iterable[Any], attribute: str) -> list[dict[str, Any]]:
    """One row per caption, in the order of the prompts.

    Args:
        samples: rows with id, draw, d1, d2, nearest and shows.
        prompts: with id, text, tier, group, count and the attribute.
        attribute: what captions name, "digit" or "kind"; a column of the rows.

    Returns:
        Rows {"id", "caption", "tier", attribute, "group", "count", "rate", "near_rate", "own_rate", "median_ratio",
        "aligned", "label"}.
    """
    images: dict[str, list[Sample]] = {}
    for sample in samples:
        images.setdefault(sample["id"], []).append(sample)
    rows = []
    for prompt in prompts:
        mine = images[prompt.id]
        ratios = np.array([sample["d1"] / sample["d2"] for sample in mine])
        own = np.array([sample["nearest"] == prompt.group for sample in mine])
        rate, near_rate = float((ratios < RATIO).mean()), float((ratios < NEAR_RATIO).mean())
        named = getattr(prompt, attribute)
        rows.append(
            {
                "id": prompt.id,
                "caption": prompt.text,
                "tier": prompt.tier,
                attribute: named,
                "group": prompt.group,
                "count": prompt.count,
                "rate": rate,
                "near_rate": near_rate,
                "own_rate": float(((ratios < RATIO) & own).mean()),
                "median_ratio": float(np.median(ratios)),
                "aligned": float(np.mean([sample["shows"] == named for sample in mine])),
                "label": label_of(rate, near_rate),
            }
        )
    return rows


def table(kind: str, rows: list[dict[str, Any]]) -> str:
    """The truth as a Markdown table, one line per tier and duplication count."""
    keys = sorted({(row["tier"], row["count"]) for row in rows}, key=lambda key: (_TIERS.index(key[0]), -key[1]))
    if kind == "text":
        lines = ["| tier | in training | captions | reproduced | sometimes | not reproduced | mean rate | aligned |"]
    else:
        lines = ["| tier | images in the group | groups | groups hit | hits | hits per 1000 samples |"]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for tier, count in keys:
        part = [row for row in rows if (row["tier"], row["count"]) == (tier, count)]
        if kind == "text":
            labels = Counter(row["label"] for row in part)
            cells = [tier, count, len(part), *(labels[label] for label in LABELS)]
            cells += [f"{np.mean([row[key] for row in part]):.3f}" for key in ("rate", "aligned")]
        else:
            hits = [row["hits"] for row in part]
            cells = [tier, count, len(part), sum(hit > 0 for hit in hits), sum(hits)]
            cells.append(f"{1000 * sum(hits) / part[0]['samples']:.1f}")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


_TIERS = ("plant", "template", "hard", "generic", "unseen")
