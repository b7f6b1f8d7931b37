"""`summary.json` of `diffmem extract`."""

from __future__ import annotations

from typing import Any, ClassVar

from diffmem.report import prose
from diffmem.runs.summary import Row, ShownTable, Summary

SHOWN = ("rank", "size", "of", "mean_similarity", "train_id", "train_similarity", "ratio", "draw", "seed", "prompt")


class ExtractSummary(Summary):
    """What was extracted.

    Attributes:
        model: its name.
        extractions: one row per extraction, surest first: "rank", "prompt_id", "prompt", "draw", "seed", "size", "of",
            "mean_similarity", "exact", "draws", "image_key", and of the nearest training image, with one, "train_id",
            "train_rank" (1), "train_similarity", "train_distance" (in the descriptor's metric), "ratio", "normalised".
        prompts: prompts whose images were compared.
        edge: similarity that joined two images.
        smallest: members of a clique, at least.
        descriptor: how images were compared.
        false_edges: how often images of different prompts were joined: value, low, high, n, note.
        train_images: training images that extractions were held against; None without a training set.
    """

    verb: ClassVar[str] = "extract"

    model: str
    extractions: tuple[Row, ...]
    prompts: int
    edge: float
    smallest: int
    descriptor: str
    false_edges: Row
    train_images: int | None = None

    def nothing_judged(self) -> str | None:
        """No generated image could be compared with another."""
        return None if self.prompts else "no generated image could be compared: all failed, or are black or constant."

    def tables(self) -> list[ShownTable]:
        """One row per extraction; a seed is a name, not a quantity: no separators in it."""
        rows: list[dict[str, Any]] = [
            {name: row[name] for name in SHOWN if name in row} | {"seed": str(row["seed"])} for row in self.extractions
        ]
        title = f"{len(rows)} images extracted from {self.prompts} prompts; surest first"
        return [ShownTable(title, rows)] if rows else []

    def edges_in_words(self) -> str:
        """What the edge is worth here."""
        edges: dict[str, Any] = self.false_edges
        if edges["value"] is None or edges["low"] is None or edges["high"] is None:
            return f"Images are alike from similarity {self.edge:g}; {edges['note']}"
        return (
            f"Images are alike from similarity {self.edge:g}; of pairs from different prompts "
            f"{prose.percent(edges['value'])} are ({prose.percent(edges['low'])} to {prose.percent(edges['high'])}): where "
            "that is not small, raise --edge"
        )


def headline(extractions: int, prompts: int) -> str:
    """One sentence."""
    images = prose.count(extractions, "image")
    return f"{images} extracted from {prose.count(prompts, 'prompt')}: sets of generated images that are all alike."
