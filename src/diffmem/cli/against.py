"""A fine-tune against its base, on the terminal and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffmem.experiments.against.page import Comparison

SHOWN = 20
"""Prompts that are printed."""


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain values: the headline and all fields."""
    from diffmem.experiments.against.page import as_dict

    return as_dict(comparison)


def print_comparison(comparison: Comparison) -> None:
    """The comparison for people, on stdout."""
    from diffmem.cli.output import emit_table

    print(f"\nAgainst  {comparison.lora} against {comparison.base}: {comparison.headline}")
    columns = ["what", "first", "second", "difference", "low", "high", "prompts"]
    headings = dict(
        zip(columns, ["what", "with the LoRA", "base", "difference", "low", "high", "prompts"], strict=True)
    )
    emit_table(list(comparison.differences), headings, title="With the LoRA minus the base, 95 % intervals")
    rows = [
        {"copied with": {"lora_only": "the LoRA only", "both": "both", "base_only": "the base only"}[leak.where],
         "with the LoRA": f"{leak.lora_copies} of {leak.lora_images}", "base": f"{leak.base_copies} of {leak.base_images}",
         "training images": ", ".join(leak.train_ids[:3]), "prompt": leak.prompt}
        for leak in comparison.leaks[:SHOWN]
    ]  # fmt: skip
    if rows:
        emit_table(rows, title=f"Prompts that are copied ({len(rows)} of {len(comparison.leaks)})")
    for text in comparison.limits:
        print(f"  - {text}")
