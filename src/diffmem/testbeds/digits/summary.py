"""From raw matches to the truth of the digits models: per caption (`testbeds.labels`), and hits per training group."""

from __future__ import annotations

from collections import Counter
from typing import Any

from diffmem.testbeds.digits.data import load
from diffmem.testbeds.digits.matching import RATIO
from diffmem.testbeds.labels import Sample as Sample
from diffmem.testbeds.labels import label_of as label_of
from diffmem.testbeds.labels import summarize
from diffmem.testbeds.labels import table as table


def summarize_text(samples: list[Sample]) -> list[dict[str, Any]]:
    """One row per caption, in the order of the data; the columns are described in `shipped.truth`."""
    return summarize(samples, load().prompts, "digit")


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
