"""`summary.json` of `diffmem audit --against-base`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from diffmem.report import prose
from diffmem.runs.summary import Row, ShownTable, Summary

BASE, TUNED = "base", "lora"
"""Names of the two arms and of their run directories."""
SHOWN = 20
"""Prompts that are printed."""
Where = Literal["lora_only", "both", "base_only", "neither"]
IN_WORDS = {"lora_only": "the LoRA only", "both": "both", "base_only": "the base only", "neither": "neither"}


class Leak(BaseModel):
    """One prompt in both runs.

    Attributes:
        where: with which of the models at least one image is called a copy.
        lora_copies, lora_images, base_copies, base_images: images called copies, and judged.
        draw: the first draw whose image is called a copy, with the LoRA if there is one; None without copies.
        train_ids: the training images that are copied, the LoRA's first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_id: str
    prompt: str
    where: Where
    lora_copies: int
    lora_images: int
    base_copies: int
    base_images: int
    draw: int | None
    train_ids: tuple[str, ...]


class AgainstSummary(Summary):
    """A fine-tune minus its base, on the same prompts and initial noises.

    Attributes:
        lora, base: names of the models.
        prompts, images, training_images: how many are copied {"lora_only", "both", "base_only", "neither"}; images are
            paired by prompt and noise, training images are groups of near-duplicates; None where none were searched.
        differences: rows as `diffmem compare` gives them, LoRA minus base, with 95 % intervals over clusters of prompts.
        leaks: prompts that are copied with either, those with the LoRA only first.
    """

    verb: ClassVar[str] = "against"

    lora: str
    base: str
    prompts: dict[str, int] | None
    images: dict[str, int] | None
    training_images: dict[str, int] | None
    differences: tuple[Row, ...]
    leaks: tuple[Leak, ...]

    def nothing_judged(self) -> str | None:
        """A training set was searched, and no prompt has images of both models that could be compared with it."""
        if self.prompts is not None and not sum(self.prompts.values()):
            return "no prompt has images of both models that could be compared with the training images."
        return None

    def tables(self) -> list[ShownTable]:
        """The differences, and the prompts that are copied."""
        columns = ["what", "first", "second", "difference", "low", "high", "prompts"]
        names = ["what", "with the LoRA", "base", "difference", "low", "high", "prompts"]
        rows: list[dict[str, Any]] = [
            {"copied with": IN_WORDS[leak.where], "with the LoRA": f"{leak.lora_copies} of {leak.lora_images}",
             "base": f"{leak.base_copies} of {leak.base_images}", "training images": ", ".join(leak.train_ids[:3]),
             "prompt": leak.prompt}
            for leak in self.leaks[:SHOWN]
        ]  # fmt: skip
        headings = dict(zip(columns, names, strict=True))
        tables = [ShownTable("With the LoRA minus the base, 95 % intervals", self.differences, headings)]
        if rows:
            tables.append(ShownTable(f"Prompts that are copied ({len(rows)} of {len(self.leaks)})", rows))
        return tables


def headline(prompts: Mapping[str, int] | None, training_images: Mapping[str, int] | None) -> str:
    """One sentence."""
    if prompts is None or training_images is None:
        return "No training set was searched, so only scores are compared."
    total = sum(prompts.values())
    new, images = prompts["lora_only"], training_images["lora_only"]
    return (
        f"{new} of {prose.count(total, 'prompt')} and {prose.count(images, 'training image')} are copied with the LoRA "
        f"and not by its base; {prose.count(prompts['both'], 'prompt')} by both, {prompts['base_only']} by the base only."
    )
