"""What is known of an arm's images, read from its run directory, in the order of (prompt, draw)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Floats
from diffmem.copies.rule import CopyRule
from diffmem.data.png import decode_png
from diffmem.data.prompts import Prompt
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.runs.asked import asked_rows
from diffmem.runs.facts import read_fact
from diffmem.runs.schemas import schema_of

BATCH = 128


@dataclass(frozen=True)
class ArmTable:
    """An arm's images, [n] each.

    Attributes:
        prompt: number of the image's prompt in the arm's list.
        draw: its draw.
        made: whether there is an image.
        judged: whether it could be compared with the training images (it is not black or constant, and was matched).
        problem: why there is no image, or why it could not be judged; None where it was.
        copied: whether it is called a copy; False where it was not judged.
        train_id: the nearest training image, None without a match.
        group: that image's group of near-duplicates, None without a match.
        similarity: with the nearest training image; NaN without a match.
        aligned: the judge's value; NaN where nothing was judged.
        vectors: descriptors [n, D]; NaN without an image, [n, 0] where no index describes.
        key: content key of each image, hexadecimal.
    """

    prompt: np.ndarray
    draw: np.ndarray
    made: np.ndarray
    judged: np.ndarray
    problem: tuple[str | None, ...]
    copied: np.ndarray
    train_id: tuple[str | None, ...]
    group: tuple[str | None, ...]
    similarity: Floats
    aligned: Floats
    vectors: Floats
    key: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompt)


def read_arm(
    run: Path, prompts: Sequence[Prompt], index: CopyIndex | None = None, judge: TextAlignment | None = None
) -> ArmTable:
    """Read a run directory that was generated, and matched if an index was given.

    Only images that the last command asked for are in it: a run resumed with fewer keeps the others, uncounted.

    Args:
        run: the directory.
        prompts: the arm's list, which numbers the rows; images of other prompts are left out.
        index: describes the images for comparisons between arms; None: nothing is described.
        judge: of text alignment, or None.
    """
    fact = read_fact(run, "copies")
    rule = None if fact is None or fact["threshold"] is None else CopyRule.of_fact(fact["threshold"])
    nearest = {}
    if rule is not None:
        nearest = {
            bytes(row["image_key"]): row
            for table in asked_rows(run, "matches", schema_of("matches").names)
            for row in table.to_pylist()
            if row["rank"] == 1
        }
    place = {prompt.id: number for number, prompt in enumerate(prompts)}
    width = 0 if index is None else index.vectors.shape[1]
    rows: list[tuple[Any, ...]] = []
    for images in _batches(run):
        sound = [row for row in images if row["status"] == "ok" and row["prompt_id"] in place]
        pictures = [decode_png(row["png"]) for row in sound] if index is not None or judge is not None else []
        described = iter(np.asarray(index.describe(pictures), np.float32) if index is not None and pictures else ())
        texts = [prompts[place[row["prompt_id"]]].text for row in sound]
        aligned = iter(judge.judge(pictures, texts).tolist() if judge is not None and pictures else ())
        for row in images:
            if row["prompt_id"] not in place:
                continue
            made = row["status"] == "ok"
            match = nearest.get(bytes(row["key"])) if made else None
            verdict = "cannot be judged" if rule is None else rule.decide(match)
            problem = row["error"] or row["degenerate"] or (None if match or rule is None else "not matched")
            if problem is None and rule is not None and verdict == "cannot be judged":
                problem = "the statistic of a copy is undefined"
            rows.append(
                (place[row["prompt_id"]], row["draw"], made, verdict != "cannot be judged", problem, verdict == "copy",
                 None if match is None else match["train_id"], None if match is None else match["group"],
                 np.nan if match is None else match["similarity"], next(aligned) if made and judge is not None else np.nan,
                 next(described) if made and index is not None else np.full(width, np.nan, np.float32), row["key"].hex())
            )  # fmt: skip
    rows.sort(key=lambda row: row[:2])
    columns = list(zip(*rows, strict=True)) or [()] * 12
    return ArmTable(
        np.array(columns[0], int), np.array(columns[1], int), np.array(columns[2], bool), np.array(columns[3], bool),
        columns[4], np.array(columns[5], bool), columns[6], columns[7], np.array(columns[8], float),
        np.array(columns[9], float), np.stack(columns[10]) if rows else np.zeros((0, width)), columns[11],
    )  # fmt: skip


def _batches(run: Path) -> Iterator[list[dict[str, Any]]]:
    for table in asked_rows(run, "images", ["key", "prompt_id", "draw", "png", "degenerate", "status", "error"]):
        for start in range(0, table.num_rows, BATCH):
            yield table.slice(start, BATCH).to_pylist()
