"""A threshold for the guard that scores during generation: the pipeline itself runs as far as the score reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from diffmem.data.prompts import PromptList
from diffmem.errors import UsageError
from diffmem.evaluation.calibration import calibrate_threshold
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.mitigation.base import Record
from diffmem.models.generation import Sampling, accepted, steps_of
from diffmem.models.pipelines.calls import Call, intercepted
from diffmem.models.target import Target
from diffmem.renamed import renamed
from diffmem.runs.microbatch import MicroBatches, describe
from diffmem.serving.during import StepReader
from diffmem.serving.reading import Flagged, Reading
from diffmem.serving.regimes import OwnSetting, generation_setting, network_score
from diffmem.stages.score.screen import Calibration

BATCH = 32


@renamed(rate="fpr")
def calibrate_during(
    target: Target,
    reference: PromptList,
    spec: str | None,
    fpr: float,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> Calibration:
    """Run the pipeline on every reference prompt for as many steps as the score reads, and set a threshold.

    Args:
        target: the model.
        reference: prompts of which none is memorized.
        spec: the score; by default the score difference over the first half of the steps.
        fpr: nominal false-positive rate.
        steps: of the calls to come, the pipeline's own where None; a score that names them must agree.
        guidance: of the calls to come, as `steps`.
        seed: root seed of the images' noise.

    Returns:
        The calibration. Cost: 2 NFE per prompt and step read.

    Raises:
        UsageError: the score needs evaluations that a generation does not make, or other steps or guidance than given.
    """
    scale = guidance if guidance is not None else _own_guidance(target.pipeline)
    if spec is None:
        count = steps_of(target.pipeline, Sampling(steps=steps))
        # Without guidance the pipeline evaluates no empty prompt, so that every step read costs an evaluation.
        spec = f"score-difference:over=steps,k={max(1, count // 2) if scale > 1 else 1},steps={count},guidance={scale}"
    score = network_score(spec)
    reader = StepReader(target, score)
    own = reader.steps
    for name, asked, says in (("steps", steps, own.steps), ("guidance", guidance, own.guidance)):
        if asked is not None and says is not None and asked != says:
            raise UsageError(
                f"{score.label} reads {name} = {says:g}, but {name} = {asked:g} was given: write {asked:g}."
            )
    usable = [p for p in reference if p.problem is None]
    sampling = Sampling(steps=own.steps, guidance=own.guidance if own.guidance is not None else scale)
    values: list[float] = []
    settings: list[OwnSetting] = []
    for part, outcome in MicroBatches(BATCH).run(
        [p.text for p in usable], lambda texts: read(target, reader, texts, seed, sampling)
    ):
        if isinstance(outcome, Exception):
            raise UsageError(f"The pipeline could not begin with {part[0]!r}: {describe(outcome)}.") from outcome
        values += outcome[0]
        settings.append(outcome[1])
    finite = [i for i, value in enumerate(values) if np.isfinite(value)]
    if not finite:
        raise UsageError("No reference prompt could be scored, so there is nothing to calibrate on.")
    kept = np.array([values[i] for i in finite])
    groups = near_duplicate_groups([usable[i].text for i in finite])
    setting = generation_setting(target, score, settings[0])
    threshold = calibrate_threshold(kept, fpr, setting, reference.source, reference.fingerprint, groups)
    return Calibration(threshold, None, tuple(kept.tolist()), len(reference) - len(finite))


def read(
    target: Target, reader: StepReader, texts: Sequence[str], seed: int, sampling: Sampling
) -> tuple[list[float], OwnSetting]:
    """Scores of one image per prompt, read from generations that are stopped then, and the setting that they ran in."""
    reading = Reading()
    found: list[OwnSetting] = []

    @contextmanager
    def around(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
        call = Call(target.pipeline, reader.denoiser, arguments, Record())
        with reader.watching(call, reading, lambda _: True, seen=found.append):
            yield arguments

    with intercepted(target.pipeline, around), contextlib.suppress(Flagged):
        target.generate(list(texts), [0] * len(texts), seed, sampling)
    assert reading.values is not None
    return reading.values.tolist(), found[0]


def _own_guidance(pipeline: Any) -> float:
    parameters = accepted(pipeline)
    default = parameters.get("true_cfg_scale", parameters.get("guidance_scale"))
    return float(default.default) if default is not None and isinstance(default.default, int | float) else 1.0
