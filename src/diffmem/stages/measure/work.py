"""One image score at work on images: batches, memory, faults of single images, states."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from diffmem.errors import DiffmemError
from diffmem.models.denoiser import Denoiser
from diffmem.models.meter import Nfe
from diffmem.runs.microbatch import MicroBatches, describe, is_out_of_memory
from diffmem.scores.image.base import ImageItem, ImageResult, ImageScore
from diffmem.stages.measure.bench import RunBench
from diffmem.stages.measure.pixels import TargetImage
from diffmem.stages.measure.rows import MeasureRows, Measuring

BATCH_NFE = 32_768
"""Network evaluations in one batch, at most (but one image at least)."""
Written = tuple[dict[str, Any], Path | None]
Compute = Callable[[Denoiser, Sequence[ImageItem], int], list[ImageResult]]


class Worker:
    """Runs image scores and turns their results into rows.

    Args:
        denoiser: the model.
        maker: makes the rows.
        settings: seed and batch.
        states: folder of the states of images at work.

    Attributes:
        nfe: spent so far.
        batch: images at once; halved when memory runs out.
        on_tick: told what a score says of its progress.
    """

    def __init__(self, denoiser: Denoiser, maker: MeasureRows, settings: Measuring, states: Path) -> None:
        self.denoiser, self.maker, self.settings, self._states = denoiser, maker, settings, states
        self.nfe, self.batch, self.notes = Nfe(), settings.batch, list[str]()
        self.on_tick: Callable[[str], None] | None = None

    def work(self, score: ImageScore, targets: Sequence[TargetImage], items: Sequence[ImageItem]) -> Iterator[Written]:
        """The row of every image, as soon as it is there, with the file of its state (which may not exist)."""
        keys = {target.id: self.maker.key(target, score) for target in targets}
        bench = RunBench(self.settings.seed, self.batch, self._states, keys, self.on_tick)
        known = {target.id: target for target in targets}
        compute = score.batchwise()
        results = self._stream(score, items, bench) if compute is None else self._batches(score, compute, items, bench)
        for result, seconds in results:
            nfe = result.nfe
            self.nfe.add(nfe.forward, nfe.tangent, nfe.backward)
            taken = seconds if result.seconds is None else result.seconds
            yield self.maker.measure(known[result.id], score, result, taken), bench.path(result.id)

    def _batches(
        self, score: ImageScore, compute: Compute, items: Sequence[ImageItem], bench: RunBench
    ) -> Iterator[tuple[ImageResult, float]]:
        started = time.perf_counter()
        # A batch is what an interruption can lose and what progress waits for: so many evaluations, not so many images.
        each = max(1.0, score.estimate(self.denoiser).total)
        batches = MicroBatches(min(self.batch, max(1, int(BATCH_NFE // each))), self._halved)
        for part, results in batches.run(items, lambda some: compute(self.denoiser, some, bench.seed)):
            seconds, started = time.perf_counter() - started, time.perf_counter()
            if isinstance(results, Exception):
                results = [_failed(item, describe(results)) for item in part]
            for result in _complete(score, part, results):
                yield result, seconds / len(part)

    def _stream(
        self, score: ImageScore, items: Sequence[ImageItem], bench: RunBench
    ) -> Iterator[tuple[ImageResult, float]]:
        """A score that gives results in its own order; what a fault left open is tried again one by one."""
        waiting = {item.id: item for item in items}
        alone: set[str] = set()
        while waiting:
            single = next((item for key, item in waiting.items() if key in alone), None)
            now = list(waiting.values()) if single is None else [single]
            bench.batch = self.batch if single is None else 1
            started = time.perf_counter()
            try:
                for result in score.run(self.denoiser, now, bench):
                    del waiting[result.id]
                    yield result, time.perf_counter() - started
                    started = time.perf_counter()
                problem = "the score gave no result for this image"
            except DiffmemError:
                raise
            except Exception as fault:
                if single is None:
                    if is_out_of_memory(fault) and self.batch > 1:
                        gc.collect()
                        if torch.cuda.is_available():
                            torch.cuda.empty_cache()
                        self._halved(self.batch // 2)
                    else:
                        alone.update(list(waiting)[: self.batch])
                    continue
                problem = describe(fault)
            for item in [item for item in now if item.id in waiting]:
                del waiting[item.id]
                yield _failed(item, problem), time.perf_counter() - started

    def _halved(self, size: int) -> None:
        self.batch = size
        self.notes.append(f"out of memory: the batch was halved to {size} images")


def _failed(item: ImageItem, text: str) -> ImageResult:
    return ImageResult(item.id, None, None, error=text)


def _complete(score: ImageScore, items: Sequence[ImageItem], results: Sequence[ImageResult]) -> Iterator[ImageResult]:
    """One result per item, by id; a score that mixes them up must not pass them off as another image's."""
    given = {result.id: result for result in results}
    for item in items:
        found = given.get(item.id)
        yield _failed(item, f"{score.label} gave no result for this image") if found is None else found
