"""The most copied training images over the checkpoints: what one prompt and noise give near each of them, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmem.atomic import write_atomic
from diffmem.copies.index import CopyIndex
from diffmem.data.png import png_bytes
from diffmem.experiments.monitor.summary import WatchedImage
from diffmem.runs.store import RunStore
from diffmem.stages.match.stage import judge_matches

IMAGES = 6
LOOKS = 8
PICTURES = "pictures"


def watched_images(folder: Path, facts: Sequence[Mapping[str, Any]], index: CopyIndex) -> Iterator[WatchedImage]:
    """The training images that most images of any checkpoint are called copies of; without copies, the nearest ones.

    For each: the prompt and noise whose image came nearest to it, and what they gave at up to eight checkpoints.

    Args:
        folder: of the run; pictures are kept in `pictures/` of it.
        facts: of the checkpoints, by step.
        index: of the training images.
    """
    matched = [(fact, _images(folder / fact["place"])) for fact in facts]
    best: dict[str, tuple[tuple[bool, float], tuple[str, int]]] = {}
    count: dict[str, int] = {}
    for _, images in matched:
        for (text, draw), (row, copied, _) in images.items():
            name = row["train_id"]
            count[name] = count.get(name, 0) + copied
            rank = (copied, float(row["similarity"]))
            if name not in best or rank > best[name][0]:
                best[name] = (rank, (text, draw))
    order = sorted(best, key=lambda name: (-count[name], *(-float(v) for v in best[name][0])))
    for number, name in enumerate(order[:IMAGES]):
        key = best[name][1]
        there = [(fact["row"]["step"], images[key]) for fact, images in matched if key in images]
        step = max(1, -(-len(there) // LOOKS))
        shown = there[::-1][::step][::-1]
        generated = []
        for at, (_, copied, png) in shown:
            file = f"{PICTURES}/{number}-{at}.png"
            write_atomic(folder / file, png)
            generated.append((at, file, bool(copied)))
        training = index.image(name).image
        file = f"{PICTURES}/{number}-training.png"
        if training is not None:
            write_atomic(folder / file, png_bytes(training))
        yield WatchedImage(
            train_id=name, caption=key[0], training=None if training is None else file, generated=tuple(generated)
        )


def _images(run: Path) -> dict[tuple[str, int], tuple[Mapping[str, Any], bool, bytes]]:
    """(prompt's text, draw) -> match, whether it is a copy, and the picture."""
    matches = judge_matches(run)
    store = RunStore(run)
    texts = {row["prompt_id"]: row["text"] for row in store.read("prompts", ["prompt_id", "text"]).to_pylist()}
    found: dict[tuple[str, int], tuple[Mapping[str, Any], bool, bytes]] = {}
    for table in store.stream("images", ["key", "prompt_id", "draw", "png"]):
        for row in table.to_pylist():
            match = matches.get(bytes(row["key"]))
            if match is not None and row["png"] is not None:
                found[texts[row["prompt_id"]], row["draw"]] = (match[0], match[1], row["png"])
    return found
