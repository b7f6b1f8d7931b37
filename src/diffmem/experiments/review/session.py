"""What the page of a review shows and keeps: the pairs of the sample, their pictures, the labels of one reviewer."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from diffmem.copies.rule import CopyRule
from diffmem.data.png import decode_png
from diffmem.errors import DataError, UsageError
from diffmem.experiments._run import open_run
from diffmem.report.columns import read_prompts, read_texts
from diffmem.report.matches import Matches, judge, read_match_rows
from diffmem.report.overlap import overlap_of
from diffmem.report.pair_identity import PairContent
from diffmem.report.pair_pictures import PairPictures
from diffmem.report.prose import shorten, visible
from diffmem.report.review.labels import CATEGORIES, Label, append, make_label, read_labels, reviewer_name, tidy
from diffmem.report.review.places import find_pairs, moved, place_of
from diffmem.report.review.sample import keep_sample, read_sample
from diffmem.runs.facts import read_fact
from diffmem.runs.manifest import FILE as MANIFEST
from diffmem.runs.store import RunStore

LONGEST_PROMPT = 1000


def folder_to_review(run: Path) -> Path:
    """The run directory whose matches are reviewed: the run itself, or its only arm with matches.

    Raises:
        UsageError: nothing was matched, or several arms were.
    """
    opened = open_run(run)
    folders = {name: place for name, place in opened.arms.items() if (place / MANIFEST).exists()}
    matched = {name: place for name, place in folders.items() if (read_fact(place, "copies") or {}).get("threshold")}
    if len({*matched.values()}) > 1:
        listed = ", ".join(str(place) for place in matched.values())
        raise UsageError(f"'{run}' has several arms with matches; name the folder of one: {listed}.")
    if not matched:
        raise UsageError(f"'{run}' matched no image with training images (--train), so there is no pair to review.")
    return next(iter(matched.values()))


def judged(folder: Path) -> tuple[dict[str, Any], Matches]:
    """The fact on copies and the matches of a run, as its rule calls them."""
    store = RunStore(folder)
    rows = read_match_rows(store)
    fact, matches = judge(folder, rows, read_prompts(store, rows))
    if fact is None or matches is None or not matches.rows.num_rows:
        raise UsageError(f"'{folder}' has no image that was matched, so there is no pair to review.")
    return fact, matches


def reattach(folder: Path) -> int:
    """Write labels at the places where their pairs lie now, so that no picture has to be opened again; gives how many.

    Raises:
        DataError: pictures have to be compared and the training images cannot be opened.
    """
    fact, matches = judged(folder)
    labels, sampled = read_labels(folder), read_fact(folder, "review")
    keys = set() if sampled is None else {row["image_key"] for row in read_sample(folder, sampled["sample"])}
    rows = {
        number: matches.row(number)
        for number, key in enumerate(matches.rows["image_key"].to_pylist())
        if matches.copy[number] or key in keys
    }
    if not labels.last:
        return 0
    new: dict[bytes, list[Any]] = {}
    for number, pair in find_pairs(folder, fact, rows, labels).items():
        place = place_of(rows[number], fact)
        if place.train is not None and labels.pair_at(place) is None:
            new.setdefault(pair, []).append(place)
    found = moved(labels.last.values(), new)
    append(RunStore(folder), found)
    return len(found)


class Session:
    """One reviewer at one run; its methods may be called from several threads.

    Args:
        run: the folder of the run.
        reviewer: a name.
        below: images below the threshold that are drawn; None: as before, else 200.
        seed: of the draw; None: as before, else 0.

    Raises:
        UsageError: there is nothing to review.
        DataError: the training images are not to be had.
    """

    def __init__(self, run: Path, reviewer: str, below: int | None = None, seed: int | None = None) -> None:
        self.folder, self.reviewer = folder_to_review(run), reviewer_name(reviewer)
        self.store = RunStore(self.folder)
        tidy(self.store)
        self._fact, matches = judged(self.folder)
        self.sample = keep_sample(self.folder, matches, below, seed)
        self.attached = reattach(self.folder)
        self._pictures = PairPictures(self.folder, self._fact)
        self._labels = read_labels(self.folder)
        self._lock, self._closed = threading.Lock(), False
        place = {key: number for number, key in enumerate(matches.rows["image_key"].to_pylist())}
        sample = read_sample(self.folder, self.sample["sample"])
        # Strata mixed in proportion, each in its random order: nobody sees which pairs are called, and a part serves.
        sample.sort(key=lambda row: (row["place"] + 0.5) / (row["inclusion"] * row["stratum_size"]))
        self._rows = [matches.row(place[row["image_key"]]) for row in sample]
        rule = CopyRule.of_fact(self._fact["threshold"])
        self._called = [rule.is_copy(row) for row in self._rows]
        self._texts = read_texts(self.store, {row["prompt_id"] for row in self._rows})
        self._pair: dict[int, bytes] = {}
        for number, row in enumerate(self._rows):
            pair = self._labels.pair_at(place_of(row, self._fact))
            if pair is not None:
                self._pair[number] = pair

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def done(self) -> int:
        """Pairs that this reviewer has labelled."""
        return sum(self._own(number) is not None for number in range(len(self)))

    def pairs(self) -> dict[str, Any]:
        """Everything that the page shows but the pictures."""
        with self._lock:
            shown = [self._shown(number) for number in range(len(self))]
        return {"reviewer": self.reviewer, "categories": CATEGORIES, "pairs": shown}

    def label(self, number: int, category: str | None, note: str) -> dict[str, Any]:
        """Keep what the reviewer says of a pair; it is on the disk when this returns.

        Raises:
            UsageError: no such pair or category.
            DataError: a picture of the pair is not to be had.
        """
        if not 0 <= number < len(self):
            raise UsageError(f"There is no pair {number}; there are {len(self)}.")
        generated, training = self._pictures.generated(self._rows[number]), self._pictures.training(self._rows[number])
        if generated is None or training is None:
            raise DataError("A picture of this pair is missing, so the pair cannot be labelled.")
        place = place_of(self._rows[number], self._fact)
        with self._lock:
            if self._closed:
                raise DataError("The review has ended; start diffmem review again.")
            pair = self._pair.get(number)
            content = PairContent.of(decode_png(generated), training) if pair is None else self._labels.contents[pair]
            made = make_label(self.reviewer, category, note, content, place, pair=pair)
            append(self.store, [made])
            self._labels.add(made)
            self._pair[number] = made.pair
            return self._said(number)

    def picture(self, number: int, side: str) -> tuple[bytes, str] | None:
        """The bytes of a picture and their type; None where it is missing."""
        return self._pictures.encoded(self._rows[number], side) if 0 <= number < len(self) else None

    def close(self) -> None:
        """Wait for the label that is being kept, take no more, and join the small parts that single labels leave."""
        with self._lock:
            self._closed = True
            tidy(self.store)

    def _own(self, number: int) -> Label | None:
        label = self._labels.last.get((self.reviewer, self._pair.get(number, b"")))
        return None if label is None or label.category is None else label

    def _said(self, number: int) -> dict[str, Any]:
        pair = self._pair.get(number, b"")
        last, own = self._labels.last.get((self.reviewer, pair)), self._own(number)
        # What others say is shown once a reviewer has an opinion, so that it does not make it.
        others = {} if own is None else {
            label.reviewer: label.category for label in self._labels.of_pair(pair) if label.reviewer != self.reviewer
        }  # fmt: skip
        return {
            "category": None if own is None else own.category,
            "note": "" if last is None else last.note,
            "others": others,
        }

    def _shown(self, number: int) -> dict[str, Any]:
        row = self._rows[number]
        overlap = overlap_of(row["alignment"], row["view"])
        outlined = overlap is not None and bool(overlap.training)
        return {
            "prompt": visible(shorten(self._texts.get(row["prompt_id"], ""), LONGEST_PROMPT)),
            "prompt_id": visible(row["prompt_id"]), "draw": row["draw"], "train_id": visible(row["train_id"]),
            "called": self._called[number], "words": None if overlap is None else overlap.words,
            "generated": overlap.generated if overlap is not None and outlined else None,
            "training": overlap.training if overlap is not None and outlined else None,
            "matrix": json.loads(row["alignment"])["matrix"] if outlined else None, **self._said(number),
        }  # fmt: skip
