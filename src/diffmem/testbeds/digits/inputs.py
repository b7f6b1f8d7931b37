"""Write the testbed's data as what an audit takes as input: a prompt list and image sets as Parquet."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffmem.errors import UsageError
from diffmem.testbeds.digits.captions import shuffled
from diffmem.testbeds.digits.data import ROOT, Pixels, TrainingImage, load, to_bytes
from diffmem.testbeds.digits.shipped import model_path, truth

if TYPE_CHECKING:
    import pyarrow as pa

LABELS = {"reproduced": True, "not reproduced": False, "sometimes": None}


@dataclass(frozen=True)
class Inputs:
    """Where the inputs of an audit lie: the pipeline folder, the training set, held-out images, the prompt list."""

    model: Path
    train: Path
    held_out: Path
    prompts: Path


def materialize(folder: Path | str, subset: int | None = None, prediction: str = "epsilon") -> Inputs:
    """Write `train.parquet`, `heldout.parquet` and `prompts.jsonl` into a folder.

    The image sets are in the layout of Hugging Face datasets: a column `image` of {bytes, path}, PNG, beside `id`,
    `caption` and `digit`. The training set holds its duplicates, as a real one does. A prompt has `id`, `caption`,
    `tier`, `digit`, `group`, `count` and `label`: true if the model was measured to reproduce an image from it, false
    if not, null in between.

    Args:
        folder: made if it does not exist; existing files are replaced.
        subset: take only so many prompts, spread over tiers, counts and digits; at most all 740.
        prediction: which text model, "epsilon", "v" or "flow"; the labels are those measured on it.

    Returns:
        The paths; the model is where it ships, no copy is made.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    rows = choose(truth("text", prediction), subset)
    model = model_path("text", prediction)
    folder.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(model, folder / "train.parquet", folder / "heldout.parquet", folder / "prompts.jsonl")
    pq.write_table(_training(), inputs.train)
    held_out = load().held_out
    pq.write_table(
        _images(
            [image.id for image in held_out],
            [image.pixels for image in held_out],
            None,
            [image.digit for image in held_out],
        ),
        inputs.held_out,
    )
    keep = ("id", "caption", "tier", "digit", "group", "count")
    lines = [json.dumps({**{key: row[key] for key in keep}, "label": LABELS[row["label"]]}) for row in rows]
    inputs.prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return inputs


def choose(rows: list[dict[str, Any]], subset: int | None) -> list[dict[str, Any]]:
    """A subset of rows in their order in which every (tier, count) keeps its share, spread evenly over digits."""
    if subset is None:
        return rows
    if not 1 <= subset <= len(rows):
        raise UsageError(f"A subset of {subset} prompts was asked for; there are {len(rows)}, give 1 to {len(rows)}.")
    strata: dict[tuple[str, int], list[int]] = {}
    for index, row in enumerate(rows):
        strata.setdefault((row["tier"], row["count"]), []).append(index)
    # Every stratum is spread over [0, 1) at equal steps; cutting the merged order keeps all shares at once.
    spread: list[tuple[float, int]] = []
    for number, members in enumerate(strata.values()):
        spread += [
            ((place + 0.5) / len(members), index) for place, index in enumerate(_by_turns(rows, members, number))
        ]
    return [rows[index] for index in sorted(index for _, index in sorted(spread)[:subset])]


def _by_turns(rows: list[dict[str, Any]], members: list[int], number: int) -> list[int]:
    """The members in random order, but one digit after the other."""
    order = shuffled(members, ROOT, "subset", number)
    seen: dict[int, int] = {}
    turns: list[tuple[int, int]] = []
    for index in order:
        digit = rows[index]["digit"]
        turns.append((seen.get(digit, 0), index))
        seen[digit] = seen.get(digit, 0) + 1
    return [index for _, index in sorted(turns, key=lambda turn: turn[0])]


def _training() -> pa.Table:
    """The training set with its duplicates, in random order: a duplicate does not stand beside its twin."""
    ids: list[str] = []
    images: list[TrainingImage] = []
    for image in load().training:
        ids += [image.id if image.count == 1 else f"{image.id}-copy-{copy:02d}" for copy in range(image.count)]
        images += [image] * image.count
    order = shuffled(range(len(ids)), ROOT, "order of the training set")
    captions = [shuffled(image.captions, ROOT, "caption of", name)[0] for name, image in zip(ids, images, strict=True)]
    return _images(
        [ids[i] for i in order],
        [images[i].pixels for i in order],
        [captions[i] for i in order],
        [images[i].digit for i in order],
    )


def _images(ids: list[str], pixels: list[Pixels], captions: list[str] | None, digits: list[int]) -> pa.Table:
    import pyarrow as pa

    pngs = [{"bytes": png(picture), "path": f"{name}.png"} for name, picture in zip(ids, pixels, strict=True)]
    columns: dict[str, Any] = {"id": ids, "image": pngs, "digit": pa.array(digits, pa.int32())}
    if captions is not None:
        columns["caption"] = captions
    return pa.table(columns)


def png(pixels: npt.NDArray[np.generic]) -> bytes:
    """Intensities 0..16, [8, 8], as an 8-bit grey PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_bytes(pixels)).save(buffer, "PNG")
    return buffer.getvalue()
