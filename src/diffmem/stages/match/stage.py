"""The matching stage: every generated image against its nearest training images, at a calibrated threshold."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field

from diffmem.copies import index_files
from diffmem.copies.agreement import agreement
from diffmem.copies.calibration import CopyThreshold, calibrate
from diffmem.copies.descriptors import DEFAULT_DESCRIPTOR, DESCRIPTORS, PIXEL_DESCRIPTOR, make_descriptor
from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.rule import BEFORE_REVIEW, CopyRule
from diffmem.copies.statistics import Statistic
from diffmem.data.images import ImageSet, as_images
from diffmem.data.notes import say
from diffmem.data.png import decode_png
from diffmem.keys import row_key
from diffmem.notebook import is_silent
from diffmem.renamed import RenamedFields
from diffmem.runs.asked import asked_rows
from diffmem.runs.directory import RunDirectory
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.progress import Progress
from diffmem.runs.schemas import schema_of
from diffmem.runs.store import RunStore

BATCH = 256
AGREEMENT = "seed-agreement"
"""The score that says how much the images of one prompt agree."""

_log = logging.getLogger(__name__)


class Matching(RenamedFields):
    """How copies are decided.

    For pixel descriptors the default statistic is the normalised distance (Carlini et al. 2023): it asks whether an image
    is nearer to one training image than the neighbourhood there explains, so plain pictures in dense places are not
    called copies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    new_names: ClassVar[Mapping[str, str]] = {"false_positives": "fpr"}

    descriptor: str = DEFAULT_DESCRIPTOR
    statistic: Statistic | None = Field(None, description="default: the descriptor's own")
    fpr: float = Field(0.01, gt=0, lt=1, description="nominal false-positive rate per prompt")


@dataclass
class MatchResult:
    """What the matching stage did."""

    matched: int = 0
    set_aside: int = 0
    threshold: CopyThreshold | None = None


def build_index(images: ImageSet, descriptor: Descriptor, folder: Path | None, silent: bool = True) -> CopyIndex:
    """Describe a training set, with progress; an interrupted index in its folder goes on.

    Where the pixel matcher runs because nothing better is installed, it says what it does not see and what helps.
    """
    if descriptor.name == PIXEL_DESCRIPTOR == DEFAULT_DESCRIPTOR and not silent:
        say(
            f"images are compared pixel by pixel ({PIXEL_DESCRIPTOR}), which misses {descriptor.misses}; "
            "pip install 'diffmem[features]' to see these, too"
        )
    with Progress(len(images), "describing", unit="training images", silent=silent) as bar:
        return CopyIndex.build(images, descriptor, folder, progress=bar.advance)


def append_images(images: ImageSet, index: CopyIndex, silent: bool = True) -> CopyIndex:
    """Add another set of images to an index, with progress; memory is bounded by one part."""
    with Progress(len(images), "describing", unit="training images", silent=silent) as bar:
        index.append(images, progress=bar.advance)
    return index


def open_index(folder: Path, options: Mapping[str, Any] | None = None) -> CopyIndex:
    """An index on disk with the descriptor that made it, so that images can be searched and added.

    Args:
        folder: of the index.
        options: of the descriptor's class (weights, ...); l2-tiled takes its own from the index.
    """
    about = CopyIndex.load(folder).about
    again = DESCRIPTORS.get(about["name"]).options_again(about["recipe"], options or {})
    return CopyIndex.load(folder, make_descriptor(about["name"], **again))


def training_of(train: Any, options: Mapping[str, Any] | None = None) -> ImageSet | CopyIndex:
    """Training images from whatever `as_images` takes, or an index of them from its folder, with its descriptor."""
    if isinstance(train, (ImageSet, CopyIndex)):
        return train
    if isinstance(train, (str, Path)) and index_files.exists(Path(train)):
        return open_index(Path(train), options)
    return as_images(train)


def index_of(train: Any, descriptor: str, silent: bool = True) -> CopyIndex:
    """The index itself, that of a folder, or one in memory of training images by a descriptor of this name."""
    images = training_of(train)
    if isinstance(images, CopyIndex):
        return images
    return build_index(images, make_descriptor(descriptor, images), None, silent)


def index(
    images: Any, out: str | Path, descriptor: str = DEFAULT_DESCRIPTOR, *, descriptor_options: Mapping[str, Any] | None = None,
    silent: bool | None = None,
) -> CopyIndex:  # fmt: skip
    """Describe training images once, for later matching; the same call goes on where it was stopped.

    Args:
        images: whatever `load_images` takes.
        out: folder of the index; `train=` of every verb takes it.
        descriptor: how images are compared.
        descriptor_options: of the descriptor's class.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
        >>> index = dm.index(images, "index")
        >>> dm.match(images[:2], index)
        FolderMatches(2 copies among 2 images, 0 set aside)
    """
    silent = is_silent(silent)
    listed = as_images(images)
    return build_index(listed, make_descriptor(descriptor, listed, **(descriptor_options or {})), Path(out), silent)


def match_stage(
    run: RunDirectory,
    settings: Matching,
    index: CopyIndex,
    heldout: ImageSet | None,
    images_per_prompt: int,
    silent: bool = True,
    only: Collection[str] | None = None,
) -> MatchResult:
    """Match all images of a run that are not matched yet, and calibrate the threshold of a copy.

    Of a run that holds more images than were asked for last, only those asked for are matched and counted.
    Images that a safety checker blackened or that are constant are set aside and counted, never matched. With `only`, the
    images of these prompts alone: this process does a part.
    """
    result = MatchResult()
    calibrated = calibrate(index, heldout, settings.fpr, images_per_prompt, settings.statistic)
    before = read_fact(run.path, "copies") or {}
    described = index.about | {"images": index.chosen_from or len(index)}
    fact: dict[str, Any] = {"threshold": asdict(calibrated), "descriptor": described, "problems": index.problems,
            "index": index.fingerprint, "train": index.images_fingerprint}  # fmt: skip
    fact = _keep_reviewed(fact, before)
    result.threshold = CopyThreshold(**fact["threshold"])
    write_fact(run.path, "copies", fact)
    done = run.store.finished("matches")
    total = sum(table.num_rows for table in _of_prompts(asked_rows(run.path, "images", ["prompt_id"]), only))
    with (
        run.stage("match", total, 0, ("matches",) if only is None else ()) as clock,
        run.store.writer("matches") as writer,
        Progress(total, "matching", unit="images", silent=silent) as bar,
    ):
        for rows in _batches(run.path, only):
            fresh = []
            for row in rows:
                if row["status"] != "ok" or row["degenerate"]:
                    result.set_aside += row["status"] == "ok"
                elif match_key(row["key"], index.fingerprint) not in done:
                    fresh.append(row)
            writer.write_many(_match_rows(fresh, index))
            result.matched += len(fresh)
            clock.done += len(rows)
            bar.advance(len(rows))
    return result


def _keep_reviewed(fact: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The new fact on copies with the threshold that people set before, if they set it for the same calibration."""
    calibrated = before.get(BEFORE_REVIEW)
    if calibrated is None:
        return fact
    if before.get("index") == fact["index"] and calibrated == json.loads(json.dumps(fact["threshold"])):
        return fact | {"threshold": before["threshold"], BEFORE_REVIEW: calibrated}
    _log.warning(
        "The threshold that 'diffmem review --set-threshold' set was for another calibration and is replaced by that of "
        "the new one; label and set it again."
    )
    return fact


def judge_matches(run: Path) -> dict[bytes, tuple[dict[str, Any], bool]]:
    """Every matched image of a run: its nearest training image (a row of "matches"), and whether it is called a copy."""
    fact = read_fact(run, "copies")
    if fact is None or fact["threshold"] is None:
        return {}
    rule = CopyRule.of_fact(fact["threshold"])
    rows = (
        row
        for table in asked_rows(run, "matches", schema_of("matches").names)
        for row in table.to_pylist()
        if row["rank"] == 1
    )
    return {bytes(row["image_key"]): (row, rule.is_copy(row)) for row in rows}


def match_key(image_key: bytes, index: str) -> bytes:
    """The content key of an image's nearest match."""
    return row_key(stage="matches", image=image_key.hex(), index=index, rank=1)


def _match_rows(rows: Sequence[dict[str, Any]], index: CopyIndex) -> Iterator[dict[str, Any]]:
    if not rows:
        return
    for found in match([decode_png(row["png"]) for row in rows], index):
        row = rows[found.query]
        yield {
            "key": match_key(row["key"], index.fingerprint), "prompt_id": row["prompt_id"], "draw": row["draw"],
            "image_key": row["key"], "rank": found.rank, "train_id": found.train_id, "similarity": found.similarity,
            "ratio": found.ratio, "normalised": found.normalised, "group": found.group,
            "group_size": found.group_size, "background": found.background, "view": found.view,
            "verified": found.verified,
            "alignment": None if found.alignment is None else json.dumps(found.alignment.as_dict()),
            "descriptor": index.about["name"], "status": "ok",
        }  # fmt: skip


def agreement_stage(run: RunDirectory, descriptor: Descriptor) -> int:
    """Seed-to-seed agreement of every prompt's images, as rows of the score `seed-agreement`; needs no training set.

    Returns:
        The number of prompts.
    """
    known = _agreements(run.store)
    by_prompt: dict[str, list[np.ndarray]] = {}
    keys: dict[str, list[str]] = {}
    for rows in _batches(run.path):
        sound = [row for row in rows if row["status"] == "ok" and not row["degenerate"]]
        if sound:
            for row, vector in zip(sound, descriptor.describe([decode_png(r["png"]) for r in sound]), strict=True):
                by_prompt.setdefault(row["prompt_id"], []).append(vector)
                keys.setdefault(row["prompt_id"], []).append(row["key"].hex())
    written = []
    for prompt, vectors in by_prompt.items():
        about = {"stage": "agreement", "images": sorted(keys[prompt]), "descriptor": descriptor.fingerprint}
        earlier = known.get(prompt, [])
        # The last row of a prompt counts. Where a row of these images is there, but one of other images came after it (a
        # command that asked for fewer), it is written again, under a key of its own.
        keyed = [row_key(**about), *(row_key(**about, turn=turn) for turn in range(1, len(earlier) + 1))]
        if (earlier and earlier[-1] in keyed) or (not earlier and len(vectors) < 2):
            continue
        scored: dict[str, Any] = {"key": next(key for key in keyed if key not in earlier), "prompt_id": prompt,
                               "score": AGREEMENT, "version": "1", "draw": None, "nfe": 0.0}  # fmt: skip
        if len(vectors) < 2:
            scored |= {
                "value": None,
                "components": None,
                "status": "skipped",
                "error": "one image agrees with no other",
            }
        else:
            found = agreement(np.stack(vectors), descriptor.metric, descriptor.copy_similarity)
            scored |= {"value": found.mean, "components": json.dumps(asdict(found)), "status": "ok"}
        written.append(scored)
    if written:
        run.store.append("scores", written)
        run.complete("scores")
    return len(by_prompt)


def _agreements(store: RunStore) -> dict[str, list[bytes]]:
    """The keys of the agreement rows of each prompt, as they were written."""
    found: dict[str, list[bytes]] = {}
    for table in store.stream("scores", ["key", "prompt_id", "score"]):
        for row in table.to_pylist():
            if row["score"] == AGREEMENT:
                found.setdefault(row["prompt_id"], []).append(row["key"])
    return found


def _batches(run: Path, only: Collection[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    columns = ["key", "prompt_id", "draw", "png", "degenerate", "status"]
    for table in _of_prompts(asked_rows(run, "images", columns), only):
        for start in range(0, table.num_rows, BATCH):
            yield table.slice(start, BATCH).to_pylist()


def _of_prompts(tables: Iterator[pa.Table], only: Collection[str] | None) -> Iterator[pa.Table]:
    """The rows of these prompts; all with None."""
    if only is None:
        yield from tables
        return
    wanted = pa.array(sorted(only), pa.string())
    for table in tables:
        yield table.filter(pc.is_in(table["prompt_id"], value_set=wanted))
