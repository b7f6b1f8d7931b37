"""The guard's score of a prompt before anything is generated, on the noises that its threshold was calibrated on."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffmem.errors import UsageError
from diffmem.evaluation.calibration import ScoreThreshold, require_matching
from diffmem.keys import row_key
from diffmem.models.conditioning import Conditioning
from diffmem.models.target import Target
from diffmem.serving.reading import Flagged, Reading
from diffmem.serving.regimes import network_score
from diffmem.stages.score.executor import Executor, Noises
from diffmem.stages.score.screen import setting_of

if TYPE_CHECKING:
    from diffmem.models.pipelines.calls import Call

KEPT = 1024
"""Values of recent conditionings that are kept: the same prompt again costs nothing."""


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
        if threshold.value is None:
            raise UsageError(f"This threshold decides nothing. {threshold.note}")
        require_matching(threshold, setting_of(target, score, threshold.draws, seed, "bank"))
        denoiser = target.need_denoiser()
        score.needs(denoiser)
        self.threshold, self.value, self._score = threshold, threshold.value, score
        self._executor = Executor(denoiser, [score], Noises(denoiser.sample_shape, seed, "bank"))
        self._kept: OrderedDict[bytes, float] = OrderedDict()

    @contextmanager
    def watching(self, call: Call, reading: Reading, stops: bool) -> Iterator[None]:
        """Score a call's prompts; Flagged before it begins if one is at or above the threshold and it shall stop."""
        started, spent = time.perf_counter(), self.nfe
        values = reading.values = self.score(call.conditioning())
        reading.nfe = (self.nfe - spent) / len(values)
        reading.seconds = time.perf_counter() - started
        if stops and bool((values >= self.value).any()):
            raise Flagged
        yield

    @property
    def nfe(self) -> float:
        """Network evaluations so far."""
        return self._executor.nfe.total

    def score(self, cond: Conditioning) -> np.ndarray:
        """The mean score of each row of a conditioning, [B]; higher = more memorized. Cost: 1 NFE per new row and draw.

        A row whose network output is not finite scores +inf: what cannot be judged is flagged.
        """
        keys = [_key(cond.select([i])) for i in range(len(cond))]
        fresh = [i for i, key in enumerate(keys) if key not in self._kept and keys.index(key) == i]
        if fresh:
            draws = self.threshold.draws
            rows = [(i, draw) for i in range(len(fresh)) for draw in range(draws)]
            found: dict[int, list[float]] = {i: [] for i in fresh}
            with torch.inference_mode(False):
                for scored in self._executor.run([""] * len(fresh), cond.select(fresh), rows):
                    value = np.inf if scored.error is not None else scored.values[self._score.label]
                    found[fresh[scored.prompt]].append(value)
            for i, values in found.items():
                self._kept[keys[i]] = float(np.mean(values))
        result = np.array([self._kept[key] for key in keys])
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return result


def _key(row: Conditioning) -> bytes:
    return row_key(
        **{
            name: [str(value.dtype), list(value.shape), _bytes(value).hex()]
            for name, value in sorted(row.tensors.items())
        }
    )


def _bytes(value: torch.Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
