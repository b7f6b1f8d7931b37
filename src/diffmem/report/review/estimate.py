"""Precision and recall of the matcher, estimated from a labelled sample; agreement of reviewers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from diffmem.evaluation.estimate import Estimate
from diffmem.evaluation.kappa import cohens_kappa
from diffmem.evaluation.weighted_share import Cell, weighted_share
from diffmem.report.review.labels import SAYS_COPY, Label


@dataclass(frozen=True)
class Unit:
    """One image of the sample as it is now.

    Attributes:
        stratum, size, place: see `sample.Drawn`.
        called: whether the rule calls it a copy today.
        said: the share of reviewers who say that it is one; None: all say that they cannot tell.
        labelled: whether anybody said anything.
        image_key: of the image.
    """

    stratum: str
    size: int
    place: int
    called: bool
    said: float | None = None
    labelled: bool = False
    image_key: bytes = b""


@dataclass(frozen=True)
class Stratum:
    """How far a stratum is labelled.

    Attributes:
        name: of it.
        size: its images.
        drawn: into the sample.
        labelled: of these.
        used: the first of them in random order up to the first without a label: a random sample of the stratum.
        units: of these, those that can be told.
    """

    name: str
    size: int
    drawn: int
    labelled: int
    used: int
    units: tuple[Unit, ...]

    @property
    def weight(self) -> float:
        """Images that each of its units stands for."""
        return self.size / len(self.units)


def said_of(labels: Sequence[Label]) -> float | None:
    """The share of reviewers who say "copy" or "altered copy", among those who can tell; None where nobody can."""
    told = [SAYS_COPY[label.category] for label in labels if label.category is not None]
    known = [says for says in told if says is not None]
    return sum(known) / len(known) if known else None


def strata_of(units: Sequence[Unit]) -> list[Stratum]:
    """The strata of a sample, in the order of their first units."""
    found: dict[str, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.stratum, []).append(unit)
    strata = []
    for name, members in found.items():
        members.sort(key=lambda one: one.place)
        used = next((i for i, unit in enumerate(members) if not unit.labelled), len(members))
        told = tuple(unit for unit in members[:used] if unit.said is not None)
        labelled = sum(unit.labelled for unit in members)
        strata.append(Stratum(name, members[0].size, len(members), labelled, used, told))
    return strata


def precision(strata: Sequence[Stratum], level: float = 0.95) -> Estimate:
    """The share of called images whose pair reviewers call a copy."""
    cells = []
    for stratum in strata:
        called = [unit.said or 0.0 for unit in stratum.units if unit.called]
        if called:
            cells.append(Cell(stratum.weight, sum(called), len(called) - sum(called)))
    if not cells:
        return Estimate.missing("no called image has a label that tells", 0, level)
    return weighted_share(cells, level)


def recall(strata: Sequence[Stratum], level: float = 0.95) -> Estimate:
    """The share of the images whose pair reviewers call a copy that the rule calls one too."""
    empty = [stratum.name for stratum in strata if not stratum.units]
    if empty or not any(stratum.name.startswith("below") for stratum in strata):
        why = f"nothing in {', '.join(empty)} is labelled" if empty else "nothing below the threshold was drawn"
        return Estimate.missing(why, 0, level)
    cells = [
        Cell(
            stratum.weight, sum(unit.said or 0.0 for unit in stratum.units if unit.called),
            sum(unit.said or 0.0 for unit in stratum.units if not unit.called),
        )
        for stratum in strata
    ]  # fmt: skip
    return weighted_share(cells, level)


@dataclass(frozen=True)
class Agreement:
    """Two reviewers.

    Attributes:
        reviewers: both.
        kappa: Cohen's, of the five categories, on the pairs that both labelled.
        differing: these pairs where their categories differ.
    """

    reviewers: tuple[str, str]
    kappa: Estimate
    differing: tuple[bytes, ...]


def agreements(pairs: Mapping[bytes, Sequence[Label]]) -> list[Agreement]:
    """How every two reviewers agree, those with most pairs in common first."""
    said = {pair: {label.reviewer: label.category for label in labels} for pair, labels in pairs.items()}
    names = sorted({name for one in said.values() for name in one})
    found = []
    for left, right in combinations(names, 2):
        both = {pair: (one[left], one[right]) for pair, one in said.items() if left in one and right in one}
        kappa = cohens_kappa([a for a, _ in both.values()], [b for _, b in both.values()])
        found.append(Agreement((left, right), kappa, tuple(pair for pair, (a, b) in both.items() if a != b)))
    return sorted(found, key=lambda one: -one.kappa.n)
