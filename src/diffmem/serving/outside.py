"""Passes of the network outside the guarded pipeline's calls: other pipelines that share it, methods bound before."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from diffmem.errors import IncompatibleRun
from diffmem.models.conditioning import Conditioning
from diffmem.models.pipelines.branches import Pass
from diffmem.serving.conditionings import equal, kept, key_of
from diffmem.serving.decisions import Attempt, Decision, GenerationRefused, Outcome, finite, in_words, outcome_of
from diffmem.serving.detector import Detector

if TYPE_CHECKING:
    from diffmem.serving.guard import Guard

_WHERE = "outside a call of the guarded pipeline"
_BRANCHES = 3
"""Conditionings of one generation that are remembered beside the newest: its branches may come one by one."""


class _Seen(threading.local):
    """What has passed on this thread: the conditionings of the generation that seems to run, and the last time of each."""

    def __init__(self) -> None:
        self.passed: list[tuple[Conditioning, float]] = []


class Outside:
    """Judges passes by their conditioning alone: those below the threshold pass, others end by an exception.

    There is no call to mitigate or to start anew here, and no image to compare: with an index every pass is refused, and
    so it is with a threshold that is read during the generation. Every conditioning that begins a generation gets its
    own decision; one begins where a conditioning is new, or its time does not fall any more.

    Args:
        guard: its settings.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard, self._seen = guard, _Seen()

    def before(self, asked: Pass) -> None:
        """Let a pass through or raise GenerationRefused or IncompatibleRun; what begins a generation is logged."""
        passed = self._seen.passed
        at = next((i for i, (cond, _) in enumerate(passed) if equal(asked.cond, cond)), None)
        if at is not None and (asked.t < passed[at][1] or (asked.done and asked.t == passed[at][1])):
            self._require_same_model(asked)
            passed[at] = (passed[at][0], asked.t)
            return
        self._judge(asked.cond)
        if at is not None:
            del passed[at]
        passed[:] = [*passed[-_BRANCHES:], (kept(asked.cond), asked.t)]

    def _require_same_model(self, asked: Pass) -> None:
        """A pass that goes on with a generation must meet the model that its beginning was judged on."""
        if asked.done:
            return
        try:
            self.guard.model.check(begins=False)
        except IncompatibleRun as problem:
            self.refused(str(problem))
            raise

    def refused(self, why: str, outcome: Outcome = "refused") -> None:
        """Log that a pass was refused whose conditioning is not known."""
        self.guard.record([self._decision("", None, True, outcome, why)])

    def _judge(self, cond: Conditioning) -> None:
        guard, rows = self.guard, cond
        keys: list[str] = []
        try:
            prompted = np.flatnonzero(~guard.is_null(cond))
            rows = cond.select(prompted.tolist())
            keys = [key_of(rows.select([i])) for i in range(len(rows))]
            guard.model.check()
            values = self._values(rows)
        except BaseException as problem:
            ended, why = outcome_of(problem), in_words(problem)
            guard.record([self._decision(key, None, True, ended, why) for key in dict.fromkeys(keys or [""])])
            raise
        logging = guard.action == "log"
        flagged = {key: value is not None and value >= guard.detector.value for key, value in values.items()}
        stopped = any(flagged.values()) and not logging
        decisions = []
        for key in dict.fromkeys(keys or [""]):
            outcome: Outcome = "refused" if stopped else "logged" if flagged.get(key) else "passed"
            why = "above the threshold" if flagged.get(key) else "not held back" if keys else "no prompt"
            decisions.append(self._decision(key, values.get(key), flagged.get(key, False), outcome, why))
        guard.record(decisions)
        if stopped:
            raise GenerationRefused(decisions)

    def _values(self, rows: Conditioning) -> dict[str, float | None]:
        """The score of each conditioning by its key; None where there is nothing to read one from."""
        guard = self.guard
        if guard.action != "log" and guard.index is not None:
            raise IncompatibleRun(
                f"The network was called {_WHERE}, and the guard compares images with an index, which it can do for calls of "
                "its own pipeline only: call that one, or open a guard for this pipeline."
            )
        if isinstance(guard.detector, Detector):
            found = guard.detector.score(rows) if len(rows) else np.zeros(0)
            return {key_of(rows.select([i])): float(value) for i, value in enumerate(found)}
        if guard.action != "log":
            raise IncompatibleRun(
                f"The network was called {_WHERE}, and the guard's threshold is for the first steps of that pipeline: call "
                "that one, or use a threshold of the regime 'before'."
            )
        return {key_of(rows.select([i])): None for i in range(len(rows))}

    def _decision(self, key: str, value: float | None, flagged: bool, outcome: Outcome, why: str) -> Decision:
        guard = self.guard
        given = None if value is None else finite(value)
        attempt = Attempt("generate", given, accepted=outcome in ("passed", "logged"), why=f"{_WHERE}: {why}")
        detector = guard.detector
        return Decision(
            key, detector.threshold.score, given, detector.value, flagged, outcome, [attempt], regime=guard.regime
        )  # fmt: skip
