"""What people say of pairs of generated and training image. Labels are only ever added; a pair is known by its content."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from diffmem.errors import UsageError
from diffmem.keys import row_key
from diffmem.report.pair_identity import PairContent
from diffmem.runs.store import RunStore

Category = Literal["copy", "altered copy", "same subject", "unrelated", "cannot say"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
SAYS_COPY: dict[Category, bool | None] = {
    "copy": True, "altered copy": True, "same subject": False, "unrelated": False, "cannot say": None,
}  # fmt: skip
"""Whether a category says that the generated image is made from the training image; None: neither."""
LONGEST_NOTE, LONGEST_NAME = 4000, 80
MANY_PARTS = 100
Decision = Literal["copy", "no copy", "disputed", "cannot say"]


@dataclass(frozen=True)
class Place:
    """Where a pair lies in a run.

    Attributes:
        image_key: of the generated image.
        prompt_id, draw: what it was generated from.
        train_id: the training image.
        train: fingerprint of the training images that it is one of; None where it is not known.
    """

    image_key: bytes
    prompt_id: str
    draw: int
    train_id: str
    train: str | None

    @property
    def names(self) -> tuple[bytes, str, str | None]:
        """What names the same two pictures for certain, without opening them."""
        return self.image_key, self.train_id, self.train


@dataclass(frozen=True)
class Label:
    """What one reviewer said of one pair, and when.

    Attributes:
        reviewer: a name.
        when: UTC, ISO 8601 with microseconds, so that text sorts by time.
        category: None: an earlier label is withdrawn.
        note: free text.
        pair: key of the content.
        content: both pictures, small.
        place: where the pair was when it was labelled.
    """

    reviewer: str
    when: str
    category: Category | None
    note: str
    pair: bytes
    content: PairContent
    place: Place

    def as_row(self) -> dict[str, Any]:
        """The row of the table `labels`."""
        names = {
            "when": self.when, "reviewer": self.reviewer, "category": self.category, "prompt_id": self.place.prompt_id,
            "draw": self.place.draw, "train_id": self.place.train_id, "train": self.place.train,
        }  # fmt: skip
        key = row_key(stage="labels", pair=self.pair.hex(), image=self.place.image_key.hex(), note=self.note, **names)
        return {
            "key": key, "note": self.note or None, "pair": self.pair, "image_key": self.place.image_key,
            "generated": self.content.generated, "training": self.content.training,
            "tolerance": json.dumps(self.content.tolerance), **names,
        }  # fmt: skip

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Label:
        """The inverse of `as_row`."""
        one, two = json.loads(row["tolerance"])
        return cls(
            row["reviewer"], row["when"], row["category"], row["note"] or "", row["pair"],
            PairContent(row["generated"], row["training"], (one, two)),
            Place(row["image_key"], row["prompt_id"], row["draw"], row["train_id"], row["train"]),
        )  # fmt: skip


def make_label(
    reviewer: str, category: str | None, note: str, content: PairContent, place: Place, when: datetime | None = None,
    pair: bytes | None = None,
) -> Label:  # fmt: skip
    """A label as it is kept.

    Args:
        reviewer: a name.
        category: None withdraws what this reviewer said before.
        note: free text.
        content: both pictures, small.
        place: where the pair lies in the run.
        when: now by default.
        pair: the key under which these pictures were labelled before, in another encoding; by default that of the content.

    Raises:
        UsageError: a category that there is not, or no name, or a text that is too long.
    """
    if category is not None and category not in CATEGORIES:
        raise UsageError(f"There is no category {category!r}; expected one of {', '.join(CATEGORIES)}.")
    if len(note) > LONGEST_NOTE:
        raise UsageError(f"The note has {len(note):,} characters; at most {LONGEST_NOTE:,} are kept.")
    now = (when or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    kind: Category | None = next((known for known in CATEGORIES if known == category), None)
    return Label(reviewer_name(reviewer), f"{now}Z", kind, _whole(note), pair or content.key, content, place)


def reviewer_name(name: str) -> str:
    """A reviewer's name without spaces around it; UsageError where it is empty, too long or unprintable."""
    plain = " ".join(name.split())
    if not plain or len(plain) > LONGEST_NAME or not plain.isprintable():
        raise UsageError(f"--reviewer is {name!r}; expected a name of 1 to {LONGEST_NAME} printable characters.")
    return plain


def _whole(text: str) -> str:
    """The text without halves of characters and zero bytes, which no CSV file can hold."""
    return text.encode("utf-8", errors="replace").decode("utf-8").replace("\0", "")


def append(store: RunStore, labels: Sequence[Label]) -> None:
    """Keep labels; they are on the disk when this returns."""
    store.append("labels", [label.as_row() for label in labels])


class Labels:
    """The labels of a run.

    Attributes:
        last: (reviewer, pair) -> the last thing that was said, also where it is only a note or a withdrawal.
        contents: pair -> both pictures, small.
    """

    def __init__(self, labels: Iterable[Label]) -> None:
        self.last: dict[tuple[str, bytes], Label] = {}
        self.contents: dict[bytes, PairContent] = {}
        self._named: dict[tuple[bytes, str, str | None], bytes] = {}
        for label in sorted(labels, key=lambda one: one.when):
            self.add(label)

    def add(self, label: Label) -> None:
        """Take one that was said after all others."""
        self.last[label.reviewer, label.pair] = label
        self.contents[label.pair] = label.content
        if label.place.train is not None:
            self._named[label.place.names] = label.pair

    @property
    def current(self) -> list[Label]:
        """The labels that count: the last one of each reviewer and pair, unless it was withdrawn."""
        return [label for label in self.last.values() if label.category is not None]

    @property
    def reviewers(self) -> list[str]:
        """Who labelled, sorted."""
        return sorted({label.reviewer for label in self.current})

    def of_pair(self, pair: bytes) -> list[Label]:
        """What counts of one pair, by reviewer."""
        found = (self.last.get((reviewer, pair)) for reviewer in self.reviewers)
        return [label for label in found if label is not None and label.category is not None]

    def by_pair(self) -> dict[bytes, list[Label]]:
        """Pair -> what counts of it."""
        found: dict[bytes, list[Label]] = {}
        for label in self.current:
            found.setdefault(label.pair, []).append(label)
        return found

    def pair_at(self, place: Place) -> bytes | None:
        """The pair at a place of a run, where it was labelled there; None where only a look at the pictures can tell."""
        return self.pair_named(*place.names)

    def pair_named(self, image_key: bytes, train_id: str, train: str | None) -> bytes | None:
        """The same by the three names of a place."""
        return None if train is None else self._named.get((image_key, train_id, train))


def tidy(store: RunStore) -> None:
    """Join many parts of single labels into one, so that they are read fast; a kill at any moment loses nothing."""
    files = sorted((store.path / "parts" / "labels").glob("[!.]*.parquet"))
    if len(files) < MANY_PARTS:
        return
    store.append("labels", store.read("labels").to_pylist())
    for file in files:  # their rows are in the new part, which is on the disk
        file.unlink(missing_ok=True)


def read_labels(folder: Path) -> Labels:
    """The labels of a run."""
    return Labels(Label.of_row(row) for row in RunStore(folder).read("labels").to_pylist())


def decide(labels: Iterable[Label]) -> Decision | None:
    """What all reviewers of one pair say together; None where nobody said anything.

    "copy" or "no copy" where all who decided agree in that; "disputed" where they do not.
    """
    said = {SAYS_COPY[label.category] for label in labels if label.category is not None}
    if not said:
        return None
    if said == {None}:
        return "cannot say"
    decided = said - {None}
    return "disputed" if len(decided) == 2 else "copy" if True in decided else "no copy"
