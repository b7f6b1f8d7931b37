"""Both branches of a generation's first steps, from hooks on the network that the pipeline calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from diffmem.errors import IncompatibleRun
from diffmem.mitigation.steering import RowFinder, own_evaluation, own_evaluations
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.ode import Stop
from diffmem.models.pipelines.calls import EMBEDDINGS
from diffmem.scores.base import DenoiserScore
from diffmem.scores.prompt.needs import Branch, Moment
from diffmem.serving.reading import Flagged, Reading
from diffmem.serving.regimes import OwnSetting, OwnSteps

if TYPE_CHECKING:
    from diffmem.models.pipelines.calls import Call

Judge = Callable[[np.ndarray], bool]
"""From the values of a call's images, [B], to whether the call ends there."""
SAME = 1e-4
"""Relative mean square difference below which a branch counts as the one without a prompt (bfloat16 rounds to 1.6e-5)."""


class Reader(Protocol):
    """What is read from which model."""

    denoiser: Denoiser
    pipeline: Any
    score: DenoiserScore
    steps: OwnSteps
    null: Conditioning


class FirstSteps:
    """A forward hook that keeps both branches of the first steps and judges the call when the score can be computed.

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
        self.spent = 0.0
        self.started, self.thread = time.perf_counter(), threading.get_ident()
        self.finder: RowFinder | None = None

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep one evaluation of the network; Flagged if it was the last one and the call ends there."""
        # Evaluations of a mitigation, and those of another thread on shared weights, are not this generation's.
        if self.reading.values is not None or own_evaluation() or threading.get_ident() != self.thread:
            return
        entered = time.perf_counter()
        x, t, conditioning = self.denoiser.read_call(args, kwargs)
        raw = self.denoiser.read_output((output[0] if isinstance(output, tuple) else output.sample).detach()).float()
        with torch.inference_mode(False), torch.no_grad():
            self._take(x.detach(), float(torch.as_tensor(t).reshape(-1)[0]), conditioning, raw)
            if len(self.stops) == self.reader.steps.upto:
                self._judge(entered)
        self.reading.seconds += time.perf_counter() - entered

    def _take(self, x: torch.Tensor, t: float, conditioning: dict[str, torch.Tensor], raw: torch.Tensor) -> None:
        size = self.call.size
        self.spent += len(x) / size
        halves = [slice(0, size), slice(size, 2 * size)][: len(x) // size]
        if len(x) != len(halves) * size:
            raise IncompatibleRun(
                f"The network was called with {len(x)} rows for {size} images; the guard knows one or two per image: turn "
                "further guidance (perturbed attention) off, or use a threshold of the regime 'before'."
            )
        if len(halves) == 1 and self.stops and self.stops[-1].t == t:
            return  # the other branch of a family that makes two calls: the guard has evaluated the empty prompt itself
        empty = [h for h in halves if self._is_null(conditioning, h)]
        if len(halves) == 1:
            conditional, unconditional = halves[0], None
        elif empty:
            unconditional = empty[0]
            conditional = halves[1] if unconditional == halves[0] else halves[0]
        else:
            conditional, unconditional = self._by_prompt(conditioning, halves), None
        inputs = x[conditional].float()
        without = raw[unconditional] if unconditional is not None else self._evaluate_null(inputs, t)
        self.stops.append(Stop(len(self.stops), t, inputs, without, raw[conditional]))
        if self.own is not None:
            span = self.denoiser.schedule.t_max - self.denoiser.schedule.t_min
            self.own.require(self._setting(), span)

    def _setting(self) -> OwnSetting:
        """The setting of this call, as far as it has come."""
        guidance = self.call.guidance if self.reader.steps.guidance is not None else None
        sampler = type(self.reader.pipeline.scheduler).__name__
        return OwnSetting(
            tuple(stop.t for stop in self.stops), guidance, tuple(self.stops[0].x.shape[1:]), sampler
        )  # fmt: skip

    def _is_null(self, conditioning: dict[str, torch.Tensor], rows: slice) -> bool:
        """Whether some rows of a network call carry the conditioning without a prompt."""
        for name, known in self.reader.null.tensors.items():
            given = conditioning.get(name)
            if given is None or not ((name in EMBEDDINGS and not name.endswith("mask")) or name == "class_labels"):
                continue
            known, part = known.to(given.device).double(), given[rows].double()
            if known.ndim > 2 and known.shape[1] != part.shape[1]:
                return False
            difference = (part - known).square().flatten(1).mean(1) if part.ndim > 1 else (part - known).square()
            if float(difference.max()) > SAME * float(known.square().mean()):
                return False
        return True

    def _by_prompt(self, conditioning: dict[str, torch.Tensor], halves: Sequence[slice]) -> slice:
        """Which half carries the prompts, where the other carries negative prompts."""
        self.finder = self.finder or RowFinder(self.call)
        return halves[0] if self.finder.conditional_rows(conditioning)[0] else halves[1]

    def _evaluate_null(self, x: torch.Tensor, t: float) -> torch.Tensor:
        self.reading.nfe += 1
        with own_evaluations():
            return self.denoiser.predict(x, t, self.reader.null)

    def _judge(self, entered: float) -> None:
        found = self.reader.score.compute(StepEvaluations(self.denoiser, self.stops))["value"].double().cpu().numpy()
        # What cannot be judged is flagged.
        if self.seen is not None:
            self.seen(self._setting())
        values = self.reading.values = np.where(np.isfinite(found), found, np.inf)
        if self.judge(values):
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

    def trajectory(self, steps: int, upto: int, guidance: float) -> Sequence[Stop]:
        """The first stops, [upto]."""
        return self._stops[:upto]
