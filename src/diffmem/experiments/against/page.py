"""The comparison of a fine-tune with its base, as one HTML file that loads nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from diffmem.copies.index import CopyIndex
from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.report import prose
from diffmem.report.html import FILE
from diffmem.report.page import write_page
from diffmem.report.redaction import Embedded, Redaction, embed
from diffmem.runs.facts import read_fact
from diffmem.runs.store import RunStore

PAGE = "comparison.html"
SHOWN = 60
"""Prompts of the page; all of them are in comparison.json."""


@dataclass(frozen=True)
class Leak:
    """One prompt in both runs.

    Attributes:
        where: with which of the models at least one image is called a copy.
        lora_copies, lora_images, base_copies, base_images: images called copies, and judged.
        draw: the first draw whose image is called a copy, with the LoRA if there is one; None without copies.
        train_ids: the training images that are copied, the LoRA's first.
    """

    prompt_id: str
    prompt: str
    where: Literal["lora_only", "both", "base_only", "neither"]
    lora_copies: int
    lora_images: int
    base_copies: int
    base_images: int
    draw: int | None
    train_ids: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A fine-tune minus its base, on the same prompts and initial noises.

    Attributes:
        lora, base: names of the models.
        prompts, images, training_images: how many are copied {"lora_only", "both", "base_only", "neither"}; images are
            paired by prompt and noise, training images are groups of near-duplicates; None where none were searched.
        differences: rows as `diffmem compare` gives them, LoRA minus base, with 95 % intervals over clusters of prompts.
        leaks: prompts that are copied with either, those with the LoRA only first.
        limits: what this cannot show.
    """

    lora: str
    base: str
    prompts: dict[str, int] | None
    images: dict[str, int] | None
    training_images: dict[str, int] | None
    differences: tuple[dict[str, Any], ...]
    leaks: tuple[Leak, ...]
    limits: tuple[str, ...]

    @property
    def headline(self) -> str:
        """One sentence."""
        if self.prompts is None or self.training_images is None:
            return "No training set was searched, so only scores are compared."
        total = sum(self.prompts.values())
        new, images = self.prompts["lora_only"], self.training_images["lora_only"]
        both = prose.count(self.prompts["both"], "prompt")
        return (
            f"{new} of {prose.count(total, 'prompt')} and {prose.count(images, 'training image')} are copied with the LoRA "
            f"and not by its base; {both} by both, {self.prompts['base_only']} by the base only."
        )


@dataclass(frozen=True)
class Shown:
    """One prompt of the page: the LoRA's image, the base's from the same noise, the training image; None if not shown."""

    leak: Leak
    pictures: tuple[Embedded | None, Embedded | None, Embedded | None]


def write_comparison(folder: Path, comparison: Comparison, lora: str, base: str, redact: Redaction = "none") -> Path:
    """Write `comparison.html` beside the two run directories.

    Args:
        folder: holds both.
        comparison: what to show.
        lora: name of the fine-tune's run directory.
        base: name of the base's.
        redact: what becomes of images.

    Returns:
        The page's path.
    """
    limits = [*comparison.limits]
    if redact != "none":
        limits.append(f"Pictures are {'blurred' if redact == 'blur' else 'left out'} on this page.")
    return write_page(
        folder / PAGE, files(__package__) / "page.html", title=f"LoRA against its base: {comparison.lora}",
        kicker="Memorization, fine-tune against base", headline=comparison.headline, limits=limits,
        style=".trio { grid-template-columns: repeat(3, 1fr); }\n", c=comparison,
        shown=_pictures(folder, comparison, lora, base, redact), lora_report=f"{lora}/{FILE}",
        base_report=f"{base}/{FILE}",
    )  # fmt: skip


def _pictures(folder: Path, comparison: Comparison, lora: str, base: str, redact: Redaction) -> list[Shown]:
    leaks = comparison.leaks[:SHOWN]
    wanted = {(leak.prompt_id, leak.draw) for leak in leaks}
    made = [_generated(folder / name, wanted, redact) for name in (lora, base)]
    index = _index(folder / lora)
    shown = []
    for leak in leaks:
        key = (leak.prompt_id, leak.draw)
        shown.append(Shown(leak, (made[0].get(key), made[1].get(key), _training(index, leak, redact))))
    return shown


def _generated(
    run: Path, wanted: set[tuple[str, int | None]], redact: Redaction
) -> dict[tuple[str, int | None], Embedded | None]:
    found: dict[tuple[str, int | None], Embedded | None] = {}
    for table in RunStore(run).stream("images", ["prompt_id", "draw", "png"]):
        for row in table.to_pylist():
            key = (row["prompt_id"], row["draw"])
            if key in wanted and row["png"] is not None:
                found[key] = embed(decode_png(row["png"]), redact)
    return found


def _index(run: Path) -> CopyIndex | None:
    fact = read_fact(run, "copies")
    if fact is None or fact["threshold"] is None:
        return None
    try:
        return CopyIndex.load(run / "index" / fact["descriptor"]["name"])
    except DataError:
        return None


def _training(index: CopyIndex | None, leak: Leak, redact: Redaction) -> Embedded | None:
    if index is None or not leak.train_ids:
        return None
    try:
        image = index.image(leak.train_ids[0]).image
    except DataError:
        return None
    return None if image is None else embed(image, redact)


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain values, with its headline."""
    return {"headline": comparison.headline} | asdict(comparison)
