"""A testbed's data as what an audit takes as input: a prompt list and image sets as Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffmem.errors import UsageError
from diffmem.testbeds.wording import shuffled

if TYPE_CHECKING:
    import pyarrow as pa

LABELS = {"reproduced": True, "not reproduced": False, "sometimes": None}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Inputs:
    """Where the inputs of an audit lie: the pipeline folder, the training set, held-out images, the prompt list."""

    model: Path
    train: Path
    held_out: Path
    prompts: Path


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table; Arrow itself takes no names that are not UTF-8."""
    import pyarrow.parquet as pq

    with path.open("wb") as file:
        pq.write_table(table, file)


def write_inputs(
    folder: Path,
    model: Path,
    rows: Sequence[dict[str, Any]],
    training: Sequence[Any],
    held_out: Sequence[Any],
    attribute: str,
    encode: Callable[[Any], bytes],
    root: int,
) -> Inputs:
    """Write `train.parquet`, `heldout.parquet` and `prompts.jsonl` into a folder, which is made if need be.

    Args:
        folder: where.
        model: pipeline folder; no copy is made.
        rows: of the truth, one per prompt.
        training: distinct images with `id`, `pixels`, `captions`, `count` and the attribute.
        held_out: images with `id`, `pixels` and the attribute.
        attribute: what captions name, "digit" or "kind": a column of all three files.
        encode: pixels as PNG.
        root: root seed of the order of the training set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(model, folder / "train.parquet", folder / "heldout.parquet", folder / "prompts.jsonl")
    ids, which, captions = (list(part) for part in zip(*_order(training, root), strict=True))
    pngs = [encode(image.pixels) for image in training]
    repeated = _table(ids, [pngs[i] for i in which], attribute, [getattr(training[i], attribute) for i in which])
    write_parquet(repeated.append_column("caption", [captions]), inputs.train)
    unseen = _table(
        [image.id for image in held_out],
        [encode(image.pixels) for image in held_out],
        attribute,
        [getattr(image, attribute) for image in held_out],
    )
    write_parquet(unseen, inputs.held_out)
    _write_prompts(inputs.prompts, rows, attribute)
    return inputs


def _write_prompts(path: Path, rows: Sequence[dict[str, Any]], attribute: str) -> None:
    """Write rows of a truth as a prompt list (JSONL) whose `label` is true, false or, in between, null."""
    keep = ("id", "caption", "tier", attribute, "group", "count")
    lines = [json.dumps({**{key: row[key] for key in keep}, "label": LABELS[row["label"]]}) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def choose(rows: list[dict[str, Any]], subset: int | None, root: int, attribute: str) -> list[dict[str, Any]]:
    """A subset of rows in their order in which every (tier, count) keeps its share, spread evenly over an attribute.

    Args:
        rows: of a truth.
        subset: how many; None for all.
        root: root seed.
        attribute: the column that is taken by turns.
    """
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
        turns = _by_turns(rows, shuffled(members, root, "subset", number), attribute)
        spread += [((place + 0.5) / len(members), index) for place, index in enumerate(turns)]
    return [rows[index] for index in sorted(index for _, index in sorted(spread)[:subset])]


def _by_turns(rows: list[dict[str, Any]], order: list[int], attribute: str) -> list[int]:
    """The members in their order, but one value of the attribute after the other."""
    seen: dict[Any, int] = {}
    turns: list[tuple[int, int]] = []
    for index in order:
        value = rows[index][attribute]
        turns.append((seen.get(value, 0), index))
        seen[value] = seen.get(value, 0) + 1
    return [index for _, index in sorted(turns, key=lambda turn: turn[0])]


def _order(training: Sequence[Any], root: int) -> list[tuple[str, int, str]]:
    """The training set with its duplicates, in random order: a duplicate does not stand beside its twin.

    Gives for every image in the set its id, which distinct image it is, and one of that image's captions.
    """
    ids: list[str] = []
    which: list[int] = []
    for number, image in enumerate(training):
        ids += [image.id if image.count == 1 else f"{image.id}-copy-{copy:02d}" for copy in range(image.count)]
        which += [number] * image.count
    order = shuffled(range(len(ids)), root, "order of the training set")
    texts = [shuffled(training[i].captions, root, "caption of", name)[0] for name, i in zip(ids, which, strict=True)]
    return [(ids[i], which[i], texts[i]) for i in order]


def _table(ids: list[str], pngs: list[bytes], attribute: str, values: list[Any]) -> pa.Table:
    """An image set in the layout of Hugging Face datasets: `image` of {bytes, path}, beside `id` and the attribute."""
    import pyarrow as pa

    pictures = [{"bytes": png, "path": f"{name}.png"} for name, png in zip(ids, pngs, strict=True)]
    kind = pa.int32() if isinstance(values[0], int) else pa.string()
    return pa.table({"id": ids, "image": pictures, attribute: pa.array(values, kind)})


def png(pixels: Bytes) -> bytes:
    """8-bit pixels, [height, width] or [height, width, 3], as a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
