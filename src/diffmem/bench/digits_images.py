"""Every image score on the unconditional digits model, against measured truth: which training images it gives back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.bench.rows import separation
from diffmem.models.target import Target
from diffmem.runs.store import RunStore
from diffmem.scores.spec import parse_image_score
from diffmem.stages.measure.measure import measure
from diffmem.testbeds import digits
from diffmem.testbeds.digits.captions import shuffled
from diffmem.testbeds.digits.data import to_bytes

SCORES = (
    "loss", "pia", "secmi", "vgr-likelihood:steps=20,probes=2", "vgr-trace:steps=20,probes=2",
    "vgr-bottom:steps=25,k=8", "vgr-subspace:steps=25,k=16", "vgr-paper:steps=200,k=16", "invmm:steps=150",
)  # fmt: skip
"""Cheap settings, so that all of them fit into minutes of one thread; `benchmarks/` has the full ones."""
MOST, STEP = 20, 4
SECONDS = 720.0
CONTRASTS = {
    "memorized_vs_members": (("memorized",), ("member",)),
    "trained_vs_heldout": (("memorized", "member"), ("heldout",)),
    "members_vs_nonmembers": (("member",), ("heldout",)),
}


@dataclass(frozen=True)
class Sample:
    """Images of the testbed by kind, ids in a fixed random order; a prefix of each is measured."""

    pixels: Mapping[str, np.ndarray]
    kinds: Mapping[str, tuple[str, ...]]


def digits_images_suite(
    scores: Sequence[str] = SCORES, draws: int = 1, seed: int = 0, silent: bool = False, seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """AUROC of each image score on the unconditional digits testbed, in three contrasts.

    memorized: plants of which at least one of 8192 generated images is a copy (d1/d2 < 1/3); templates, of which only the
    background is copied, are left out. member: images that are in the training set once, none of which was copied.
    heldout: images that no training saw. trained_vs_heldout takes memorized and member together, as many of each;
    members_vs_nonmembers are the de-duplicated members against the held-out images.

    Args:
        scores: which; the row's `score` is the name, `settings` the label with its parameters.
        draws: without effect: image scores say in their parameters how many noises they take.
        seed: root seed of the scores.
        silent: no progress.
        seconds: for all scores together. Each may take an equal part of what the earlier, cheaper ones have left; a round
            of 4 images of each kind (20 at most) is begun only if it is expected to end within that part.

    Returns:
        Rows {"score", "settings", "contrast", "n_positives", "n_negatives", "errors", "auroc" (of the evidence: higher
        = more memorized), "auroc_low", "auroc_high" (95 %), "p_value" (Mann-Whitney, two-sided), "nfe_per_image",
        "seconds_per_image"}; None where a figure cannot be measured. `errors` are images of the contrast without a value.
    """
    import torch

    torch.set_num_threads(1)  # so small a network gains nothing from threads
    target = Target.from_pretrained(digits.model_path("unconditional"), name="testbed:digits-unconditional")
    sample = _sample()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="diffmem-bench-") as folder:
        started = time.perf_counter()
        for number, text in enumerate(scores):
            label = parse_image_score(text).label
            place = Path(folder) / str(number)
            part = (started + seconds - time.perf_counter()) / (len(scores) - number)
            used = _measured(target, sample, text, place, seed, part, silent)
            rows += _rows(label, sample, used, RunStore(place))
    return rows


def _sample() -> Sample:
    data, truth = digits.load(), digits.truth("unconditional")
    hit = {row["group"] for row in truth if row["hits"] > 0}
    plants = [image for image in data.training if image.tier == "plant" and image.group in hit]
    once = [image for image in data.training if image.count == 1 and image.group not in hit]
    kinds = {
        "memorized": tuple(shuffled([image.id for image in plants], 0, "bench", "memorized")[:MOST]),
        "member": tuple(shuffled([image.id for image in once], 0, "bench", "member")[:MOST]),
        "heldout": tuple(shuffled([image.id for image in data.held_out], 0, "bench", "heldout")[:MOST]),
    }
    chosen = {name for names in kinds.values() for name in names}
    pixels = {image.id: to_bytes(image.pixels) for image in data.training if image.id in chosen}
    pixels |= {image.id: to_bytes(image.pixels) for image in data.held_out if image.id in chosen}
    return Sample(pixels, kinds)


def _measured(
    target: Target, sample: Sample, score: str, place: Path, seed: int, seconds: float, silent: bool
) -> dict[str, tuple[str, ...]]:
    """Measure rounds of images of every kind, the first in any case, as long as the time suffices; which were measured."""
    started = time.perf_counter()
    used: dict[str, tuple[str, ...]] = {}
    for count in range(STEP, MOST + 1, STEP):
        used = {kind: names[:count] for kind, names in sample.kinds.items()}
        images = {name: sample.pixels[name] for names in used.values() for name in names}
        begun = time.perf_counter()
        measure(target, images, [score], out=place, seed=seed, silent=silent)
        now = time.perf_counter()
        if now - started + (now - begun) > seconds:
            break
    return used


def _rows(label: str, sample: Sample, used: Mapping[str, Sequence[str]], store: RunStore) -> list[dict[str, Any]]:
    measured = {row["image_id"]: row for row in store.read("measures").to_pylist()}
    good = {name: row for name, row in measured.items() if row["status"] == "ok"}
    counted = [row for row in measured.values() if row["nfe"]]
    cost = {
        "nfe_per_image": float(np.mean([row["nfe"] for row in counted])) if counted else None,
        "seconds_per_image": float(np.mean([row["seconds"] for row in counted])) if counted else None,
    }
    rows = []
    for contrast, sides in CONTRASTS.items():
        names = [[name for kind in side for name in used[kind]] for side in sides]
        values = [np.array([good[name]["evidence"] for name in part if name in good]) for part in names]
        rows.append(
            {"score": label.partition(":")[0], "settings": label, "contrast": contrast, **_figures(*values),
             "errors": sum(name not in good for part in names for name in part), **cost}
        )  # fmt: skip
    return rows


def _figures(positives: np.ndarray, negatives: np.ndarray) -> dict[str, Any]:
    from scipy.stats import mannwhitneyu

    groups = np.arange(len(positives)), np.arange(len(positives), len(positives) + len(negatives))
    found = separation(positives[:, None], negatives[:, None], groups)
    kept = {key: found[key] for key in ("n_positives", "n_negatives", "auroc", "auroc_low", "auroc_high")}
    p_value = float(mannwhitneyu(positives, negatives).pvalue) if len(positives) and len(negatives) else None
    return kept | {"p_value": p_value}
