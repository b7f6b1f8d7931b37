"""The guard's score from the evaluations that a generation makes itself, at its first steps and on its own noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffmem.errors import IncompatibleRun, UsageError
from diffmem.evaluation.calibration import ScoreThreshold, require_matching
from diffmem.models.target import Target
from diffmem.scores.base import DenoiserScore
from diffmem.serving.first_steps import FirstSteps, Judge
from diffmem.serving.reading import Flagged, Reading
from diffmem.serving.regimes import OwnSetting, OwnSteps, generation_setting, network_score

if TYPE_CHECKING:
    from diffmem.models.pipelines.calls import Call


class DuringDetector:
    """Scores images while they are generated; costs no evaluation where the pipeline evaluates the empty prompt itself.

    With a negative prompt, or without guidance, it does not: then the guard adds one evaluation per image and step read.

    Args:
        target: the model.
        threshold: of the regime "generation".

    Raises:
        IncompatibleRun: the threshold was made for another model or score.
        UsageError: a threshold that is not measurable, a score that needs other evaluations, or a pipeline whose first
            step is not pure noise.
    """

    def __init__(self, target: Target, threshold: ScoreThreshold) -> None:
        score = network_score(threshold.score)
        if threshold.value is None:
            raise UsageError(f"This threshold decides nothing. {threshold.note}")
        self.threshold, self.value = threshold, threshold.value
        self.own = OwnSetting.read(threshold.parameters)
        require_matching(threshold, generation_setting(target, score, self.own))
        self.reader = StepReader(target, score)

    @contextmanager
    def watching(self, call: Call, reading: Reading, stops: bool) -> Iterator[None]:
        """Read the score of the call made inside; Flagged, out of the pipeline, as soon as that is worth while.

        A call of which every image is flagged is stopped. One with other images, too, is stopped only after the first
        step, where that costs each of the others 2 evaluations, and only if the pipeline can be given their noise again.
        """
        again = self.reader.steps.upto == 1 and "latents" in call.parameters

        def judge(values: np.ndarray) -> bool:
            held = values >= self.value
            return stops and bool(held.all() or (held.any() and again))

        with self.reader.watching(call, reading, judge, self.own):
            yield


class StepReader:
    """Reads a score from the first evaluations of a running pipeline.

    Args:
        target: the model.
        score: what to compute.

    Raises:
        UsageError: the score needs evaluations that a generation does not make, or the first step is not pure noise.
    """

    def __init__(self, target: Target, score: DenoiserScore) -> None:
        import inspect

        self.denoiser, self.pipeline, self.score = target.need_denoiser(), target.pipeline, score
        self.steps = OwnSteps.of(score, self.denoiser)
        if "strength" in inspect.signature(type(self.pipeline).__call__).parameters:
            raise UsageError(
                f"{type(self.pipeline).__name__} starts from an image, so its first step does not see pure noise, on which "
                "thresholds are calibrated: use the regime 'before', which scores the prompt by itself."
            )
        with torch.no_grad():
            self.null = self.denoiser.null()

    @contextmanager
    def watching(
        self, call: Call, reading: Reading, judge: Judge, own: OwnSetting | None = None,
        seen: Callable[[OwnSetting], None] | None = None,
    ) -> Iterator[None]:  # fmt: skip
        """Fill `reading` during the call made inside; judge(values) True stops it with Flagged.

        Args:
            call: the call, opened.
            reading: filled when the last step that the score needs is done.
            judge: whether the call ends there.
            own: the setting that the call must run in; None takes it as it is.
            seen: told the setting that the call runs in, before it is judged.

        Raises:
            IncompatibleRun: the call runs in another setting, or its network was not called as expected.
        """
        hook = FirstSteps(self, call, reading, judge, own, seen)
        handles = [m.register_forward_hook(hook, with_kwargs=True) for m in self.denoiser.network_modules()]
        try:
            yield
        except Flagged:
            # A pipeline that ends frees the memory of offloaded parts; this one was interrupted.
            if hasattr(self.pipeline, "maybe_free_model_hooks"):
                self.pipeline.maybe_free_model_hooks()
            raise
        finally:
            for handle in handles:
                handle.remove()
        if reading.values is None:
            raise IncompatibleRun(
                f"The pipeline evaluated its network {len(hook.stops)} times; the score {self.score.label} reads "
                f"{self.steps.upto}. No image was given out: call it with more steps, or calibrate for fewer."
            )
