"""What a model is, which scores can run on it, what they cost on this device, and what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from diffmem.errors import DiffmemError
from diffmem.experiments.doctor.environment import Finding, examine_extras
from diffmem.experiments.doctor.scores import ScoreFinding, examine_scores
from diffmem.models.denoiser import Denoiser
from diffmem.models.generation import Sampling, accepted, steps_of
from diffmem.models.known import KnownModel, find_known
from diffmem.models.loading import quiet_libraries
from diffmem.models.target import Target
from diffmem.runs.timing import Timing, measure
from diffmem.scores.prompt.needs import Moment, NoiseRatio, SamplerStep

T = TypeVar("T")
FEW, MORE = 2, 6
"""Sampling steps of the two images from whose times that of a whole image is estimated."""


@dataclass(frozen=True)
class ImageCost:
    """What one generated image costs at the pipeline's own settings.

    Attributes:
        steps, nfe: sampling steps and network evaluations (methods of higher order take more).
        timing: decoding included; None with `problem` where no image could be made.
    """

    steps: int | None
    nfe: int | None
    timing: Timing | None
    problem: str | None = None


@dataclass(frozen=True)
class ModelExam:
    """Everything that `diffmem doctor MODEL` says; see `as_dict`."""

    facts: dict[str, Any]
    check: dict[str, Any]
    scores: tuple[ScoreFinding, ...]
    image: ImageCost | None
    extras: tuple[Finding, ...]
    known: KnownModel | None
    advice: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether scoring sees the network that the pipeline runs, as far as that could be checked."""
        return bool(self.check["passed"] is not False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def examine_model(
    target: Target,
    source: str | Path | None = None,
    budget: float = 5.0,
    say: Callable[[str], None] | None = None,
    images: Any | None = None,
) -> ModelExam:
    """Examine a model and time it.

    Args:
        target: the model.
        source: what it was opened from, to find it among the well-known models.
        budget: seconds that one measurement may take before it is estimated from a shorter one.
        say: is told what is being done; None: nobody is.
        images: of the kind that the model was trained on, to check what it was declared to be (`Target.check`).

    Returns:
        A ModelExam. Cost: a few images and a few evaluations of each score.
    """
    denoiser = target.denoiser
    known = find_known(source) if source is not None else None
    known = known or find_known(str(getattr(target.pipeline, "name_or_path", "") or ""))
    prompts = [] if denoiser is None else sample_prompts(denoiser, 4)
    with quiet_libraries():  # pipelines repeat their notices at every image
        return ModelExam(
            facts=describe(target),
            check=_told(say, "whether scoring sees the pipeline's network", lambda: _check(target, prompts, images)),
            scores=() if denoiser is None else tuple(examine_scores(target, prompts, budget, say)),
            image=_told(say, "what an image costs", lambda: _image_cost(target, prompts, budget)),
            extras=tuple(examine_extras(None if denoiser is None else denoiser.family)),
            known=known,
            advice=tuple(_advice(target, known)),
        )


def _told(say: Callable[[str], None] | None, what: str, work: Callable[[], T]) -> T:
    """The outcome of some work, announced before it begins."""
    if say is not None:
        say(f"looking at {what}")
    return work()


def sample_prompts(denoiser: Denoiser, count: int) -> list[str]:
    """Distinct prompts that this model takes: texts, class numbers, or names of noise for unconditional models."""
    texts = [f"fox {i}" for i in range(count)]
    if not denoiser.conditional:
        return texts
    try:
        denoiser.encode_prompts(texts[:1])
    except DiffmemError:
        return [str(i) for i in range(count)]  # a model of classes
    return texts


def describe(target: Target) -> dict[str, Any]:
    """What the model is, as plain values; the times are in the network's own units."""
    denoiser, pipeline = target.denoiser, target.pipeline
    facts: dict[str, Any] = {
        "name": target.name,
        "fingerprint": target.fingerprint,
        "pipeline": None if pipeline is None else type(pipeline).__name__,
        "scheduler": None if target.is_function else type(pipeline.scheduler).__name__,
        "parameters": _parameters(pipeline),
    }
    if denoiser is None:
        return facts | {"family": None}
    schedule = denoiser.schedule
    return facts | {
        "family": denoiser.family,
        "prediction": denoiser.prediction,
        "schedule": schedule.kind,
        "times": [schedule.t_min, schedule.t_max],
        "t_hi": _moment(denoiser, SamplerStep(0)),
        "t_lo": _moment(denoiser, NoiseRatio(0.2)),
        "sample_shape": list(denoiser.sample_shape),
        "space": denoiser.space,
        "conditional": denoiser.conditional,
        "unconditional_branch": denoiser.unconditional_branch,
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "device": str(denoiser.device),
    }


def _moment(denoiser: Denoiser, moment: Moment) -> dict[str, float]:
    t = moment.resolve(denoiser.schedule)
    alpha, sigma = denoiser.schedule.at(t)
    return {"t": t, "alpha": alpha, "sigma": sigma}


def _parameters(pipeline: Any) -> dict[str, int]:
    """Parameters per component of the pipeline."""
    import torch

    parts = getattr(pipeline, "components", {})
    return {
        name: sum(p.numel() for p in part.parameters())
        for name, part in parts.items()
        if isinstance(part, torch.nn.Module)
    }


def _check(target: Target, prompts: list[str], images: Any | None) -> dict[str, Any]:
    """`Target.check` as plain values; `passed` is None where there is nothing to compare."""
    if target.denoiser is None:
        return {
            "passed": None,
            "message": f"Nothing is scored, so there is nothing to compare: {target.generates_only}",
        }
    try:
        return target.check(prompts[0], Sampling(steps=FEW), images).as_dict()
    except DiffmemError as problem:
        return {"passed": False, "message": f"The check could not run: {problem}"}


def _image_cost(target: Target, prompts: list[str], budget: float) -> ImageCost | None:
    """Seconds of one image at the pipeline's own steps: measured, or from a shorter and a longer run of few steps."""
    if target.pipeline is None or target.denoiser is None:
        return None
    own = Sampling()
    steps, nfe = steps_of(target.pipeline, own), target.generation_nfe(own)

    def make(count: int | None) -> object:
        return target.generate(prompts[:1], [0], 0, Sampling(steps=count))

    stepped = "num_inference_steps" in accepted(target.pipeline)
    try:
        if not stepped:
            return ImageCost(steps, nfe, measure(lambda: make(None), 1, "one image", 3, budget))
        few = measure(lambda: make(FEW), 1, f"{FEW} steps", 3, budget)
        more = measure(lambda: make(MORE), 1, f"{MORE} steps", 3, budget)
        each = max(0.0, (more.seconds - few.seconds) / (MORE - FEW))
        expected = more.seconds + each * (steps - MORE)
        if expected <= budget:
            return ImageCost(steps, nfe, measure(lambda: make(None), 1, f"one image of {steps} steps", 3, budget))
    except (DiffmemError, RuntimeError, ValueError, TypeError) as problem:
        return ImageCost(steps, nfe, None, f"{type(problem).__name__}: {str(problem).splitlines()[0]}")
    how = f"estimated: a straight line through the medians of 3 images of {FEW} and of {MORE} steps, to {steps} steps"
    return ImageCost(steps, nfe, Timing(expected, None, None, 0, how))


def _advice(target: Target, known: KnownModel | None) -> list[str]:
    """What is recommended for this model where it is known, and what differs from it here."""
    if known is None:
        return []
    advice = []
    denoiser, pipeline = target.denoiser, target.pipeline
    if denoiser is not None:
        dtype = str(denoiser.dtype).removeprefix("torch.")
        if denoiser.device.type != "cpu" and dtype != known.dtype:
            advice.append(f"It runs in {dtype}; recommended on a GPU: --dtype {known.dtype}.")
        if known.prediction is not None and denoiser.prediction != known.prediction:
            advice.append(f"Its scheduler says {denoiser.prediction}; expected {known.prediction}: check its config.")
    if known.guidance is not None:
        advice.append(f"Recommended: --guidance {known.guidance:g} --steps {known.steps}.")
    elif known.steps is not None:
        advice.append(f"Published setting: --steps {known.steps}.")
    if known.scheduler is not None and pipeline is not None:
        advice.append(f"Usual sampler: --scheduler {known.scheduler}; here it is {type(pipeline.scheduler).__name__}.")
    return advice + list(known.notes)
