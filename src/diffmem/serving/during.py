"""The guard's score from the evaluations that a generation makes itself, at its first steps and on its own noise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffmem.errors import UsageError
from diffmem.evaluation.calibration import ScoreThreshold, require_matching
from diffmem.models.conditioning import Conditioning
from diffmem.models.pipelines.branches import Pass, hooked, own_evaluation, read_pass
from diffmem.models.target import Target
from diffmem.scores.base import DenoiserScore
from diffmem.serving.conditionings import Known, equal, is_null, kept
from diffmem.serving.first_steps import FirstSteps, Judge
from diffmem.serving.gate import Watch
from diffmem.serving.reading import Flagged, Reading
from diffmem.serving.regimes import OwnSetting, OwnSteps, finite_threshold, generation_setting, network_score

if TYPE_CHECKING:
    from diffmem.models.pipelines.calls import Call
    from diffmem.serving.guard import Guard


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
        self.threshold, self.value = threshold, finite_threshold(threshold)
        self.own = OwnSetting.read(threshold.parameters)
        require_matching(threshold, generation_setting(target, score, self.own))
        self.reader = StepReader(target, score)

    def forget(self) -> None:
        """Nothing is kept from one call to the next."""

    def watch(
        self, guard: Guard, call: Call, known: Known, stops: bool, trusted: Collection[int] = (), reads: bool = True
    ) -> StepWatch:
        """What judges the passes of one attempt at a call, see `StepWatch`."""
        return StepWatch(guard, self, call, known, stops, trusted, reads)


class StepWatch(Watch):
    """Reads the score of a call from its first steps, and lets no other conditioning follow.

    Args:
        guard: whose call.
        detector: its detector.
        call: the call, opened.
        known: conditionings of earlier attempts; those of the first step are added.
        stops: whether the call ends when it is flagged.
        trusted: where nothing is read, images whose known conditionings may pass.
        reads: whether the score is read; without it only what is known may pass.
    """

    def __init__(
        self, guard: Guard, detector: DuringDetector, call: Call, known: Known, stops: bool, trusted: Collection[int],
        reads: bool,
    ) -> None:  # fmt: skip
        self.guard, self.detector, self.known, self.stops = guard, detector, known, stops
        self.size, self.trusted, self.earlier = call.size, frozenset(trusted), len(known.rows)
        self.reading = Reading()
        again = detector.reader.steps.upto == 1 and "latents" in call.parameters

        def judge(values: np.ndarray) -> bool:
            # A call with other images, too, is stopped only after the first step, where that costs each of the others 2
            # evaluations, and only if the pipeline can be given their noise again.
            held = values >= detector.value
            return stops and bool(held.all() or (held.any() and again))

        self.first = FirstSteps(detector.reader, call, self.reading, judge, detector.own, None) if reads else None
        self._passed: list[Conditioning] = []
        self._begun: float | None = None

    def before(self, asked: Pass) -> None:
        """Flagged for a conditioning that was not there at the first step."""
        if any(equal(asked.cond, passed) for passed in self._passed):
            return
        if self.first is not None:
            fits = self._begun is None or asked.t == self._begun
        else:
            found = self.known.find(asked.cond, self.earlier)
            empty = is_null(asked.cond, self.detector.reader.null)
            fits = all(e or (one is not None and one[0] in self.trusted) for e, one in zip(empty, found, strict=True))
        if not fits:
            # No score was read of it, and the noise that it would have to be read on is gone.
            self.reading.values = np.full(self.size, np.inf)
            if self.stops:
                raise Flagged
        self._begun = asked.t if self._begun is None else self._begun
        cond = kept(asked.cond)
        self._passed.append(cond)
        if len(cond) % self.size == 0:
            self.known.rows += [(cond.select([i]), i % self.size, None) for i in range(len(cond))]

    def after(self, asked: Pass, output: Any) -> None:
        """Read the first steps; Flagged when the last one that counts is done and the call ends there."""
        if self.first is not None:
            self.first.see(asked, output)

    def finish(self) -> None:
        """IncompatibleRun if the call came to its end before the score could be read."""
        if self.first is not None:
            self.first.require_read()


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
        self, call: Call, reading: Reading, judge: Judge, seen: Callable[[OwnSetting], None]
    ) -> Iterator[None]:
        """Fill `reading` during the call made inside; judge(values) True stops it with Flagged. For calibrations.

        Args:
            call: the call, opened.
            reading: filled when the last step that the score needs is done.
            judge: whether the call ends there.
            seen: told the setting that the call runs in, before it is judged.

        Raises:
            IncompatibleRun: the network was not called as expected.
        """
        first = FirstSteps(self, call, reading, judge, None, seen)
        thread = threading.get_ident()

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if own_evaluation() or threading.get_ident() != thread:
                return  # those of another thread on shared weights are not this generation's
            first.see(read_pass(self.denoiser, args, kwargs), output)

        try:
            with hooked(self.denoiser, hook):
                yield
        except Flagged:
            # A pipeline that ends frees the memory of offloaded parts; this one was interrupted.
            if hasattr(self.pipeline, "maybe_free_model_hooks"):
                self.pipeline.maybe_free_model_hooks()
            raise
        first.require_read()
