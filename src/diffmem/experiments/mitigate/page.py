"""What the page of a comparison of mitigations shows, gathered from its run directories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffmem.data.png import decode_png
from diffmem.experiments.mitigate.run import MitigateResult
from diffmem.experiments.mitigate.view import MitigateView, Strip, write_mitigate_page
from diffmem.report.redaction import Embedded, Redaction, embed
from diffmem.runs.store import RunStore

COLUMNS = 10
SIDES = {False: "Memorized prompts", True: "Other prompts"}


def write_page(result: MitigateResult, model: str, alignment: str | None, redact: Redaction = "none") -> Path:
    """Write the page of a comparison.

    Args:
        result: of `mitigate`.
        model: its name.
        alignment: name of the judge, None if there was none.
        redact: what becomes of images.
    """
    strips: dict[str, list[Strip]] = {}
    captions: dict[str, list[str]] = {}
    assert result.plain is not None
    for other, title in SIDES.items():
        numbers = np.unique(result.plain.prompt[result.plain.other == other])[:COLUMNS].tolist()
        if not numbers:
            continue
        shown = [result.prompts[i] for i in numbers]
        captions[title] = [prompt.text for prompt in shown]
        ids = [prompt.id for prompt in shown]
        strips[title] = [Strip(label, _pictures(place, ids, redact)) for label, place in result.places.items()]
    limits = [
        "Shares are of these prompts, this sampler and these noises; prompts that nobody listed are not in them.",
        "A mitigation may trade a copy of one image for a copy of another, or for an image nobody wants: look at the strips.",
    ]
    if alignment is None:
        limits.append("Nothing judged text alignment (--text-alignment).")
    else:
        limits.append(f"Alignment is judged by {alignment}.")
    if not result.plain.other.any():
        limits.append("No other prompts were given (--others), so side effects are not known.")
    return write_mitigate_page(result.folder, MitigateView(model, result.rows, strips, captions, limits + result.notes))


def _pictures(place: Path, ids: Sequence[str], redact: Redaction) -> list[Embedded | None]:
    found: dict[str, Embedded | None] = {}
    for table in RunStore(place).stream("images", ["prompt_id", "draw", "png"]):
        for row in table.to_pylist():
            if row["draw"] == 0 and row["prompt_id"] in ids and row["png"] is not None:
                found[row["prompt_id"]] = embed(decode_png(row["png"]), redact, 128)
    return [found.get(name) for name in ids]
