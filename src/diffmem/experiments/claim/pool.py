"""Works and decoys as one set of pictures, and which of them count as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from diffmem.copies.index import CopyIndex
from diffmem.data.image_sources import ImageSource, Raw
from diffmem.data.images import ImageItem, ImageSet
from diffmem.report.prose import count

WORK, DECOY = "work/", "decoy/"
"""What the ids of the pool begin with."""


class Pool(ImageSource):
    """Two image sets, one behind the other, read picture by picture."""

    def __init__(self, works: ImageSet, decoys: ImageSet | None) -> None:
        self._parts = [(WORK, works)] + ([(DECOY, decoys)] if decoys is not None else [])
        self.name = " and ".join(part.name for _, part in self._parts)
        self.ids = [f"{prefix}{key}" for prefix, part in self._parts for key in part.ids]

    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1."""
        for prefix, part in self._parts:
            for item in part.items(max(0, start), max(0, stop)):
                yield _raw(prefix, item)
            start, stop = start - len(part), stop - len(part)

    def words(self, start: int, stop: int) -> Iterator[Raw]:
        """The captions alone."""
        listed = (_raw(prefix, item) for prefix, part in self._parts for item in part.words())
        for place, raw in enumerate(listed):
            if start <= place < stop:
                yield raw


def _raw(prefix: str, item: ImageItem) -> Raw:
    return Raw(prefix + item.id, item.image, item.captions, item.problem, item.note, item.label)


@dataclass(frozen=True)
class Units:
    """Works and decoys that are told apart: near-duplicates count as one.

    Attributes:
        of: id in the pool -> unit.
        works: unit -> ids of its works, as the user knows them.
        decoys: units of decoys alone, those that are near-duplicates of no work.
        captions: unit -> captions of its pictures.
        unreadable: works that cannot be opened, with the reason.
        notes: what was left out or counts as one.
    """

    of: dict[str, int]
    works: dict[int, list[str]]
    decoys: list[int]
    captions: dict[int, list[str]]
    unreadable: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, pool: ImageSet, index: CopyIndex) -> Units:
        """The units of an index of the pool."""
        group = index.duplicates().group.tolist()
        of = dict(zip(index.ids, group, strict=True))
        works: dict[int, list[str]] = {}
        for key, unit in of.items():
            if key.startswith(WORK):
                works.setdefault(unit, []).append(key.removeprefix(WORK))
        listed = [(key, unit) for key, unit in of.items() if key.startswith(DECOY)]
        decoys = list(dict.fromkeys(unit for _, unit in listed if unit not in works))
        captions: dict[int, list[str]] = {}
        for item in pool.words():
            if item.id in of and item.caption is not None:
                captions.setdefault(of[item.id], []).append(item.caption)
        notes = []
        alike = sum(unit in works for _, unit in listed)
        if alike:
            notes.append(f"{count(alike, 'decoy')} left out: near-duplicates of a work.")
        repeated = len(listed) - alike - len(decoys)
        if repeated:
            notes.append(f"{count(repeated, 'decoy')} left out: near-duplicates of other decoys.")
        several = sum(len(ids) - 1 for ids in works.values())
        if several:
            notes.append(f"{count(several, 'work')} count with another one, of which they are near-duplicates.")
        bad = {key: text for key, text in index.problems.items() if key.startswith(DECOY)}
        if bad:
            notes.append(f"{count(len(bad), 'decoy')} cannot be opened.")
        unreadable = {k.removeprefix(WORK): text for k, text in index.problems.items() if k.startswith(WORK)}
        return cls(of, works, decoys, captions, unreadable, notes)
