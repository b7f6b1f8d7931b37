"""Runs a plan: each evaluation once per row, unconditional ones once per draw, in micro-batches that fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.meter import Nfe
from diffmem.models.ode import Stop, ddim_update, guided
from diffmem.randomness import gaussian, noise_bank
from diffmem.runs.microbatch import MicroBatches, describe
from diffmem.scores.base import DenoiserScore
from diffmem.scores.prompt.needs import Branch, Moment
from diffmem.stages.score.plan import Plan

Row = tuple[int, int]
"""(index of the prompt, draw)."""


@dataclass
class ScoredRow:
    """The values of all scores on one row, or what went wrong."""

    prompt: int
    draw: int
    values: dict[str, float] = field(default_factory=dict)
    components: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0
    micro_batch: int = 0


class Noises:
    """Scoring noise by draw: a bank common to all prompts, noise per prompt, or given tensors.

    Args:
        shape: of one x.
        root_seed: the run's seed.
        regime: "bank" (common random numbers) or "per-prompt".
        given: noises to use instead, [n, *shape]; draw d is given[d].
    """

    def __init__(
        self, shape: Sequence[int], root_seed: int, regime: str = "bank", given: torch.Tensor | None = None
    ) -> None:
        self.shape, self.root_seed, self.given = tuple(shape), root_seed, given
        self.common = regime == "bank" or given is not None
        self._bank: dict[int, torch.Tensor] = {}

    def of_draw(self, draw: int) -> torch.Tensor:
        """The common noise of a draw, [*shape]."""
        if self.given is not None:
            return self.given[draw].to("cpu", torch.float32)
        if draw not in self._bank:
            self._bank[draw] = noise_bank(self.root_seed, [draw], self.shape)[0]
        return self._bank[draw]

    def of_rows(self, rows: Sequence[Row], prompts: Sequence[str]) -> torch.Tensor:
        """The noise of each row, [R, *shape]."""
        if self.common:
            return torch.stack([self.of_draw(draw) for _, draw in rows])
        return torch.stack([gaussian(self.shape, self.root_seed, "scoring", prompts[i], draw) for i, draw in rows])


class Executor:
    """Evaluates scores on (prompt, draw) rows.

    Args:
        denoiser: the model.
        scores: row-wise scores; what they share is evaluated once.
        noises: where x_T comes from.
        micro_batch: rows per network call at first; halved when memory runs out.
        on_halve: told the new micro-batch size.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scores: Sequence[DenoiserScore],
        noises: Noises,
        micro_batch: int = 64,
        on_halve: Callable[[int], None] | None = None,
    ) -> None:
        self.denoiser, self.scores, self.noises = denoiser, list(scores), noises
        self.plan = Plan.for_scores(self.scores, denoiser)
        self.nfe = Nfe()
        self.batches = MicroBatches(micro_batch, on_halve)
        self._shared: dict[tuple[float, int], torch.Tensor] = {}

    def run(self, prompts: Sequence[str], cond: Conditioning, rows: Sequence[Row]) -> Iterator[ScoredRow]:
        """Score the given rows of the given prompts.

        Args:
            prompts: texts (for the names of per-prompt noise).
            cond: their encoding, one row per prompt.
            rows: which (prompt, draw) pairs.

        Yields:
            One ScoredRow per row, in order. A row with a non-finite network output carries an error, others go on.
        """
        with torch.no_grad():
            for batch, outcome in self.batches.run(rows, lambda part: self._batch(prompts, cond, part)):
                if isinstance(outcome, Exception):
                    yield from (ScoredRow(i, draw, error=describe(outcome), micro_batch=1) for i, draw in batch)
                else:
                    yield from outcome

    def _batch(self, prompts: Sequence[str], cond: Conditioning, rows: Sequence[Row]) -> list[ScoredRow]:
        started = time.perf_counter()
        texts = [prompts[i] for i, _ in rows]
        evaluations = RowEvaluations(
            self, cond.select([i for i, _ in rows]), self.noises.of_rows(rows, prompts), rows, texts
        )
        computed = {score.label: score.compute(evaluations) for score in self.scores}
        columns = {label: {k: v.double().tolist() for k, v in parts.items()} for label, parts in computed.items()}
        seconds = (time.perf_counter() - started) / len(rows)
        return [self._row(columns, at, row, seconds, len(rows)) for at, row in enumerate(rows)]

    @staticmethod
    def _row(
        columns: dict[str, dict[str, list[float]]], at: int, row: Row, seconds: float, micro_batch: int
    ) -> ScoredRow:
        result = ScoredRow(*row, seconds=seconds, micro_batch=micro_batch)
        for label, parts in columns.items():
            numbers = {name: values[at] for name, values in parts.items()}
            if not all(map(math.isfinite, numbers.values())):
                result.error = "the network returned NaN or infinite values for this prompt and noise"
                return result
            result.values[label] = numbers.pop("value")
            result.components[label] = numbers
        return result

    def shared_unconditional(self, t: float, draws: Sequence[int]) -> torch.Tensor:
        """Unconditional outputs on the common noise of each draw, [R, *shape]; each computed once per run."""
        missing = list(dict.fromkeys(d for d in draws if (t, d) not in self._shared))
        # In portions of one call each: the number of draws says nothing about what fits into memory.
        for start in range(0, len(missing), self.batches.size):
            part = missing[start : start + self.batches.size]
            x = torch.stack([self.noises.of_draw(d) for d in part])
            output = self.denoiser.predict(x, t, self.denoiser.null())
            self.nfe.add(forward=len(part))
            self._shared |= {(t, d): row for d, row in zip(part, output, strict=True)}
        return torch.stack([self._shared[(t, d)] for d in draws])


class RowEvaluations:
    """The evaluations of one micro-batch, made when they are first asked for and kept until the batch is done."""

    def __init__(
        self, executor: Executor, cond: Conditioning, x: torch.Tensor, rows: Sequence[Row], texts: Sequence[str]
    ) -> None:
        self.denoiser = executor.denoiser
        self._executor, self._cond, self._x, self._rows, self._texts = executor, cond, x, rows, texts
        self._outputs: dict[tuple[float, Branch], torch.Tensor] = {}
        self._trajectories: dict[tuple[int, float], list[Stop]] = {}

    def noise(self) -> torch.Tensor:
        """The noises x_T, [R, *shape]."""
        return self._x

    def texts(self) -> Sequence[str]:
        """The prompt of each row, [R]."""
        return self._texts

    def conditioning(self) -> Conditioning:
        """The encoded prompt of each row, of size R."""
        return self._cond

    def at_point(self, x: torch.Tensor, t: float, branch: Branch) -> torch.Tensor:
        """The network's own output on states x [R, *shape] at time t, [R, *shape]."""
        return self._predict(x, t, self._cond if branch == "conditional" else self.denoiser.null())

    def at_noise(self, moment: Moment, branch: Branch) -> torch.Tensor:
        """The network's own output on x_T at a moment, [R, *shape]."""
        return self._at_noise(moment.resolve(self.denoiser.schedule), branch)

    def _at_noise(self, t: float, branch: Branch) -> torch.Tensor:
        key = (t, branch)
        if key not in self._outputs:
            if branch == "conditional":
                self._outputs[key] = self._predict(self._x, t, self._cond)
            elif self._executor.noises.common:
                self._outputs[key] = self._executor.shared_unconditional(t, [draw for _, draw in self._rows])
            else:
                self._outputs[key] = self._predict(self._x, t, self.denoiser.null())
        return self._outputs[key]

    def _predict(self, x: torch.Tensor, t: float, cond: Conditioning) -> torch.Tensor:
        output = self.denoiser.predict(x, t, cond)
        self._executor.nfe.add(forward=len(x))
        return output

    def trajectory(self, steps: int, upto: int, guidance: float) -> list[Stop]:
        """The first `upto` stops of the guided DDIM trajectory from x_T, followed as far as any score needs it."""
        key = (steps, guidance)
        if key not in self._trajectories:
            planned = [t.upto for t in self._executor.plan.trajectories if (t.steps, t.guidance) == key]
            self._trajectories[key] = self._follow(steps, max([upto, *planned]), guidance)
        return self._trajectories[key][:upto]

    def _follow(self, steps: int, upto: int, guidance: float) -> list[Stop]:
        times, x, stops = self.denoiser.schedule.sampling_times(steps), self._x, []
        for step, t in enumerate(times[:upto]):
            if step == 0:
                conditional, unconditional = self._at_noise(t, "conditional"), self._at_noise(t, "unconditional")
            else:
                conditional = self._predict(x, t, self._cond)
                unconditional = self._predict(x, t, self.denoiser.null())
            stops.append(Stop(step, t, x, unconditional, conditional))
            if step + 1 < upto:
                x = ddim_update(self.denoiser, x, guided(unconditional, conditional, guidance), t, times[step + 1])
        return stops
