"""The guard's score of a conditioning that reaches the network, on the noises that its threshold was calibrated on."""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffmem.errors import IncompatibleRun
from diffmem.evaluation.calibration import ScoreThreshold, require_matching
from diffmem.models.conditioning import Conditioning
from diffmem.models.pipelines.branches import Pass, own_evaluations
from diffmem.models.target import Target
from diffmem.serving.conditionings import Known, equal, is_null, kept, key_of, surroundings
from diffmem.serving.gate import Watch
from diffmem.serving.reading import Flagged, Reading
from diffmem.serving.regimes import finite_threshold, network_score
from diffmem.stages.score.executor import Executor, Noises
from diffmem.stages.score.screen import setting_of

if TYPE_CHECKING:
    from diffmem.models.pipelines.calls import Call
    from diffmem.serving.guard import Guard

KEPT = 1024
"""Values of recent conditionings that are kept: the same prompt again costs nothing."""
FRAMES = 8
"""Frames (sizes, crops) whose unconditional evaluations are kept."""


class Detector:
    """Scores conditionings on the calibrated noises; unconditional evaluations are made once in its life.

    Args:
        target: the model.
        threshold: says which score, how many draws and which noise.
        seed: root seed of the noise bank, that of the calibration.

    Raises:
        IncompatibleRun: the threshold was made for another model, score or noise.
        UsageError: a threshold that is not measurable, or of a score that reads no network.
        ScoreRefused: the model cannot be scored so.
    """

    def __init__(self, target: Target, threshold: ScoreThreshold, seed: int) -> None:
        score = network_score(threshold.score)
        self.threshold, self.value, self._score = threshold, finite_threshold(threshold), score
        require_matching(threshold, setting_of(target, score, threshold.draws, seed, "bank"))
        self._denoiser, self._seed = target.need_denoiser(), seed
        score.needs(self._denoiser)
        with torch.no_grad():
            self.null = kept(self._denoiser.null())
        self.nfe = 0.0
        self._lock = threading.RLock()
        self.forget()

    def forget(self) -> None:
        """Drop every value that was computed: the model is another."""
        with self._lock:
            self._executors: OrderedDict[str, Executor] = OrderedDict()
            self._kept: OrderedDict[str, float] = OrderedDict()

    def watch(
        self, guard: Guard, call: Call, known: Known, stops: bool, trusted: Collection[int] = (), reads: bool = True
    ) -> PromptWatch:
        """What judges the passes of one attempt at a call, see `PromptWatch`; it judges new conditionings in any case."""
        return PromptWatch(guard, self, call.size, known, stops, trusted)

    def is_null(self, cond: Conditioning) -> np.ndarray:
        """Which rows carry no prompt, [B] bool."""
        return is_null(cond, self.null)

    def score(self, cond: Conditioning) -> np.ndarray:
        """The mean score of each row of a conditioning, [B]; higher = more memorized. Cost: 1 NFE per new row and draw.

        A row whose network output is not finite scores +inf: what cannot be judged is flagged.
        """
        with self._lock:
            keys = [key_of(cond.select([i])) for i in range(len(cond))]
            fresh = [i for i, key in enumerate(keys) if key not in self._kept and keys.index(key) == i]
            with own_evaluations(), torch.inference_mode(False), torch.no_grad():
                for i in fresh:
                    self._kept[keys[i]] = np.nan  # in the order of the rows
                for rows in self._bysurroundings(cond, fresh):
                    self._evaluate(kept(cond.select(rows)), [keys[i] for i in rows])
            result = np.array([self._kept[key] for key in keys])
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return result

    def _bysurroundings(self, cond: Conditioning, rows: list[int]) -> list[list[int]]:
        """The rows by what surrounds the prompt (sizes, crops, a distilled guidance)."""
        groups: dict[str, list[int]] = {}
        for i in rows:
            groups.setdefault(key_of(surroundings(cond.select([i]))), []).append(i)
        return list(groups.values())

    def _evaluate(self, cond: Conditioning, keys: list[str]) -> None:
        executor, draws = self._executor(surroundings(cond.select([0]))), self.threshold.draws
        rows = [(i, draw) for i in range(len(keys)) for draw in range(draws)]
        found: list[list[float]] = [[] for _ in keys]
        spent = executor.nfe.total
        for scored in executor.run([""] * len(keys), cond, rows):
            found[scored.prompt].append(np.inf if scored.error is not None else scored.values[self._score.label])
        self.nfe += executor.nfe.total - spent
        for key, values in zip(keys, found, strict=True):
            self._kept[key] = float(np.mean(values))

    def _executor(self, frame: Conditioning) -> Executor:
        """What evaluates prompts in a frame; the empty prompt is evaluated in the same one."""
        name = key_of(frame)
        if name not in self._executors:
            denoiser = copy.copy(self._denoiser)
            null = Conditioning({**self.null.tensors, **frame.tensors}, 1)
            denoiser.null = lambda: null  # type: ignore[method-assign]
            self._executors[name] = Executor(
                denoiser, [self._score], Noises(denoiser.sample_shape, self._seed, "bank")
            )  # fmt: skip
        self._executors.move_to_end(name)
        while len(self._executors) > FRAMES:
            self._executors.popitem(last=False)
        return self._executors[name]


class PromptWatch(Watch):
    """Judges every conditioning of a call when it first reaches the network, before anything is computed from it.

    Args:
        guard: whose call.
        detector: its detector.
        size: images of the call.
        known: conditionings of earlier attempts; new ones are added.
        stops: whether a flagged conditioning ends the call.
        trusted: images that something else than their conditioning was changed of: what was known of them may pass.
    """

    def __init__(
        self, guard: Guard, detector: Detector, size: int, known: Known, stops: bool, trusted: Collection[int]
    ) -> None:
        self.guard, self.detector, self.size, self.known, self.stops = guard, detector, size, known, stops
        self.trusted, self.earlier = frozenset(trusted), len(known.rows)
        self.reading = Reading()
        self._passed: list[Conditioning] = []

    def before(self, asked: Pass) -> None:
        """Flagged if a conditioning is at or above the threshold and that shall end the call."""
        cond = asked.cond
        if any(equal(cond, passed) for passed in self._passed):
            return
        self.guard.model.check()  # the pipeline may have changed its network in this call (PAG sets other attention)
        started, spent = time.perf_counter(), self.detector.nfe
        values, held = self._judge(cond)
        reading = self.reading
        reading.values = values if reading.values is None else np.maximum(values, reading.values)
        reading.nfe += (self.detector.nfe - spent) / self.size
        reading.seconds += time.perf_counter() - started
        if self.stops and held:
            raise Flagged
        self._passed.append(kept(cond))

    def _judge(self, cond: Conditioning) -> tuple[np.ndarray, bool]:
        """The highest score of each image's conditionings, and whether one of them must not pass."""
        found = [one or (-1, None) for one in self.known.find(cond, self.earlier)]
        even = len(cond) % self.size == 0
        images = [i % self.size if even else 0 for i in range(len(cond))]
        null = self.detector.is_null(cond)
        prompted = {image for image, empty in zip(images, null, strict=True) if not empty}
        if self.reading.values is not None:
            prompted |= set(range(self.size))
        # No prompt, or no negative one: nothing to judge beside the image's own prompt.
        silent = [bool(empty) and image in prompted for empty, image in zip(null, images, strict=True)]
        new = [i for i, (_, score) in enumerate(found) if score is None and not silent[i]]
        scores = np.array([-np.inf if score is None else score for _, score in found])
        if new:
            scores[new] = self.detector.score(cond.select(new))
            self.known.rows += [(kept(cond.select([i])), images[i], float(scores[i])) for i in new]
        held = [i for i in np.flatnonzero(scores >= self.detector.value) if found[i][0] not in self.trusted]
        values = np.full(self.size, -np.inf)
        np.maximum.at(values, images, scores)
        if not even:  # nobody can tell which image a row belongs to
            values[:] = scores.max()
        return values, bool(held)

    def after(self, asked: Pass, output: Any) -> None:
        """Nothing: the conditioning was judged before."""

    def finish(self) -> None:
        """IncompatibleRun if the call came to its end without a pass of the network."""
        if self.reading.values is None:
            raise IncompatibleRun(
                "The pipeline did not evaluate its network, so nothing was judged and no image is given out: call it with "
                "at least one step (for image-to-image, a strength of at least one step)."
            )
