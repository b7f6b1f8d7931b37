"""The images at work together: joining, stepping, checking, leaving."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diffmem.scores.image.base import ImageItem, ImageResult, Workbench
from diffmem.scores.image.invmm.check import Answer, Checker, Question
from diffmem.scores.image.invmm.futility import needed_change, out_of_reach
from diffmem.scores.image.invmm.objective import frozen, optimizer_step, update_weight
from diffmem.scores.image.invmm.prompts import Prompts, check_name
from diffmem.scores.image.invmm.refine import bisect, strip, thinned
from diffmem.scores.image.invmm.settings import InvMMParameters, Settings
from diffmem.scores.image.invmm.similarity import SuccessTest
from diffmem.scores.image.invmm.state import Inversion

if TYPE_CHECKING:
    from diffmem.models.conditioning import Conditioning
    from diffmem.models.denoiser import Denoiser

NOT_REACHED = -1000.0
MOST_SKIPPED = 2


class Batch:
    """Images at work.

    Args:
        denoiser: the model.
        settings: resolved ones.
        given: the score's parameters.
        test: of success.
        bench: seed, batch, states.
    """

    def __init__(
        self, denoiser: Denoiser, settings: Settings, given: InvMMParameters, test: SuccessTest, bench: Workbench
    ) -> None:
        self._denoiser, self._settings, self._given, self._test, self._bench = denoiser, settings, given, test, bench
        self._prompts = Prompts(denoiser, settings)
        rows = max(1, bench.batch) * settings.noises
        self._checker = Checker(denoiser, test, settings, given.sampler, given.samples, rows, bench.seed)
        self.jobs: list[Inversion] = []
        self._began, self._spent = time.perf_counter(), list[tuple[Inversion, float]]()

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        """Inside, no network keeps anything for gradients of its weights."""
        return frozen([*self._denoiser.network_modules(), *self._prompts.modules])

    def join(self, items: Sequence[ImageItem]) -> Iterator[ImageResult]:
        """Begin images, or continue those that were interrupted; those that the prior reproduces leave with 0."""
        new = []
        for item in items:
            saved, missing = self._bench.load(item.id), self._prompts.missing(item)
            if missing is not None:
                yield ImageResult(item.id, None, None, components={"status": "error", "steps": 0}, error=missing)
            elif saved is not None:
                self.jobs.append(Inversion.load(item, saved, self._denoiser.device))
                self._spent.append((self.jobs[-1], self.jobs[-1].nfe.total))
            else:
                first = self._prompts.first_logits()
                new.append(Inversion.begin(item, self._settings.weight, self._denoiser.device, first))
        if not new:
            return
        self._spent += [(job, 0.0) for job in new]
        # Without a prompt yet, an inverted one begins from none.
        conditions = [[self._prompts.fixed(job.item)] for job in new]
        answers = self._checker.ask(
            [Question(job, c, noise=check_name(job, self._settings)) for job, c in zip(new, conditions, strict=True)]
        )
        for job, answer in zip(new, answers, strict=True):
            if answer.passed:
                yield self._reached(job, 1.0, answer, None)
            else:
                job.way, job.trace = answer.way, [[0, None, job.weight, 0.0, answer.worst]]
                self.jobs.append(job)

    def advance(self) -> Iterator[ImageResult]:
        """One step of every image; checks where they are due."""
        if not self.jobs:
            return
        failed = optimizer_step(
            self._denoiser, self._prompts, self._settings, self.jobs, self._given.rate, self._bench.seed
        )
        for job in [job for job in self.jobs if job.item.id in failed]:
            self.jobs.remove(job)
            yield self._error(job, failed[job.item.id])
        due = []
        for job in self.jobs:
            update_weight(job, self._settings)
            last = job.step >= self._settings.steps
            if last or job.step % self._settings.every == 0:
                due.append(job)
        yield from self._check(due)
        for job in due:
            if job in self.jobs:
                self._bench.save(job.item.id, job.state())

    def _check(self, due: Sequence[Inversion]) -> Iterator[ImageResult]:
        checked = [job for job in due if job.step >= self._settings.steps or not self._hopeless(job)]
        for job in due:
            job.trace = [*job.trace, [job.step, job.mean_loss, job.weight, job.kl(), None]]
            job.skipped += job not in checked
        if not checked:
            return
        conditions = {job.item.id: self._tried(job) for job in checked}
        answers = self._checker.ask(
            [Question(job, conditions[job.item.id], noise=check_name(job, self._settings)) for job in checked]
        )
        passed = []
        for job, answer in zip(checked, answers, strict=True):
            job.trace[-1][-1], job.way, job.skipped = answer.worst, answer.way, 0
            job.checked = [self._recent_loss(job), answer.worst]
            if answer.passed:
                passed.append((job, conditions[job.item.id], answer))
                self.jobs.remove(job)
        if passed:
            yield from self._refined(passed)
        ended = [job for job in checked if job in self.jobs and self._spent_or_futile(job)]
        for job in ended:
            self.jobs.remove(job)
        if ended:
            yield from self._end(ended)

    def _tried(self, job: Inversion) -> list[Conditioning]:
        return self._prompts.to_check(job, self._bench.seed, self._given.samples)

    def _spent_or_futile(self, job: Inversion) -> bool:
        """Whether the steps are spent, or a sequential test on the loss says that those left will not be enough.

        The level is shared out over the checks that there are at most. Asked right after a check, whose similarity says
        what the loss would have to be.
        """
        settings, left = self._settings, self._settings.steps - job.step
        if left <= 0:
            return True
        if not settings.give_up or job.checked is None:
            return False
        squared = self._test.descriptor.metric.kind == "tiled-rms"
        change = needed_change(job.checked[1], self._test.beta, squared)
        return out_of_reach(job.window, left, change, settings.give_up * settings.every / settings.steps)

    def _recent_loss(self, job: Inversion) -> float:
        recent = job.window[-self._settings.every :]
        return sum(recent) / len(recent)

    def _hopeless(self, job: Inversion) -> bool:
        """Whether the loss says that a check would fail: it has not fallen since the last failed one as far as the gap asks.

        The loss is a square of what the similarity falls by: to halve the distance 1 - similarity the loss must fall to
        a quarter. Half of that (on the log scale) is asked for, since both are noisy, and a check is made after two
        skipped ones in any case.
        """
        if not self._settings.skip or job.checked is None or job.skipped >= MOST_SKIPPED:
            return False
        loss, worst = job.checked
        gap = max(1 - self._test.beta, 0.0) / max(1 - worst, 1e-9)
        return self._recent_loss(job) > loss * min(gap, 1.0)

    def _refined(self, passed: list[tuple[Inversion, list[Conditioning], Answer]]) -> Iterator[ImageResult]:
        fitted = self._settings.prompt == "invert"
        names = [check_name(job, self._settings) for job, _, _ in passed]
        found = bisect(self._checker, passed, self._given.halvings, fitted, names)
        fresh = self._checker.ask(
            [
                Question(job, c, scale, "fresh", answer.way)
                for (job, c, _), (scale, answer) in zip(passed, found, strict=True)
            ]
        )
        for (job, _, _), (scale, answer), again in zip(passed, found, fresh, strict=True):
            yield self._reached(job, scale, answer, again)

    def _reached(self, job: Inversion, scale: float, answer: Answer, fresh: Answer | None) -> ImageResult:
        raw, refined = job.kl(), job.kl(scale)
        value = raw if self._given.mode == "paper" else refined
        # Images that the prior itself reproduces differ by how surely it does.
        evidence = -refined if refined > 0 else max(answer.worst - self._test.beta, 0.0)
        components = self._components(job, answer) | {
            "status": "reached", "kl_raw": raw, "kl_refined": refined, "scale": scale,
            "fresh_passed": None if fresh is None else sum(s >= self._test.beta for s in fresh.similarities),
        }  # fmt: skip
        return self._result(job, value, evidence, components, answer)

    def _end(self, jobs: Sequence[Inversion]) -> Iterator[ImageResult]:
        """Images whose search is over: their best way is seen to its end, which orders them."""
        answers = self._checker.ask(
            [Question(job, self._tried(job), noise=check_name(job, self._settings), only=job.way) for job in jobs]
        )
        for job, answer in zip(jobs, answers, strict=True):
            components = self._components(job, answer) | {
                "status": "not reached", "kl_raw": job.kl(), "kl_refined": None, "scale": None, "fresh_passed": None,
                "gave_up": job.step < self._settings.steps,
            }  # fmt: skip
            yield self._result(job, float("inf"), NOT_REACHED + answer.worst, components, answer)

    def _components(self, job: Inversion, answer: Answer) -> dict[str, object]:
        return {
            "steps": job.step,
            "worst_similarity": answer.worst,
            "beta": self._test.beta,
            "guidance": self._settings.guidance[answer.way % len(self._settings.guidance)],
            "trace": thinned(job.trace),
            "prompt": self._prompts.text(job),
        }

    def _result(
        self, job: Inversion, value: float, evidence: float, components: dict[str, object], answer: Answer
    ) -> ImageResult:
        self._test.forget(job.item.id)
        tensors = {name: job.values[name].cpu() for name in ("mu", "log_var")} if self._given.keep else None
        picture = strip(job.item.pixels, answer.images)
        return ImageResult(
            job.item.id, value, evidence, None, components, picture, tensors, job.nfe, self._seconds(job)
        )

    def _error(self, job: Inversion, reason: str) -> ImageResult:
        self._test.forget(job.item.id)
        components = {"status": "error", "steps": job.step, "trace": thinned(job.trace)}
        return ImageResult(
            job.item.id, None, None, components=components, nfe=job.nfe, seconds=self._seconds(job), error=reason
        )

    def _seconds(self, job: Inversion) -> float:
        """Its share of the time by its evaluations: images leave when they are done, not when their work is."""
        spent = sum(other.nfe.total - before for other, before in self._spent)
        return (time.perf_counter() - self._began) * job.nfe.total / max(spent, 1.0)
