"""The two-gallery control of an audit: the same images against pictures that no training has seen, as many of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffmem.copies.index import CopyIndex
from diffmem.copies.rule import CopyRule
from diffmem.copies.two_galleries import copied_groups
from diffmem.data.images import ImageSet
from diffmem.data.png import decode_png
from diffmem.errors import UsageError
from diffmem.runs.asked import asked_rows
from diffmem.runs.facts import read_fact, write_fact
from diffmem.stages.match.stage import build_index

BATCH = 64


def compare_with_gallery(run: Path, index: CopyIndex, gallery: ImageSet, silent: bool) -> None:
    """Write the fact `gallery`: which prompts' images are called copies of either, by near-duplicate group.

    Costs as much as matching twice more; it is made again only where images, training set or gallery are others.

    Args:
        run: the run directory, matched.
        index: of the training set, with its descriptor.
        gallery: pictures of the same kind that no training has seen.
        silent: no progress on stderr.
    """
    fact = read_fact(run, "copies")
    if fact is None or fact["threshold"] is None:
        return
    if index.descriptor is None:
        raise UsageError("The index of the training images has no descriptor to compare a gallery by; give the images.")
    rule = CopyRule.of_fact(fact["threshold"])
    prompts: list[str] = []
    vectors = []
    for table in asked_rows(run, "images", ["prompt_id", "png", "degenerate", "status"]):
        for start in range(0, table.num_rows, BATCH):
            rows = table.slice(start, BATCH).to_pylist()
            sound = [row for row in rows if row["status"] == "ok" and not row["degenerate"]]
            if sound:
                prompts += [row["prompt_id"] for row in sound]
                vectors.append(index.describe([decode_png(row["png"]) for row in sound]))
    about = {
        "images": len(prompts), "index": index.fingerprint, "gallery": gallery.fingerprint, "statistic": rule.statistic,
        "value": rule.value,
    }  # fmt: skip
    if not prompts or (read_fact(run, "gallery") or {}).get("about") == about:
        return
    control = build_index(gallery, index.descriptor, None, silent)
    train, other = copied_groups(np.concatenate(vectors), index, control, rule)
    called: dict[str, dict[str, list[str]]] = {}
    for prompt, one, two in zip(prompts, train, other, strict=True):
        for side, group in (("train", one), ("gallery", two)):
            if group is not None:
                called.setdefault(prompt, {"train": [], "gallery": []})[side].append(group)
    write_fact(
        run, "gallery",
        {"about": about, "size": min(len(index), len(control)), "prompts": len({*prompts}), "called": called},
    )  # fmt: skip
