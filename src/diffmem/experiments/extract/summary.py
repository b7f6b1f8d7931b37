"""`summary.json` of `diffmem extract`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffmem.experiments._verdict import FoundVerdict
from diffmem.report import prose
from diffmem.runs.summary import Row, ShownTable, Summary

EXTRACTED, DOUBTFUL = "extracted", "doubtful"
MATCHED, UNMATCHED, UNJUDGED = "training image", "matches none", "cannot be judged"
STATUS = {"copy": MATCHED, "no copy": UNMATCHED, "cannot be judged": UNJUDGED}
"""What becomes of an extraction where there is a training set: the copy rule decides."""
_NOTHING_ELSE = (
    "all images of each prompt are alike, so nothing says whether this model makes anything else; other prompts would say it, "
    "and so would training images (--train)"
)
_UNDEFINED = "the copy rule's statistic is not defined with these training images"

SHOWN = (
    "rank", "status", "size", "of", "outside", "mean_similarity", "train_id", "train_similarity", "normalised", "draw", "seed",
    "prompt",
)  # fmt: skip


class ExtractSummary(Summary):
    """What was extracted.

    Attributes:
        model: its name.
        extractions: one row per extraction, surest first: "rank", "prompt_id", "prompt", "draw", "seed", "size", "of",
            "mean_similarity", "exact", "draws", "image_key", "outside" (see `copies.extraction.Extraction`), "status"
            ("extracted", "doubtful" or "cannot be judged"; with a training set "training image", "matches none" or "cannot
            be judged"), and of the nearest training image, with one, "train_id", "train_rank" (1), "train_similarity",
            "train_distance" (in the descriptor's metric), "ratio", "normalised", and with the descriptor `aligned`
            "verified", "view", "alignment".
        prompts: prompts whose images were compared.
        edge: similarity that joined two images.
        smallest: members of a clique, at least.
        descriptor: how images were compared.
        false_edges: how often images of different prompts were joined: value, low, high, n, note.
        edges_within: how often images of the same prompt that are not of one extraction were joined; None in runs of 0.1.0.
        verdict: whether training images are reproduced; None in runs of 0.1.0.
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
    edges_within: Row | None = None
    train_images: int | None = None
    verdict: FoundVerdict | None = None

    def nothing_judged(self) -> str | None:
        """No generated image could be compared with another, or of no set is known whether it is more than alike anyhow."""
        if not self.prompts:
            return "no generated image could be compared: all failed, or are black or constant."
        if self.extractions and all(row.get("status") == UNJUDGED for row in self.extractions):
            return f"no set of alike images could be judged: {_UNDEFINED if self.train_images else _NOTHING_ELSE}."
        return None

    def tables(self) -> list[ShownTable]:
        """One row per extraction; a seed is a name, not a quantity: no separators in it."""
        rows: list[dict[str, Any]] = [
            {name: row[name] for name in SHOWN if name in row} | {"seed": str(row["seed"])} for row in self.extractions
        ]
        title = f"{headline(self.extractions, self.prompts, self.train_images is not None)} Surest first"
        return [ShownTable(title, rows)] if rows else []

    def edges_in_words(self) -> str:
        """What the edge is worth here, between prompts and within them."""
        return (
            f"Images are alike from similarity {self.edge:g}. "
            + " ".join(
                f"Of pairs {whose} {_share(edges)}."
                for whose, edges in (
                    ("from different prompts", self.false_edges),
                    ("of the same prompt that are of no extraction", self.edges_within),
                )
                if edges is not None
            )
            + " Where that is not small, the images are alike without being memorized: raise --edge."
        )


def _share(edges: dict[str, Any]) -> str:
    if edges["value"] is None or edges["low"] is None or edges["high"] is None:
        return f"nothing is known ({edges['note']})"
    return f"{prose.percent(edges['value'])} are alike ({prose.percents(edges['low'], edges['high'])})"


def headline(extractions: Sequence[Mapping[str, Any]], prompts: int, train: bool) -> str:
    """One sentence: what was extracted, and of how much of it there is a doubt or no training image."""
    counts = Counter(str(row.get("status", EXTRACTED)) for row in extractions)
    of = f"from {prose.count(prompts, 'prompt')}"
    if train and extractions:
        sets = prose.count(len(extractions), "set")
        said = [f"{counts[MATCHED]} match a training image", f"{counts[UNMATCHED]} match none"]
        said += [f"{counts[UNJUDGED]} cannot be judged"] if counts[UNJUDGED] else []
        return f"{sets} of generated images that are all alike {of}: {', '.join(said)}."
    doubt = (
        f" {prose.count(counts[DOUBTFUL], 'more set')} {'is' if counts[DOUBTFUL] == 1 else 'are'} doubtful: other images of the "
        "prompt, or of most prompts, are as much alike."
        if counts[DOUBTFUL]
        else ""
    )
    if counts[UNJUDGED]:
        doubt += f" {prose.count(counts[UNJUDGED], 'more set')} cannot be judged: {_NOTHING_ELSE}."
    images = prose.count(counts[EXTRACTED], "image")
    return f"{images} extracted {of}: sets of generated images that are all alike.{doubt}"
