"""From raw matches to the truth: rates and labels per caption, hits per training group, and their tables."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from diffmem.testbeds.digits.data import load
from diffmem.testbeds.digits.matching import NEAR_RATIO, RATIO

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


def summarize_text(samples: list[Sample]) -> list[dict[str, Any]]:
    """One row per caption, in the order of the data; the columns are described in `shipped.truth`."""
    images: dict[str, list[Sample]] = {}
    for sample in samples:
        images.setdefault(sample["id"], []).append(sample)
    rows = []
    for prompt in load().prompts:
        mine = images[prompt.id]
        ratios = np.array([sample["d1"] / sample["d2"] for sample in mine])
        own = np.array([sample["nearest"] == prompt.group for sample in mine])
        rate, near_rate = float((ratios < RATIO).mean()), float((ratios < NEAR_RATIO).mean())
        rows.append(
            {
                "id": prompt.id,
                "caption": prompt.text,
                "tier": prompt.tier,
                "digit": prompt.digit,
                "group": prompt.group,
                "count": prompt.count,
                "rate": rate,
                "near_rate": near_rate,
                "own_rate": float(((ratios < RATIO) & own).mean()),
                "median_ratio": float(np.median(ratios)),
                "aligned": float(np.mean([sample["shows"] == prompt.digit for sample in mine])),
                "label": label_of(rate, near_rate),
            }
        )
    return rows


def summarize_unconditional(samples: list[Sample]) -> list[dict[str, Any]]:
    """One row per training group, in the order of the data; `count` is how many training images it has."""
    hits = Counter(sample["nearest"] for sample in samples if sample["d1"] < RATIO * sample["d2"])
    sizes: Counter[str] = Counter()
    for image in load().training:
        sizes[image.group] += image.count
    members = {image.group: image for image in load().training}
    return [
        {
            "group": group,
            "tier": members[group].tier,
            "digit": members[group].digit,
            "count": size,
            "hits": hits[group],
            "samples": len(samples),
        }
        for group, size in sizes.items()
    ]


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
