"""The labels of a run held against its matches: which pairs are confirmed, which refuted, what the matcher is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.errors import DataError
from diffmem.evaluation.estimate import Estimate
from diffmem.report.evidence import confirmed
from diffmem.report.matches import Matches
from diffmem.report.prose import count
from diffmem.report.review import shape
from diffmem.report.review.estimate import Unit, agreements, precision, recall, said_of, strata_of
from diffmem.report.review.labels import Decision, Label, Labels, decide, read_labels
from diffmem.report.review.places import find_pairs, train_of
from diffmem.report.review.sample import FACT, frame_of, read_sample
from diffmem.runs.facts import read_fact


@dataclass(frozen=True)
class Reviewed:
    """The matches of a run as reviewers see them.

    Attributes:
        labels: of the run.
        pair: number of the match -> pair, of matches that are labelled.
        by_pair: pair -> its labels that count.
        decisions: number of the match -> what its reviewers say together.
        problem: why labels could not be looked up by their pictures; None where they could.
    """

    labels: Labels
    pair: dict[int, bytes]
    by_pair: dict[bytes, list[Label]]
    decisions: dict[int, Decision]
    problem: str | None = None

    def flags(self, matches: Matches, decision: Decision) -> NDArray[np.bool_]:
        """[M] the matches of which reviewers say this together."""
        found = np.zeros(matches.rows.num_rows, bool)
        found[[number for number, said in self.decisions.items() if said == decision]] = True
        return found

    def categories_of(self, number: int) -> dict[str, str]:
        """Reviewer -> category, of those who labelled a match."""
        labels = self.by_pair.get(self.pair.get(number, b""), ())
        return {label.reviewer: str(label.category) for label in sorted(labels, key=lambda label: label.reviewer)}


def read_reviewed(folder: Path, fact: dict[str, Any], matches: Matches) -> Reviewed | None:
    """The review of a run; None where nobody has labelled a pair.

    Matches are looked up by names; pictures are opened for those that are called or confirmed and have no label by name.
    """
    if not any((folder / "parts" / "labels").glob("[!.]*.parquet")):
        return None
    labels = read_labels(folder)
    if not labels.current:
        return None
    train = train_of(fact)
    names = zip(matches.rows["image_key"].to_pylist(), matches.rows["train_id"].to_pylist(), strict=True)
    pair = {
        number: found
        for number, (image, training) in enumerate(names)
        if (found := labels.pair_named(image, training, train)) is not None
    }
    problem = None
    if {*labels.contents} - {*pair.values()}:
        identical, proven = confirmed(fact, matches)
        numbers = np.flatnonzero(matches.copy | identical | proven)
        try:
            rows = {int(i): matches.row(int(i)) for i in numbers if int(i) not in pair}
            pair |= find_pairs(folder, fact, rows, labels)
        except DataError as trouble:
            problem = str(trouble)
    by_pair = labels.by_pair()
    decisions = {number: decide(by_pair.get(key, ())) for number, key in pair.items()}
    return Reviewed(
        labels, {n: key for n, key in pair.items() if decisions[n]}, by_pair,
        {n: said for n, said in decisions.items() if said is not None}, problem,
    )  # fmt: skip


def units_of(folder: Path, matches: Matches, reviewed: Reviewed) -> list[Unit] | str:
    """The sample of a run as it is now, or why it serves no estimate."""
    fact = read_fact(folder, FACT)
    if fact is None:
        return "no sample was drawn (diffmem review)"
    if fact["frame"] != frame_of(matches):
        return "other images are matched than when the sample was drawn; diffmem review draws it again"
    place = {key: number for number, key in enumerate(matches.rows["image_key"].to_pylist())}
    units = []
    for row in read_sample(folder, fact["sample"]):
        number = place[row["image_key"]]
        labels = reviewed.by_pair.get(reviewed.pair.get(number, b""), ())
        called, said = bool(matches.copy[number]), said_of(labels)
        units.append(
            Unit(row["stratum"], row["stratum_size"], row["place"], called, said, bool(labels), row["image_key"])
        )
    return units


def summarize(folder: Path, fact: dict[str, Any], matches: Matches, reviewed: Reviewed) -> shape.ReviewDigest:
    """What the review shows.

    Args:
        folder: the run directory.
        fact: on copies.
        matches: as the rule calls them.
        reviewed: their labels.
    """
    units = units_of(folder, matches, reviewed)
    if isinstance(units, str):
        strata, found, recalled = [], Estimate.missing(units), Estimate.missing(units)
    else:
        strata = strata_of(units)
        found, recalled = precision(strata), recall(strata)
    copies, refuted = reviewed.flags(matches, "copy"), reviewed.flags(matches, "no copy")
    identical, proven = confirmed(fact, matches)
    labelled = np.zeros(len(copies), bool)
    labelled[[*reviewed.pair]] = True
    pairs = {reviewed.pair[number]: number for number in reviewed.pair}
    said = Counter(reviewed.decisions[number] for number in pairs.values())
    both = agreements({pair: reviewed.by_pair[pair] for pair in pairs})
    training, sure = (len(np.unique(matches.group[chosen])) for chosen in (matches.copy, copies))
    current = reviewed.labels.current
    first = next((one for one in both if one.kappa.value is not None), None)
    return shape.ReviewDigest(
        sentence=_sentence(training, sure, reviewed.labels.reviewers, found),
        reviewers=tuple(reviewed.labels.reviewers), labels=len(current),
        elsewhere=sum(label.pair not in pairs for label in current), pairs=len(pairs), copies=said["copy"],
        no_copies=said["no copy"], disputed=said["disputed"], cannot_say=said["cannot say"],
        categories=dict(Counter(str(label.category) for label in current)), called=int(matches.copy.sum()),
        called_labelled=int((matches.copy & labelled).sum()), training_images=training, confirmed=sure,
        refuted=int((refuted & (matches.copy | identical | proven)).sum()),
        precision=found.value, precision_interval=_ends(found), precision_note=found.note,
        recall=recalled.value, recall_interval=_ends(recalled), recall_note=recalled.note,
        kappa=None if first is None else first.kappa.value, kappa_interval=None if first is None else _ends(first.kappa),
        agreements=tuple(
            shape.Agreement(
                reviewers=one.reviewers, pairs=one.kappa.n, differing=len(one.differing), kappa=one.kappa.value,
                kappa_interval=_ends(one.kappa),
            )
            for one in both if one.kappa.n
        ),
        disagreements=tuple(_disagreements(matches, reviewed, pairs)),
        strata=tuple(
            shape.ReviewedStratum(
                stratum=one.name, images=one.size, drawn=one.drawn, labelled=one.labelled, used=len(one.units)
            )
            for one in strata
        ),
    )  # fmt: skip


def _disagreements(matches: Matches, reviewed: Reviewed, pairs: Mapping[bytes, int]) -> list[shape.Disagreement]:
    found = []
    for number in sorted(pairs.values()):
        said = reviewed.categories_of(number)
        if len({*said.values()}) > 1:
            row = matches.row(number)
            found.append(
                shape.Disagreement(prompt_id=row["prompt_id"], draw=row["draw"], train_id=row["train_id"], said=said)
            )
    return found


def _sentence(training: int, sure: int, reviewers: Sequence[str], found: Estimate) -> str:
    text = (
        f"{count(training, 'training image')} called copied; {sure:,} confirmed by {count(len(reviewers), 'reviewer')}"
    )
    return text if found.value is None else f"{text}; precision {in_words(found)}"


def in_words(found: Estimate) -> str:
    """A share with its interval, as `.93 (.84–.97)`; 1 and 0 as `1.00` and `.00`."""
    value, low, high = (_short(number) for number in (found.value, found.low, found.high))
    return value if found.low is None else f"{value} ({low}–{high})"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".removeprefix("0")


def _ends(found: Estimate) -> tuple[float, float] | None:
    return None if found.low is None or found.high is None else (found.low, found.high)
