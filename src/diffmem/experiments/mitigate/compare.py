"""What was seen without and with a mitigation, paired by prompt and noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Floats
from diffmem.copies.precision_recall import NEAREST, precision_recall
from diffmem.data.png import decode_png
from diffmem.data.prompts import PromptList
from diffmem.evaluation.estimate import Bootstrap, Estimate
from diffmem.evaluation.paired import mean_difference
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.runs.directory import RunDirectory
from diffmem.stages.match.stage import called

OTHER = "other"
BATCH = 128


@dataclass(frozen=True)
class Seen:
    """One setting's images in the order of (prompt, draw), [n] each.

    Attributes:
        prompt: number of the image's prompt.
        draw: its draw.
        other: whether the prompt is one of those that are not memorized.
        made: whether there is an image.
        copied: whether it is called a copy (an image that is black or constant is none); False without an image.
        similarity: with the nearest training image; NaN without a match.
        aligned: the judge's value; NaN where nothing was judged.
        vectors: descriptors [n, D]; NaN without an image.
    """

    prompt: np.ndarray
    draw: np.ndarray
    other: np.ndarray
    made: np.ndarray
    copied: np.ndarray
    similarity: Floats
    aligned: Floats
    vectors: Floats


def look(run: RunDirectory, prompts: PromptList, index: CopyIndex, judge: TextAlignment | None) -> Seen:
    """Read a run that was generated and matched."""
    calls = called(run)
    place = {prompt.id: number for number, prompt in enumerate(prompts)}
    listed: list[tuple[int, int, bool, bool, float, float]] = []
    vectors: list[Floats] = []
    for rows in _batches(run):
        pictures = [decode_png(row["png"]) for row in rows if row["status"] == "ok"]
        texts = [prompts[place[row["prompt_id"]]].text for row in rows if row["status"] == "ok"]
        described = iter(np.asarray(index.describe(pictures), np.float32) if pictures else ())
        judged = iter(judge.judge(pictures, texts).tolist() if judge is not None and pictures else ())
        for row in rows:
            made = row["status"] == "ok"
            nearest, copied = calls.get(bytes(row["key"]), ({"similarity": np.nan}, False))
            aligned = next(judged) if made and judge is not None else np.nan
            listed.append((place[row["prompt_id"]], row["draw"], made, copied, nearest["similarity"], aligned))
            vectors.append(next(described) if made else np.full(index.vectors.shape[1], np.nan, np.float32))
    order = sorted(range(len(listed)), key=lambda i: listed[i][:2])
    columns = list(zip(*(listed[i] for i in order), strict=True)) or [()] * 6
    other = np.array([prompts[i].group == OTHER for i in columns[0]], bool)
    return Seen(
        np.array(columns[0], int), np.array(columns[1], int), other, np.array(columns[2], bool),
        np.array(columns[3], bool), np.array(columns[4], float), np.array(columns[5], float),
        np.stack([vectors[i] for i in order]) if order else np.zeros((0, index.vectors.shape[1])),
    )  # fmt: skip


def _batches(run: RunDirectory) -> Iterator[list[dict[str, Any]]]:
    for table in run.store.stream("images", ["key", "prompt_id", "draw", "png", "status"]):
        for start in range(0, table.num_rows, BATCH):
            yield table.slice(start, BATCH).to_pylist()


def compared(
    method: str, setting: str, before: Seen, after: Seen, index: CopyIndex, draws: Sequence[int] | None = None
) -> dict[str, Any]:
    """A row: what a mitigation did to memorized prompts, to the others, and to the quality.

    Args:
        method: name of the mitigation.
        setting: with its parameters.
        before: without it.
        after: with it.
        index: of the training images.
        draws: only these draws; None for all.

    Returns:
        "copied_before", "copied_after": shares of the memorized prompts' images, the latter with the 95 % interval
        "copied_after_low" and "_high"; "copied_change" and "alignment_change" with "_low" and "_high": after minus before,
        paired by prompt and noise, prompts resampled; "similarity_*": mean with the nearest training image;
        "side_effect_similarity": of the others' images before and after, in the descriptor's similarity (1: unchanged), and
        "side_effect_reference": that of two noises of one prompt;
        "others_*": the same figures of the others; "quality_*": precision of all images against the training images.
        None where nothing can tell.
    """
    both = before.made & after.made
    if draws is not None:
        both &= np.isin(before.draw, draws)
    row: dict[str, Any] = {"method": method, "setting": setting, "status": "ok", "reason": None}
    left_out = int((~(before.made & after.made)).sum())
    for prefix, side in (("", both & ~before.other), ("others_", both & before.other)):
        row |= _side(prefix, before, after, side)
    side = both & before.other
    row |= dict.fromkeys(("side_effect_similarity", "side_effect_low", "side_effect_high", "side_effect_reference"))
    if side.any():
        alike = index.metric.exact(before.vectors[side], after.vectors[side])
        found = _mean("side effect", alike, before.prompt[side])
        row["side_effect_reference"] = _between_noises(before, side, index)
        row |= {"side_effect_similarity": found.value, "side_effect_low": found.low, "side_effect_high": found.high}
    for name, seen in (("before", before), ("after", after)):
        quality = _quality(seen, both, index)
        row |= {
            f"quality_{name}": quality.value,
            f"quality_{name}_low": quality.low,
            f"quality_{name}_high": quality.high,
        }
    return row | {"errors": left_out}


def _between_noises(seen: Seen, side: np.ndarray, index: CopyIndex) -> float | None:
    """How alike two unmitigated images of one prompt from different noises are, on average."""
    at = np.flatnonzero(side)
    pairs = [(i, j) for i, j in pairwise(at) if seen.prompt[i] == seen.prompt[j]]
    if not pairs:
        return None
    one, two = (np.array(part) for part in zip(*pairs, strict=True))
    return float(index.metric.exact(seen.vectors[one], seen.vectors[two]).mean())


_PARTS = ("before", "after", "after_low", "after_high", "change", "change_low", "change_high")


def _side(prefix: str, before: Seen, after: Seen, side: np.ndarray) -> dict[str, Any]:
    groups = before.prompt[side]
    row: dict[str, Any] = {f"{prefix}n_prompts": len(np.unique(groups)), f"{prefix}n_images": int(side.sum())}
    for name, one, two in (
        ("copied", before.copied, after.copied), ("alignment", before.aligned, after.aligned),
        ("similarity", before.similarity, after.similarity),
    ):  # fmt: skip
        told = side & ~np.isnan(one.astype(float)) & ~np.isnan(two.astype(float))
        keys = [f"{prefix}{name}_{part}" for part in _PARTS]
        if not told.any():
            row |= dict.fromkeys(keys)
            continue
        a, b, members = one[told].astype(float), two[told].astype(float), before.prompt[told]
        bootstrap = Bootstrap(len(b), members)
        share = bootstrap.share(name, b > 0) if name == "copied" else _mean(name, b, members)
        change = mean_difference(b, a, members)
        row |= dict(zip(keys, (float(a.mean()), float(b.mean()), share.low, share.high, *change), strict=True))
    return row


def _mean(name: str, values: Floats, groups: np.ndarray) -> Estimate:
    return Bootstrap(len(values), groups).interval(name, lambda at: float(values[at].mean()))


def _quality(seen: Seen, chosen: np.ndarray, index: CopyIndex) -> Estimate:
    vectors = seen.vectors[chosen]
    if min(len(vectors), len(index)) <= NEAREST:
        return Estimate.missing(f"precision takes more than {NEAREST} images of either set")
    return precision_recall(vectors, index.sample(), index.metric, groups=seen.prompt[chosen]).precision
