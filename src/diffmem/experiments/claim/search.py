"""What a search has looked at so far, and what follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.copies.rule import CopyRule
from diffmem.data.images import ImageSet
from diffmem.experiments.claim.evidence import Candidate, Tested, best_images, enough_decoys, findings
from diffmem.experiments.claim.logs import Logged
from diffmem.experiments.claim.pool import Pool, Units
from diffmem.experiments.claim.proof import Opener, write_proofs
from diffmem.experiments.claim.recall import CHANGES, measure_recall
from diffmem.experiments.claim.summary import ClaimSummary, verdict_of
from diffmem.report.prose import count
from diffmem.stages.match.folders import FolderMatches, match_images
from diffmem.stages.match.stage import Matching, build_index

FPR = 0.01
"""Nominal rate per image at which an image is called a copy of a work, for the bounds."""
KINDS = {
    "captions": "images",
    "paraphrases": "images",
    "samples": "images",
    "images": "images",
    "inversion": "inversion",
}
"""Search -> test: what chance makes of images from plain prompts and from fitted ones is not the same."""


@dataclass
class Searched:
    """Works and decoys, the images that were made for them and held against them.

    Args:
        works: pictures.
        decoys: those of the same kind that cannot have been seen.
        descriptor: how images are compared.
        options: of its class.
        fdr: the false-discovery rate at most.
        silent: no progress on stderr.
    """

    works: ImageSet
    decoys: ImageSet | None
    descriptor: str
    options: Mapping[str, Any]
    fdr: float
    silent: bool
    candidates: dict[str, list[Candidate]] = field(default_factory=dict)
    measures: list[Tested] = field(default_factory=list)
    set_aside: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    pool: ImageSet = field(init=False)
    index: CopyIndex = field(init=False)
    units: Units = field(init=False)
    found: FolderMatches | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.pool = ImageSet(Pool(self.works, self.decoys))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of works and decoys."""
        return {"works": self.works.fingerprint} | ({} if self.decoys is None else {"decoys": self.decoys.fingerprint})

    def open(self, folder: Path) -> None:
        """Describe works and decoys, once."""
        if not hasattr(self, "index"):
            maker = make_descriptor(self.descriptor, self.pool, **self.options)
            self.index = build_index(self.pool, maker, folder / "index" / maker.name, self.silent)
            self.units = Units.read(self.pool, self.index)

    def of_caption(self) -> dict[str, list[int]]:
        """Caption -> units that have it."""
        found: dict[str, list[int]] = {}
        for unit, captions in self.units.captions.items():
            for text in dict.fromkeys(captions):
                found.setdefault(plain(text), []).append(unit)
        return found

    def look(
        self,
        search: str,
        images: ImageSet,
        known: Mapping[str, Logged],
        wordings: Mapping[str, list[int]] | None = None,
    ) -> None:
        """Hold images against works and decoys.

        Args:
            search: what made them.
            images: the images.
            known: prompt and seed of each.
            wordings: prompt -> units that it is for, where it is not their caption.
        """
        found = match_images(
            images, self.index, Matching(descriptor=self.index.about["name"], fpr=FPR), None, self.silent
        )
        self.found = found
        rule, captions = CopyRule(found.threshold.statistic, found.threshold.value), self.of_caption()
        pixels = self.index.metric.kind == "tiled-rms"
        listed: list[Candidate] = []
        for row in found.rows:
            about = known.get(row["image"], Logged())
            text = plain(about.prompt or "")
            own = captions.get(text, [])
            asked = tuple(own if wordings is None else wordings.get(text, []))
            said = row.get(found.threshold.statistic)  # none where nothing aligns
            value = math.nan if said is None else float(rule.oriented([said])[0])
            listed.append(
                Candidate(
                    row["image"], search, self.units.of[row["train_id"]], row["train_id"], value, row["copy"] is True,
                    pixels and row["similarity"] == 1, asked,
                    about.seed if wordings is None and not about.adaptive else None,
                )
            )  # fmt: skip
        for row in found.set_aside:  # tried, too
            text = plain(known.get(row["image"], Logged()).prompt or "")
            asked = tuple((captions if wordings is None else wordings).get(text, []))
            listed.append(Candidate(row["image"], search, None, None, math.nan, False, False, asked))
        self.candidates[search], self.set_aside[search] = listed, len(found.set_aside)

    def tests(self) -> list[Tested]:
        """Everything that is compared with decoys."""
        groups: dict[str, list[Candidate]] = {}
        for search, listed in self.candidates.items():
            groups.setdefault(KINDS[search], []).extend(listed)
        return [*(best_images(name, listed, self.units) for name, listed in groups.items()), *self.measures]

    def summary(
        self, source: str, folder: Path, opener: Opener, notes: tuple[str, ...] = (), **more: Any
    ) -> ClaimSummary:
        """The summary of what was looked at; writes the proofs of works that were found."""
        assert self.found is not None
        threshold, everything = self.found.threshold, [one for listed in self.candidates.values() for one in listed]
        seen, of = measure_recall(self.pool, self.index, self.units, CopyRule(threshold.statistic, threshold.value))
        tests = self.tests()
        rows = findings(self.units, tests, everything, self.fdr, seen / of if of else None)
        enough = enough_decoys(len(self.units.works), len(tests), self.fdr)
        verdict = verdict_of(rows, self.fdr, len(self.units.decoys), enough)
        write_proofs(folder, rows, self.pool, opener)
        aside = sum(self.set_aside.values())
        return ClaimSummary(
            headline=verdict.sentence, verdict=verdict, source=source, works=tuple(rows), fdr=self.fdr,
            decoys=len(self.units.decoys), tests=tuple(test.name for test in tests),
            recall={"seen": seen, "of": of, "changes": CHANGES},
            threshold=json.loads(json.dumps(asdict(threshold) | {"value": abs(threshold.value)})),
            descriptor=self.index.about["name"],
            judged=sum(one.nearest is not None for one in everything),
            notes=tuple(dict.fromkeys(
                [*notes, *self.notes, *self.units.notes, *_unreadable(self.units), *([threshold.note] if threshold.note else [])]
                + ([f"{count(aside, 'image')} set aside: unreadable, black or constant."] if aside else [])
            )),
            limits=LIMITS, **more,
        )  # fmt: skip


LIMITS = (
    "The rate holds as far as decoys are of the works' kind: captions as specific, pictures as plain, and searched for as much.",
    "A bound is about this prompt, these settings and independent seeds. Other prompts, and seeds chosen by looking, may give "
    "the work all the same; they do not count for it.",
    "The matcher's recall is measured on changed works, not on what a model changes.",
    "That a work comes out says that the model, or whoever made the images, had it, not how.",
)


def _unreadable(units: Units) -> list[str]:
    return [f"The work {key} cannot be opened: {text}" for key, text in units.unreadable.items()]


def plain(text: str) -> str:
    """A prompt without differences of white space, by which prompts and captions are told to be the same."""
    return " ".join(text.split())
