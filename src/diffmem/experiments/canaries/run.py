"""How strongly a trained model reproduces registered canaries, as a function of how often it saw them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.descriptors.base import Descriptor
from diffmem.data.canaries import Registration, read_registration
from diffmem.data.images import load_images
from diffmem.data.prompts import Prompt
from diffmem.errors import UsageError
from diffmem.evaluation.clusters import Floats
from diffmem.experiments.canaries.images import by_caption, by_sampling, described
from diffmem.experiments.canaries.statistics import DETECTED, CanaryMeasure, summarize
from diffmem.models.target import Target
from diffmem.runs.directory import RunDirectory, record_model
from diffmem.runs.facts import write_fact
from diffmem.scores.spec import parse_image_scores
from diffmem.stages.generate import Generation, generate_stage
from diffmem.stages.measure.measure import measure

FACT = "canaries"
SAMPLED = "unconditional sample"


@dataclass
class CanaryResult:
    """What was measured.

    Attributes:
        run: the run directory.
        registration: what was registered.
        measures: generation (or sampling) first, then image scores.
        closest: canary id -> (prompt id, draw, similarity) of the generated image that is most like it.
        notes: what a reader must know.
    """

    run: RunDirectory
    registration: Registration
    measures: list[CanaryMeasure] = field(default_factory=list)
    closest: dict[str, tuple[str, int, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        registered = self.registration
        return {
            "registration": registered.hash, "created": registered.created, "canaries": len(registered.trained),
            "controls": len(registered.controls), "exposure_at_most": float(np.log2(len(registered.controls) + 1)),
            "measures": [one.as_dict() for one in self.measures], "notes": self.notes,
        }  # fmt: skip


def measure_canaries(
    target: Target,
    registration: Registration | str | Path,
    settings: Generation | None = None,
    *,
    out: str | Path | None = None,
    scores: Sequence[str] = ("loss",),
    descriptor: str = "l2-tiled",
    descriptor_options: Mapping[str, Any] | None = None,
    trained_with: str | None = None,
    retry_errors: bool = False,
    silent: bool = True,
) -> CanaryResult:
    """Measure how strongly each canary is reproduced, against negative controls of the same process.

    A model with prompts makes K images under each canary's and each control's caption; strength is how much more they are
    like their own picture than like those of the controls. A model without prompts makes K images per registered
    picture; strength is the greatest similarity that any has with it. Image scores look at the pictures themselves.

    Args:
        target: the trained model.
        registration: what `diffmem canaries make` wrote before training.
        settings: images per caption, seed, sampling.
        out: run directory; the same call goes on where it left.
        scores: image scores to measure with, too; empty for none.
        descriptor: how images are compared.
        descriptor_options: of the descriptor's class.
        trained_with: hash of the registration that the training recorded, if it did.
        retry_errors: make images and measures again that ended in an error.
        silent: no progress on stderr.

    Raises:
        DataError: a registration that was changed, or whose pictures are gone.
        UsageError: fewer than two controls, or a model that makes no images and no scores.
    """
    known = registration if isinstance(registration, Registration) else read_registration(registration)
    if len(known.controls) < 2 or not known.trained:
        raise UsageError(
            f"The registration has {len(known.trained)} canaries and {len(known.controls)} controls; expected at least one "
            "and two."
        )
    settings = settings or Generation(draws=8)
    pictures = known.pictures()
    maker = make_descriptor(descriptor, load_images(pictures), **(descriptor_options or {}))
    run = RunDirectory(
        out, {"generate": settings.model_dump(mode="json"), "canaries": {"descriptor": maker.recipe}},
        {"model": target.fingerprint, "prompts": known.hash},
    )  # fmt: skip
    record_model(target, run.path)
    result = CanaryResult(run, known, notes=_about(known, trained_with))
    if target.can_generate:
        _generated(target, known, settings, run, maker, result, retry_errors, silent)
    for score in parse_image_scores(scores):
        found = measure(
            target, load_images(known.place), [score], out=run.path, seed=settings.seed, batch=settings.batch,
            retry_errors=retry_errors, silent=silent,
        )  # fmt: skip
        values = found.evidence(score.label)
        column = np.array([values.get(f"{canary.id}.png", np.nan) for canary in known.canaries])
        result.measures.append(_of_column(score.label, "evidence of the score, higher = more memorized", known, column))
        result.notes += [n for n in found.notes if n not in result.notes]
    if not result.measures:
        raise UsageError("This model makes no images: name an image score that it can be measured with (--score loss).")
    write_fact(run.path, FACT, json.loads(json.dumps(result.as_dict())))
    return result


def _generated(
    target: Target, known: Registration, settings: Generation, run: RunDirectory, maker: Descriptor,
    result: CanaryResult, retry_errors: bool, silent: bool,
) -> None:  # fmt: skip
    conditional = target.denoiser is None or target.denoiser.conditional
    if target.denoiser is not None and conditional:
        cut = [text for text in target.denoiser.encode_prompts([c.caption for c in known.canaries]).truncated if text]
        if cut:
            result.notes.append(
                f"{len(cut)} of {len(known.canaries)} captions are longer than the text encoder reads and were cut (in the "
                "training too): shorter ones tell canaries apart better (--words dataset)"
            )
    if conditional:
        prompts = [Prompt(canary.id, canary.caption) for canary in known.canaries]
        work = None
    else:
        prompts = [Prompt(SAMPLED, SAMPLED)]
        work = [(prompts[0], draw) for draw in range(settings.draws * len(known.canaries))]
    made = generate_stage(target, prompts, settings, run, None, retry_errors, silent, work)
    result.notes += made.notes
    similar = described(run.store, maker, known, [prompt.id for prompt in prompts])
    if similar.set_aside:
        result.notes.append(f"{similar.set_aside} images were set aside: failed, black or constant")
    result.closest = similar.closest(known, own=conditional)
    if conditional:
        found = by_caption(similar, known)
        unit = "similarity with the own picture minus mean similarity with the controls' (0: no trace)"
        result.measures.append(
            summarize("generation", unit, known.canaries, found.values, found.against, found.shares, settings.seed)
        )
        return
    values, shares = by_sampling(similar, known)
    unit = f"greatest similarity of any of {similar.images} samples with the picture"
    result.measures.append(_of_column("sampling", unit, known, values, shares, settings.seed))


def _of_column(
    name: str, unit: str, known: Registration, values: Floats, shares: Any = None, seed: int = 0
) -> CanaryMeasure:
    """A measure whose strengths do not depend on which canaries are compared."""
    controls = [i for i, canary in enumerate(known.canaries) if canary.control and np.isfinite(values[i])]
    return summarize(
        name, unit, known.canaries, values, lambda members: values[[*members, *controls]], shares, seed
    )  # fmt: skip


def _about(known: Registration, trained_with: str | None) -> list[str]:
    notes = []
    if (least := 1 / (len(known.controls) + 1)) > DETECTED:
        notes.append(
            f"{len(known.controls)} controls give p-values of at least {least:.1%}: no canary can be called detected at "
            f"{DETECTED:.0%}; register 19 or more"
        )
    if trained_with is None:
        found = (
            "no training log beside this model names a registration: that it was made before the training rests on the "
            "dates alone"
        )
    elif trained_with != known.hash:
        found = f"the training recorded another registration ({trained_with}) than this one ({known.hash})"
    else:
        found = f"the training recorded this registration ({known.hash}) when it began"
    return [found, *notes]
