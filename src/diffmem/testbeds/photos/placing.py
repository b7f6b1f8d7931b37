"""Which crops the tiers get: plants and template backgrounds first, then images seen once, held-out and background ones.

`python -m diffmem.testbeds.photos.placing` finds the places anew and writes `places.json`.

Crops at a plant's scale share no pixel with it. A plant of a whole motif is another matter: what lies in it, two and a
half times enlarged or more, is another picture. Held-out crops share no pixel with any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from diffmem.testbeds.photos.captions import tint_of
from diffmem.testbeds.photos.places import Isolation, apart, candidates, lively
from diffmem.testbeds.photos.sources import FACES, KINDS, SOURCES, Box, Pixels, Source, render
from diffmem.testbeds.wording import shuffled

PLACES = Path(__file__).with_name("places.json")
ROOT = 3205
COUNTS = (50, 20, 10, 5, 2)  # in this order: the crops chosen by eye are repeated most
HARD_PER_KIND = 10
HELD_OUT_PER_KIND = 18
GENERIC_PER_KIND = 130
TEMPLATE_COUNT = 2
ISOLATION = 0.2  # least distance of a plant, template or image seen once to any other (RMS per value on [−1, 1])
TRIES = 6000
MOST_SHARED = {
    "plant": 0.0,
    "hard": 0.25,
    "heldout": 0.5,
    "generic": 0.7,
}  # among crops of one tier; smaller one's share
WHOLE = 2.5  # a plant that is so many times larger than a crop does not bar it

# fmt: off
BACKGROUNDS: tuple[tuple[str, Box], ...] = (
    ("temple", (240, 150, 200)), ("coffee", (300, 130, 180)), ("motorcycle", (120, 150, 210)),
    ("astronaut", (200, 240, 190)), ("retina", (560, 100, 480)), ("photographer", (220, 220, 175)),
)
# fmt: on


@dataclass(frozen=True)
class Placed:
    """A crop that has its place: where, in which tint, for which tier, how often."""

    name: str
    kind: str
    tier: str
    count: int
    place: Box | int
    tint: str | None
    pixels: Pixels


def place_all() -> dict[str, list[Placed]]:
    """All crops of the testbed by tier: plant, template, hard, generic, heldout."""
    alone = Isolation(ISOLATION)
    tiers: dict[str, list[Placed]] = {"plant": [], "template": [], "hard": [], "generic": [], "heldout": []}
    boxes: dict[str, list[Box]] = {kind: [] for kind in KINDS}
    faces = iter(shuffled(range(FACES), ROOT, "faces"))
    planned = [(count, kind) for count in COUNTS for kind in KINDS]
    for count, kind in planned:
        found = (
            _kept(_faces("plant", faces, 1, count), alone)
            if kind == "face"
            else _plant(kind, count, boxes[kind], alone)
        )
        tiers["plant"] += found
    for number, (kind, box) in enumerate(BACKGROUNDS):
        boxes[kind].append(box)
        tiers["template"] += _kept([_cut(f"template-{number}", kind, "template", TEMPLATE_COUNT, box)], alone)
    for kind in KINDS:
        if kind == "face":
            tiers["hard"] += _kept(_faces("hard", faces, HARD_PER_KIND, 1), alone)
        else:
            tiers["hard"] += _random("hard", kind, HARD_PER_KIND, boxes[kind], alone)
    for kind in KINDS:
        if kind == "face":
            tiers["heldout"] += _faces("heldout", faces, HELD_OUT_PER_KIND, 0)
            tiers["generic"] += _faces("generic", faces, FACES, 1)
        else:
            tiers["heldout"] += _random("heldout", kind, HELD_OUT_PER_KIND, [], None)
            tiers["generic"] += _random("generic", kind, GENERIC_PER_KIND, boxes[kind], alone)
    return tiers


def placed() -> dict[str, list[Placed]]:
    """All crops by tier as `place_all` found them; their places ship, since finding them takes half a minute."""
    rows: dict[str, list[list[Any]]] = json.loads(PLACES.read_text())
    return {
        tier: [
            _cut(name, kind, tier, count, place if kind == "face" else tuple(place))
            for name, kind, count, place in part
        ]
        for tier, part in rows.items()
    }


def write(path: Path = PLACES) -> None:
    """Find all places and write them: name, kind, count, and left, top and side, or the number of a face."""
    tiers = {tier: [[one.name, one.kind, one.count, one.place] for one in part] for tier, part in place_all().items()}
    lines = [
        f' "{tier}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]" for tier, rows in tiers.items()
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _box(one: Placed) -> Box:
    assert not isinstance(one.place, int)
    return one.place


def _kept(found: list[Placed], alone: Isolation) -> list[Placed]:
    for one in found:
        alone.keep(one.pixels)
    return found


def _cut(name: str, kind: str, tier: str, count: int, place: Box | int) -> Placed:
    tint = tint_of(kind, ROOT, name)
    return Placed(name, kind, tier, count, place, tint, render(kind, place, tint))


def _faces(tier: str, faces: Iterator[int], number: int, count: int) -> list[Placed]:
    """The next faces, at most so many."""
    taken = list(islice(faces, number))
    names = [f"plant-{count:02d}-face" if tier == "plant" else f"{tier}-face-{face:03d}" for face in taken]
    return [_cut(name, "face", tier, count, face) for name, face in zip(names, taken, strict=True)]


def _source(kind: str) -> Source:
    return next(source for source in SOURCES if source.kind == kind)


def _plant(kind: str, count: int, boxes: list[Box], alone: Isolation) -> list[Placed]:
    """One plant of a kind: chosen by eye for the two highest counts, at random for the others."""
    name = f"plant-{count:02d}-{kind}"
    rank = COUNTS.index(count)
    famous = _source(kind).famous
    if rank < len(famous):
        boxes.append(famous[rank])
        return _kept([_cut(name, kind, "plant", count, famous[rank])], alone)
    found = _random("plant", kind, 1, boxes, alone, count)
    boxes += [_box(one) for one in found]
    return found


def _random(
    tier: str, kind: str, number: int, barred: list[Box], alone: Isolation | None, count: int = 1
) -> list[Placed]:
    """Random crops that share no pixel with the barred ones and no more with each other than their tier allows."""
    source = _source(kind)
    found: list[Placed] = []
    places = candidates(source, tier == "heldout", ROOT, tier, kind, count)
    for _, place in zip(range(TRIES), places, strict=False):
        bars = [box for box in barred if box[2] < WHOLE * place[2]]
        if not (apart(place, bars, 0.0) and apart(place, [_box(one) for one in found], MOST_SHARED[tier])):
            continue
        name = f"{tier}-{count:02d}-{kind}" if tier == "plant" else f"{tier}-{kind}-{len(found):03d}"
        one = _cut(name, kind, tier, 0 if tier == "heldout" else count, place)
        if lively(one.pixels) and (alone is None or alone.clear(one.pixels)):
            found.append(one)
            if alone is not None and tier != "generic":
                alone.keep(one.pixels)
        if len(found) == number:
            break
    return found


if __name__ == "__main__":
    write()
