"""Both branches of a generation's first steps, from hooks on the network that the pipeline calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from diffmem.errors import IncompatibleRun, UsageError
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.ode import Stop
from diffmem.models.pipelines.branches import BranchSorter, Pass, halves_of, own_evaluations, raw_output
from diffmem.scores.base import DenoiserScore
from diffmem.scores.prompt.needs import Branch, Moment
from diffmem.serving.conditionings import is_null
from diffmem.serving.reading import Flagged, Reading
from diffmem.serving.regimes import OwnSetting, OwnSteps

if TYPE_CHECKING:
    from diffmem.models.pipelines.calls import Call

Judge = Callable[[np.ndarray], bool]
"""From the values of a call's images, [B], to whether the call ends there."""


class Reader(Protocol):
    """What is read from which model."""

    denoiser: Denoiser
    pipeline: Any
    score: DenoiserScore
    steps: OwnSteps
    null: Conditioning


class FirstSteps:
    """Keeps both branches of a call's first steps and judges it when the score can be computed.

    A negative prompt is judged like the prompt: nothing but the guidance keeps a call from following it.

    Args:
        reader: whose score is read.
        call: the call, opened.
        reading: filled when the last step that the score needs is done.
        judge: whether the call ends there.
        own: the setting that the call must run in; None takes it as it is.
        seen: told the setting that the call runs in, before it is judged.
    """

    def __init__(
        self, reader: Reader, call: Call, reading: Reading, judge: Judge, own: OwnSetting | None,
        seen: Callable[[OwnSetting], None] | None,
    ) -> None:  # fmt: skip
        self.reader, self.call, self.reading, self.judge, self.own, self.seen = reader, call, reading, judge, own, seen
        self.denoiser = reader.denoiser
        self.stops: list[Stop] = []
        self.negative: list[Stop] = []
        self.spent = 0.0
        self.started = time.perf_counter()
        self.sorter: BranchSorter | None = None

    def see(self, asked: Pass, output: Any) -> None:
        """Keep one evaluation of the network; Flagged if it was the last one and the call ends there."""
        upto = self.reader.steps.upto
        if len(self.stops) == upto and (asked.t != self.stops[-1].t or len(self.negative) == upto):
            return
        entered = time.perf_counter()
        raw = self.denoiser.read_output(raw_output(output)).detach().float()
        before = len(self.stops), len(self.negative)
        with torch.inference_mode(False), torch.no_grad():
            self._take(asked.x, asked.t, asked.cond, raw)
            now = zip((self.stops, self.negative), before, strict=True)
            complete = [stops for stops, count in now if len(stops) == upto > count]
            if complete:
                self._judge(complete)
        self.reading.seconds += time.perf_counter() - entered

    def require_read(self) -> None:
        """IncompatibleRun if the call came to its end before the score could be read."""
        if self.reading.values is None:
            raise IncompatibleRun(
                f"The pipeline evaluated its network {len(self.stops)} times; the score {self.reader.score.label} reads "
                f"{self.reader.steps.upto}. No image was given out: call it with more steps, or calibrate for fewer."
            )

    def _take(self, x: torch.Tensor, t: float, cond: Conditioning, raw: torch.Tensor) -> None:
        size = self.call.size
        self.spent += len(x) / size
        halves = halves_of(len(x), size)
        if halves is None:
            raise IncompatibleRun(
                f"The network was called with {len(x)} rows for {size} images; the guard knows one or two per image: turn "
                "further guidance (perturbed attention) off, or use a threshold of the regime 'before'."
            )
        null = is_null(cond, self.reader.null)
        empty = [h for h in halves if null[h].all()]
        if len(halves) == 1 and self.stops and self.stops[-1].t == t:
            # The other branch of a family that makes two calls: the guard has evaluated the empty prompt itself.
            if not empty and torch.equal(self.stops[-1].x, x.float()) and len(self.negative) < len(self.stops):
                self.negative.append(self._stop(x, t, self.stops[-1].unconditional, raw))
            return
        if len(self.stops) == self.reader.steps.upto:
            return
        if len(halves) == 1:
            conditional, unconditional = halves[0], None
        elif empty:
            unconditional = empty[0]
            conditional = halves[1] if unconditional == halves[0] else halves[0]
        else:
            conditional, unconditional = self._by_prompt(cond, halves), None
        without = raw[unconditional] if unconditional is not None else self._evaluate_null(x[conditional].float(), t)
        self.stops.append(self._stop(x[conditional], t, without, raw[conditional]))
        if len(halves) == 2 and not empty:
            other = halves[1] if conditional == halves[0] else halves[0]
            self.negative.append(self._stop(x[other], t, without, raw[other]))
        if self.own is not None:
            span = self.denoiser.schedule.t_max - self.denoiser.schedule.t_min
            self.own.require(self._setting(), span)

    def _stop(self, x: torch.Tensor, t: float, without: torch.Tensor, raw: torch.Tensor) -> Stop:
        return Stop(len(self.stops), t, x.float(), without, raw)

    def _setting(self) -> OwnSetting:
        """The setting of this call, as far as it has come."""
        guidance = self.call.guidance if self.reader.steps.guidance is not None else None
        sampler = type(self.reader.pipeline.scheduler).__name__
        return OwnSetting(
            tuple(stop.t for stop in self.stops), guidance, tuple(self.stops[0].x.shape[1:]), sampler
        )  # fmt: skip

    def _by_prompt(self, cond: Conditioning, halves: Sequence[slice]) -> slice:
        """Which half carries the prompts, where the other carries negative prompts."""
        self.sorter = self.sorter or BranchSorter(self.call.conditioning(), self.call.negative())
        return halves[0] if self.sorter.conditional_rows(cond)[0] else halves[1]

    def _evaluate_null(self, x: torch.Tensor, t: float) -> torch.Tensor:
        self.reading.nfe += 1
        with own_evaluations():
            return self.denoiser.predict(x, t, self.reader.null)

    def _judge(self, complete: Sequence[Sequence[Stop]]) -> None:
        if self.seen is not None:
            self.seen(self._setting())
        for stops in complete:
            found = self.reader.score.compute(StepEvaluations(self.denoiser, stops))["value"].double().cpu().numpy()
            # What cannot be judged is flagged.
            values = np.where(np.isfinite(found), found, np.inf)
            earlier = self.reading.values
            self.reading.values = values if earlier is None else np.maximum(values, earlier)
        assert self.reading.values is not None
        if self.judge(self.reading.values):
            self.reading.nfe += self.spent
            self.reading.seconds = time.perf_counter() - self.started
            raise Flagged


class StepEvaluations:
    """The evaluations of a generation's first steps, as scores ask for them.

    Args:
        denoiser: the model.
        stops: what was evaluated, from the first step on.
    """

    def __init__(self, denoiser: Denoiser, stops: Sequence[Stop]) -> None:
        self.denoiser, self._stops = denoiser, list(stops)

    def noise(self) -> torch.Tensor:
        """The noises x_T as the network was fed with them, [R, *shape]."""
        return self._stops[0].x

    def at_noise(self, moment: Moment, branch: Branch) -> torch.Tensor:
        """The network's own output at the first step, [R, *shape]; the score was checked to ask for no other moment."""
        return self._stops[0].conditional if branch == "conditional" else self._stops[0].unconditional

    def at_point(self, x: torch.Tensor, t: float, branch: Branch) -> torch.Tensor:
        """A generation makes no evaluation of its own at other points; scores that need one are refused before."""
        raise UsageError("A generation evaluates the network at its own steps only, not at other points.")

    def texts(self) -> Sequence[str]:
        """Not known here; scores that need them are refused before."""
        raise UsageError("The first steps of a generation do not tell which prompt they belong to.")

    def conditioning(self) -> Conditioning:
        """Not known here; scores that need it are refused before."""
        raise UsageError("The first steps of a generation do not tell which prompt they belong to.")

    def trajectory(self, steps: int, upto: int, guidance: float) -> Sequence[Stop]:
        """The first stops, [upto]."""
        return self._stops[:upto]
