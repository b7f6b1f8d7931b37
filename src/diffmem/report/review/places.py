"""Labels and the matches of a run put together: by names where nothing has changed, else by the pictures themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffmem.report.pair_identity import PairContent, PairFinder
from diffmem.report.pair_pictures import open_pairs
from diffmem.report.review.labels import Label, Labels, Place


def place_of(row: Mapping[str, Any], fact: Mapping[str, Any]) -> Place:
    """Where the pair of a row of `matches` lies; `fact` is that on copies."""
    return Place(bytes(row["image_key"]), row["prompt_id"], row["draw"], row["train_id"], train_of(fact))


def train_of(fact: Mapping[str, Any]) -> str | None:
    """Fingerprint of the training images of a run; of runs of 0.1.0 that of their index, which covers them."""
    return fact.get("train") or fact.get("index")


def find_pairs(
    folder: Path, fact: Mapping[str, Any], rows: Mapping[int, Mapping[str, Any]], labels: Labels
) -> dict[int, bytes]:
    """Number of the row -> the labelled pair that it is; rows of pairs that nobody labelled are left out.

    Args:
        folder: the run directory.
        fact: on copies.
        rows: of `matches`, by number.
        labels: of the run.

    Raises:
        DataError: pictures have to be compared and the training images cannot be opened.
    """
    found: dict[int, bytes] = {}
    for number, row in rows.items():
        pair = labels.pair_at(place_of(row, fact))
        if pair is not None:
            found[number] = pair
    elsewhere = [pair for pair in labels.contents if pair not in {*found.values()}]
    rest = {number: row for number, row in rows.items() if number not in found}
    if elsewhere and rest:
        finder = PairFinder([labels.contents[pair] for pair in elsewhere])
        for number, generated, training in open_pairs(folder, fact, rest):
            same = finder.find(PairContent.of(generated, training))
            if same is not None:
                found[number] = elsewhere[same]
    return found


def moved(labels: Iterable[Label], places: Mapping[bytes, Sequence[Place]]) -> list[Label]:
    """The same labels at other places, to be kept beside the old ones, so that the next look needs no picture."""
    return [replace(label, place=place) for label in labels for place in places.get(label.pair, ())]
