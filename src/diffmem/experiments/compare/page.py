"""Two runs on the same prompts, as one HTML file that loads nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem.errors import DataError
from diffmem.experiments._pictures import generated, open_index, training
from diffmem.experiments._run import open_run
from diffmem.report import prose
from diffmem.report.page import write_page
from diffmem.report.prose import percent
from diffmem.report.redaction import Embedded, Redaction
from diffmem.stages.match.stage import judge_matches

if TYPE_CHECKING:
    from diffmem.experiments.evaluate.compare import Comparison

SHOWN = 40
"""Prompts with pictures; the table of differences counts all."""
ORDER = ("after only", "before only", "both")


@dataclass(frozen=True)
class Side:
    """One of the two runs: its folder's name, its model, what it found."""

    name: str
    model: str
    state: str | None
    finding: str


@dataclass(frozen=True)
class Shown:
    """A prompt that is called a copy in one of the runs: its image before and after from one noise, the training image."""

    prompt: str
    where: str
    before: str
    after: str
    train_id: str
    pictures: tuple[Embedded | None, Embedded | None, Embedded | None]


@dataclass(frozen=True)
class _Prompt:
    """What both runs say of a prompt: copies and judged images on either side, and the pair that is shown."""

    copies: tuple[int, int]
    images: tuple[int, int]
    draw: int
    train_id: str
    side: int

    @property
    def where(self) -> str:
        first, second = self.copies
        return "both" if first and second else "after only" if second else "before only" if first else "neither"


def write_comparison(comparison: Comparison, out: Path, redact: Redaction = "blur", hash_prompts: bool = False) -> Path:
    """Write the page of a comparison and give its path.

    Args:
        comparison: of two runs.
        out: the file.
        redact: what becomes of pictures; they may be training images.
        hash_prompts: show hashes instead of prompts.

    Raises:
        DataError: `out` is a folder.
    """
    if out.is_dir():
        raise DataError(f"'{out}' is a folder; --out takes the name of a file.")
    folders = comparison.folders
    prompts = _prompts(folders, comparison.prompts)
    shown = _shown(folders, prompts, comparison.prompts, redact, hash_prompts)
    sides = [_side(folder, model) for folder, model in zip(folders, comparison.models, strict=True)]
    limits = [
        "A difference is that of the two runs on these prompts and noises; other prompts may differ otherwise.",
        "A prompt that gives no copy in a run may give one from other seeds.",
    ]
    if comparison.models[0] != comparison.models[1]:
        limits.append("The models differ, and whatever else differs between them may make the difference.")
    limits += [f"Unlike settings, which a difference may come from: {text}." for text in comparison.unlike]
    limits += [f"Not compared: {what}: {reason}" for what, reason in comparison.missing.items()]
    if redact != "none":
        limits.append(f"Pictures are {'blurred' if redact == 'blur' else 'left out'} on this page.")
    return write_page(
        out, files(__package__) / "page.html", title=f"Two runs compared: {sides[0].name}, {sides[1].name}",
        kicker="Two runs on the same prompts", headline=comparison.headline, limits=limits,
        sides=sides, rows=comparison.rows, shown=shown,
        counts=Counter(prompt.where for prompt in prompts.values()), total=len(prompts), common=len(comparison.prompts),
        left=sum(prompt.where != "neither" for prompt in prompts.values()) - len(shown),
    )  # fmt: skip


def _side(folder: Path, model: str) -> Side:
    summary: Any = open_run(folder).summary
    verdict = getattr(summary, "verdict", None)
    return Side(folder.resolve().name, model, None if verdict is None else verdict.state, summary.headline)


def _prompts(folders: tuple[Path, Path], texts: Mapping[str, str]) -> dict[str, _Prompt]:
    """What both runs say of each prompt that has judged images in both."""
    found: list[dict[str, list[tuple[dict[str, Any], bool]]]] = [{}, {}]
    for side, folder in enumerate(folders):
        for row, is_copy in judge_matches(folder).values():
            if row["prompt_id"] in texts:
                found[side].setdefault(row["prompt_id"], []).append((row, is_copy))
    prompts = {}
    for key in found[0].keys() & found[1].keys():
        copies = tuple(sum(is_copy for _, is_copy in side[key]) for side in found)
        side = 1 if copies[1] else 0
        row, _ = max(found[side][key], key=lambda one: (one[1], one[0]["similarity"], -one[0]["draw"]))
        prompts[key] = _Prompt(
            (copies[0], copies[1]), (len(found[0][key]), len(found[1][key])), row["draw"], row["train_id"], side
        )
    return prompts


def _shown(
    folders: tuple[Path, Path],
    prompts: Mapping[str, _Prompt],
    texts: Mapping[str, str],
    redact: Redaction,
    hashed: bool,
) -> list[Shown]:
    chosen = [key for key in prompts if prompts[key].where != "neither"]
    chosen.sort(key=lambda key: (ORDER.index(prompts[key].where), -sum(prompts[key].copies), key))
    chosen = chosen[:SHOWN]
    wanted = {(key, prompts[key].draw) for key in chosen}
    made = [generated(folder, wanted, redact) for folder in folders]
    indexes = [open_index(folder) for folder in folders]
    shown = []
    for key in chosen:
        one = prompts[key]
        own = training(indexes[one.side], one.train_id, redact)
        text = prose.shown_text(texts[key], hashed)
        ratios = [f"{copies} of {images}" for copies, images in zip(one.copies, one.images, strict=True)]
        place = (key, one.draw)
        shown.append(
            Shown(text, one.where, ratios[0], ratios[1], one.train_id, (made[0].get(place), made[1].get(place), own))
        )
    return shown


def headline(rows: list[dict[str, Any]], missing: Mapping[str, str], share: str) -> str:
    """One sentence: how the share of copies changed, with its interval.

    Args:
        rows: of the comparison.
        missing: what could not be compared -> why.
        share: what the row on copies is called.
    """
    row = next((row for row in rows if row["what"] == share), None)
    if row is None:
        return f"Copies cannot be compared: {missing.get(share, 'no row')}"
    ends = [percent(row["before"]), percent(row["after"])]
    if row["low"] is None or row["high"] is None:
        return f"{ends[0]} of the images were called copies before, {ends[1]} after; too few prompts for an interval."
    points = [f"{100 * row[name]:+.1f}".replace("-", "−") for name in ("difference", "low", "high")]
    finding = "more" if row["low"] > 0 else "fewer" if row["high"] < 0 else None
    lead = f"The run after copies {finding}" if finding else "No difference is shown"
    return (
        f"{lead}: {ends[0]} of the images were called copies before, {ends[1]} after ({points[0]} percentage points, 95 % "
        f"interval {points[1]} to {points[2]})."
    )
