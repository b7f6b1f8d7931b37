"""One look at a checkpoint: losses, membership scores and the low-noise norm, then the prompts that these point at."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from diffmem.data.images import ImageSet
from diffmem.data.prompts import Prompt, PromptList
from diffmem.data.reference import reference_prompts
from diffmem.errors import DiffmemError, ScoreRefused
from diffmem.experiments.monitor.plan import MonitorPlan
from diffmem.models.target import Target
from diffmem.randomness import seed_of
from diffmem.runs.directory import RunDirectory
from diffmem.scores import DEFAULT_SCORE
from diffmem.scores.spec import parse_scores
from diffmem.stages.measure.measure import measure
from diffmem.stages.measure.pixels import HELD_OUT
from diffmem.stages.samples import named_samples
from diffmem.stages.score.rows import Scoring
from diffmem.stages.score.score import Scorer

REFERENCE_CAPTIONS = 64


@dataclass(frozen=True)
class Watched:
    """What is looked at, the same for all checkpoints.

    Attributes:
        train: the training images.
        heldout: images that no training saw, or None.
        prompts: given ones; None: captions of the training images.
        plan: how much of it.
        given: image -> the caption that it is trained with, for images that are trained on; None: all, with their own.
    """

    train: ImageSet
    heldout: ImageSet | None
    prompts: PromptList | None
    plan: MonitorPlan
    given: Mapping[str, str | None] | None = None

    @cached_property
    def sample(self) -> tuple[str, ...]:
        """The training images that are measured, a random part of `plan.images`."""
        names = self.train.ids if self.given is None else [name for name in self.train.ids if name in self.given]
        order = sorted(names, key=lambda name: seed_of(self.plan.seed, "monitored", name))
        return tuple(order[: self.plan.images])

    @cached_property
    def captions(self) -> dict[str, str]:
        """Image of the sample -> its caption, images without one left out."""
        wanted = set(self.sample)
        found = self.given or {item.id: item.caption for item in self.train.words() if item.id in wanted}
        return {name: text for name in self.sample if (text := found[name])}

    @cached_property
    def reference(self) -> PromptList:
        """Captions that the training did not see: of the held-out images, else ordinary ones of the package."""
        own = [] if self.heldout is None else [item.caption for item in self.heldout.words() if item.caption]
        trained = set(self.captions.values())
        texts = [text for text in dict.fromkeys(own) if text not in trained][:REFERENCE_CAPTIONS]
        if len(texts) >= 10:
            return PromptList(
                tuple(Prompt(f"reference/{i}", text) for i, text in enumerate(texts)), "held-out captions"
            )
        ordinary = reference_prompts()
        some = [Prompt(f"reference/{prompt.id}", prompt.text) for prompt in ordinary.prompts[:REFERENCE_CAPTIONS]]
        return PromptList(tuple(some), ordinary.source)


@dataclass
class Asked:
    """What images are made of; filled while a checkpoint is measured, because what is asked depends on it.

    Attributes:
        prompts: fixed ones first, then those chosen for this checkpoint.
        fixed: how many of them every checkpoint is asked for.
        draws: images of each.
        by_prompt: whether prompts are what is counted; False: images (samples, or too few different captions).
    """

    prompts: list[Prompt] = field(default_factory=list)
    fixed: int = 0
    draws: int = 1
    by_prompt: bool = True


@dataclass
class Look:
    """What was measured of a checkpoint before images were made.

    Attributes:
        asked: what images are made of.
        losses: time -> image id -> logarithm of its loss; held-out ones with "heldout/" before their id.
        scores: membership score -> image id -> evidence.
        norms: prompt id -> low-noise norm; those of reference captions with "reference/".
        reference: what the reference captions are.
        notes: what a reader must know.
        seconds: that measuring took.
        nfe: network evaluations of it.
    """

    asked: Asked
    losses: dict[float, dict[str, float]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    reference: str | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    nfe: float = 0.0


def look_at(run: RunDirectory, target: Target, watched: Watched, asked: Asked, silent: bool) -> Look:
    """Measure a checkpoint and say what images are to be made of it.

    A score that this model cannot have is a note, as is a model that only generates.
    """
    started, plan = time.perf_counter(), watched.plan
    look = Look(asked)
    if target.denoiser is None:
        look.notes.append(
            f"losses and scores were not measured: {target.generates_only or 'this model only generates'}"
        )
    else:
        _measure(run, target, watched, look, silent)
        if target.denoiser.conditional and watched.captions:
            _norms(run, target, watched, look, silent)
    _ask(target, watched, look, plan)
    # Of the rows, not of this command: one that was killed may have made some of them.
    look.nfe = sum(
        sum(filter(None, run.store.read(kind, ["nfe"])["nfe"].to_pylist())) for kind in ("measures", "scores")
    )
    look.seconds = time.perf_counter() - started
    return look


def _measure(run: RunDirectory, target: Target, watched: Watched, look: Look, silent: bool) -> None:
    plan = watched.plan
    labels = [*plan.losses, *plan.scores]
    found = measure(
        target, watched.train, labels, heldout=watched.heldout, out=run.path, trained=True, only=watched.sample,
        limit=plan.images, seed=plan.seed, silent=silent,
    )  # fmt: skip
    look.notes += found.notes
    look.notes += [f"{label} was not measured: {reason}" for label, reason in found.refused.items()]
    for label, time_ in zip(labels, plan.times, strict=False):
        values = found.values(label) if label not in found.refused else {}
        look.losses[time_] = {name: float(np.log(max(value, 1e-30))) for name, value in values.items()}
    for label in plan.scores:
        if label not in found.refused:
            look.scores[label] = found.evidence(label)


def _norms(run: RunDirectory, target: Target, watched: Watched, look: Look, silent: bool) -> None:
    plan = watched.plan
    own = [Prompt(name, text) for name, text in watched.captions.items()]
    listed = PromptList((*own, *watched.reference.prompts), watched.train.name)
    settings = Scoring(scores=(DEFAULT_SCORE,), draws=plan.draws, seed=plan.seed)
    try:
        found = Scorer(target, listed, parse_scores(DEFAULT_SCORE), settings, run).score(None, False, silent)
    except (DiffmemError, ScoreRefused) as problem:
        look.notes.append(f"the low-noise norm was not measured: {problem}")
        return
    look.notes += [f"the low-noise norm was not measured: {reason}" for reason in found.refused.values()]
    look.norms = {name: float(values.mean()) for name, values in found.values(found.labels[0]).items()}
    look.reference = watched.reference.source


def _ask(target: Target, watched: Watched, look: Look, plan: MonitorPlan) -> None:
    """Fixed prompts by lot, and as many chosen; images are counted instead where there are no or few different prompts."""
    asked, wanted = look.asked, plan.prompts * plan.images_per_prompt
    if target.denoiser is not None and not target.denoiser.conditional:
        asked.prompts[:] = named_samples(wanted).prompts
        asked.fixed, asked.draws, asked.by_prompt = wanted, 1, False
        return
    given = [] if watched.prompts is None else [prompt for prompt in watched.prompts if prompt.problem is None]
    several = given or [Prompt(name, text) for name, text in watched.captions.items()]
    several = list({prompt.text: prompt for prompt in reversed(several)}.values())[::-1]
    half = plan.prompts - plan.prompts // 2
    fixed = sorted(several, key=lambda prompt: seed_of(plan.seed, "fixed prompt", prompt.text))[:half]
    if not fixed:
        look.notes.append("no images were made: the training images have no captions; give prompts (--prompts)")
        return
    texts = {prompt.text for prompt in fixed}
    chosen: list[Prompt] = []
    for name in suspects(look, watched):
        text = watched.captions.get(name)
        if text and text not in texts and len(chosen) < plan.prompts - len(fixed):
            texts.add(text)
            chosen.append(Prompt(name, text))
    asked.prompts[:] = [
        Prompt(f"{kind}/{prompt.id}", prompt.text)
        for kind, some in (("fixed", fixed), ("chosen", chosen))
        for prompt in some
    ]
    asked.fixed = len(fixed)
    asked.by_prompt = len(asked.prompts) >= half
    asked.draws = plan.images_per_prompt if asked.by_prompt else -(-wanted // len(asked.prompts))


def work_of(prompts: Sequence[Prompt], draws: int) -> list[tuple[Prompt, int]]:
    """(prompt, draw) of each image that is made."""
    return [(prompt, draw) for prompt in prompts for draw in range(draws)]


def suspects(look: Look, watched: Watched) -> list[str]:
    """The sample's images, those first that the losses, the membership scores and their captions' norms point at most.

    Each of the three ranks the images; the mean of the ranks counts.
    """
    own = [name for name in watched.sample if not name.startswith(HELD_OUT)]
    columns: list[Mapping[str, float]] = []
    if look.losses:
        falls = {name: -np.mean([values[name] for values in look.losses.values()]) for name in own
                 if all(name in values for values in look.losses.values())}  # fmt: skip
        columns.append({name: float(value) for name, value in falls.items()})
    columns += list(look.scores.values())
    if look.norms:
        columns.append(look.norms)
    ranks: dict[str, list[float]] = {name: [] for name in own}
    for column in columns:
        there = sorted((name for name in own if name in column), key=lambda name: column[name])
        for place, name in enumerate(there):
            ranks[name].append(place / max(1, len(there) - 1))
    order: Sequence[str] = sorted(own, key=lambda name: -float(np.mean(ranks[name] or [0.0])))
    return list(order)


def as_fact(look: Look) -> dict[str, Any]:
    """What of a look is kept beside its rows."""
    return {
        "losses": {f"{time_:g}": values for time_, values in look.losses.items()}, "scores": look.scores,
        "norms": look.norms, "reference": look.reference, "notes": look.notes, "seconds": look.seconds, "nfe": look.nfe,
        "fixed": look.asked.fixed, "draws": look.asked.draws, "by_prompt": look.asked.by_prompt,
        "prompts": [[prompt.id, prompt.text] for prompt in look.asked.prompts],
    }  # fmt: skip
