"""Curate a training set: rank it by measured ease of reproduction and by duplicates, propose what to do, write it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmem.copies.curation import Candidate, Proposal, Rule, limit_of, propose
from diffmem.copies.descriptors import PIXEL_DESCRIPTOR, make_descriptor
from diffmem.copies.duplicates import DuplicateGroups
from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet, as_images
from diffmem.errors import DataError, UsageError
from diffmem.experiments.curate.trials import LEAST, Trial, try_changes
from diffmem.experiments.curate.write import Format, write_dataset, write_table, write_trials
from diffmem.models.model_image import ModelImage, convert
from diffmem.models.target import Target
from diffmem.notebook import ShownInNotebooks, is_silent
from diffmem.report.measures.summary import is_membership
from diffmem.runs.facts import read_fact
from diffmem.runs.manifest import read_manifest
from diffmem.runs.progress import Progress
from diffmem.runs.store import RunStore
from diffmem.stages.measure.pixels import HELD_OUT, image_sha
from diffmem.stages.measure.rows import label_in


@dataclass(frozen=True)
class Curation(ShownInNotebooks):
    """What was proposed.

    Attributes:
        proposals: one per image, the most memorized first.
        score: the measure behind them.
        limit: from when on an image counts as memorized, in words.
        files: what was written.
        dataset: the modified set and its size; None unless it was asked for.
        notes: what a reader should know.
    """

    proposals: list[Proposal]
    score: str
    limit: str
    files: list[Path]
    dataset: tuple[Path, int] | None
    notes: list[str]

    def __repr__(self) -> str:
        return f"Curation({len(self.proposals)} images by {self.score}: {self.counts()})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            **self.counts(), "limit": self.limit, "files": [str(file) for file in self.files],
            "changed data set": None if self.dataset is None else f"{self.dataset[0]}, {self.dataset[1]:,} images",
            "notes": self.notes,
        }  # fmt: skip

    def counts(self) -> dict[str, int]:
        """Action -> images."""
        return dict(Counter(proposal.action for proposal in self.proposals).most_common())


def curate(
    images: ImageSet | str | Path,
    run: str | Path,
    out: str | Path,
    *,
    score: str | None = None,
    rule: Rule | None = None,
    descriptor: str = PIXEL_DESCRIPTOR,
    descriptor_options: Mapping[str, Any] | None = None,
    cut: float | None = None,
    write: bool = False,
    format: Format = "folder",
    model: Target | str | Path | None = None,
    seed: int = 0,
    silent: bool | None = None,
) -> Curation:
    """Propose for every image of a training set: keep, drop, de-duplicate, re-caption, or change it.

    Args:
        images: the training set that was measured (or a part of it, or a larger one).
        run: the run directory of `measure` on it.
        out: folder for the proposal (CSV, Parquet, JSON) and the modified dataset.
        score: which measure of the run; by default the first that is no membership score.
        rule: when an image counts as memorized, and what is done then.
        descriptor: how near-duplicates are found.
        descriptor_options: of its class.
        cut: similarity from which two images are near-duplicates; by default the descriptor's.
        write: write the modified dataset too. The originals are never touched.
        format: of that dataset, "folder" with metadata.jsonl or "parquet".
        model: the model that was measured; taken by `Rule(alter="least")`, which measures each held image changed.
        seed: of the places of crops and of the images that others are mixed with.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Raises:
        DataError: the run holds no measures, or none of these images.
        UsageError: `least` without the model.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> measured = dm.measure(network, list(images[:4]), ["loss"], heldout=list(images[4:]), out="runs/measured")
        >>> dm.curate(list(images[:4]), "runs/measured", "curated", score="loss").counts()
        {'keep': 4}
    """
    silent = is_silent(silent)
    folder, target = Path(run), Path(out)
    read_manifest(folder)
    source = as_images(images)
    source.require_captions()
    label, measured, heldout = _evidence(folder, score)
    groups, problems, names = _groups(source, descriptor, descriptor_options or {}, cut, silent)
    candidates = list(_candidates(source, folder, measured, groups, names, problems))
    known = sum(candidate.evidence is not None for candidate in candidates)
    if not known:
        raise DataError(
            f"None of the {len(candidates)} images was measured in '{run}': curate the images that were given to measure."
        )
    rule = rule or Rule()
    proposals, limit = propose(candidates, heldout, rule)
    trials: list[Trial] = []
    if rule.alter == LEAST:
        if model is None:
            raise UsageError("The smallest change that is enough is found by measuring: give the model (--model).")
        opened = model if isinstance(model, Target) else Target.from_pretrained(model)
        bound = limit_of(rule, [c.evidence for c in candidates if c.evidence is not None], heldout)[0]
        proposals, trials = try_changes(opened, source, proposals, bound, label, target / "trials", seed, silent)
    notes = (
        [f"{len(candidates) - known} of {len(candidates)} images were not measured"] if known < len(candidates) else []
    )
    notes += [groups.warning] if groups.warning else []
    about = {
        "score": label, "held": limit, "descriptor": descriptor, "cut": groups.cut, "held_out_images": len(heldout),
        "notes": notes,
    }  # fmt: skip
    files = write_table(target, proposals, about)
    files += [write_trials(target, trials)] if trials else []
    dataset = write_dataset(target, source, proposals, format, seed) if write else None
    return Curation(proposals, label, limit, files, dataset, notes)


def _evidence(folder: Path, score: str | None) -> tuple[str, dict[str, tuple[float, float]], list[float]]:
    """The measure's label, pixel hash -> (value, evidence) of the measured images, evidence of the held-out ones."""
    store = RunStore(folder)
    columns = ["image_id", "score", "value", "evidence", "status"]
    rows = [row for row in store.read("measures", columns).to_pylist() if row["status"] == "ok"]
    if not rows:
        raise DataError(f"'{folder}' holds no measures of images; run diffmem measure on the training set first.")
    labels = list((read_fact(folder, "measured-model") or {}).get("scores", {})) or [row["score"] for row in rows]
    there = {row["score"] for row in rows}
    if score is None:
        able = [label for label in labels if label in there]
        score = next((label for label in able if not is_membership(label)), able[0])
    else:
        score = label_in(score, there, folder)
    shas = {row["image_id"]: row["sha"] for row in store.read("targets", ["image_id", "sha", "status"]).to_pylist()}
    mine = [row for row in rows if row["score"] == score]
    own = {
        shas[row["image_id"]]: (row["value"], row["evidence"])
        for row in mine
        if not row["image_id"].startswith(HELD_OUT)
    }
    return score, own, [row["evidence"] for row in mine if row["image_id"].startswith(HELD_OUT)]


def _groups(
    images: ImageSet, name: str, options: Mapping[str, Any], cut: float | None, silent: bool
) -> tuple[DuplicateGroups, dict[str, str], list[str]]:
    """Near-duplicate groups (variants of one template are one), unreadable images, the ids in the groups' order."""
    describe = make_descriptor(name, images, **options)
    with Progress(len(images), "describing", unit="images", silent=silent) as bar:
        index = CopyIndex.build(images, describe, progress=bar.advance)
    return index.duplicates(cut), index.problems, list(index.ids)


def _candidates(
    images: ImageSet, folder: Path, measured: Mapping[str, tuple[float, float]], groups: DuplicateGroups,
    names: list[str], problems: Mapping[str, str],
) -> Any:  # fmt: skip
    """Every image of the set, by the pixels that the model saw."""
    fact = read_fact(folder, "measured-model")
    if fact is None:
        raise DataError(f"'{folder}' does not say how its images were converted; run diffmem measure again.")
    form = ModelImage(fact["mode"], fact["width"], fact["height"])
    group_of = {name: int(group) for name, group in zip(names, groups.group, strict=True)}
    alone = groups.count
    for item in images:
        found = measured.get(image_sha(convert(item.image, form)[0])) if item.image is not None else None
        group = group_of.get(item.id)
        if group is None:  # could not be described: a group of its own
            group, alone = alone, alone + 1
        value, evidence = found or (None, None)
        yield Candidate(item.id, group, evidence, value, item.caption, problems.get(item.id, item.problem))
