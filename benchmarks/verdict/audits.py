"""The verdict of a simulated audit: the product's counting of evidence and its decision, on rows without images."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pyarrow as pa

from diffmem.evaluation.chance import LEVEL
from diffmem.report.case import Circumstances
from diffmem.report.columns import PromptColumns
from diffmem.report.decide import decide
from diffmem.report.digest import _copies
from diffmem.report.evidence import collect
from diffmem.report.matches import Matches

DESCRIPTOR = {"name": "l2-tiled", "misses": None, "images": 3000, "metric": ["tiled-rms", 9]}


def judged(value, group, threshold, texts, level=LEVEL):
    """The verdict.

    Args:
        value: [prompts, images] of the statistic, rising towards a copy.
        group: [prompts, images] near-duplicate group of the nearest training image.
        threshold: of a copy.
        texts: prompt id -> text.
        level: of the test.
    """
    prompts, images = value.shape
    place = np.repeat(np.arange(prompts), images)
    called = (value >= threshold.value).reshape(-1)
    rows = pa.table({
        "similarity": np.full(len(place), 0.5), "background": np.zeros(len(place), bool),
        "verified": np.full(len(place), np.nan),
        "alignment": pa.nulls(len(place), pa.string()),
    })  # fmt: skip
    # Infinite where it copies, for a copy is above any threshold; the digest shows no statistic here.
    matches = Matches(rows, place, value.reshape(-1), called, group.reshape(-1), asdict(threshold))
    columns = PromptColumns(pa.array(sorted(texts)), prompts, np.full(prompts, -1, np.int8), np.zeros(prompts, bool))
    per_prompt = matches.per_prompt(prompts)
    fact = {"threshold": asdict(threshold), "descriptor": DESCRIPTOR, "problems": {}}
    seen = collect(fact, matches, per_prompt, columns, lambda ids: {key: texts[key] for key in ids})
    return decide(_copies(fact, matches, per_prompt, columns), seen, Circumstances(level=level))
