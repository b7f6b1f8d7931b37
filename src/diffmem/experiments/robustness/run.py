"""Does a mitigation hold when something else changes? Copies without and with it under every condition of a plan."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffmem.copies import index_files
from diffmem.copies.calibration import CopyThreshold
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.data.images import ImageSet, load_images
from diffmem.errors import DataError, MitigationRefused, UsageError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments.robustness.compare import rows_of
from diffmem.experiments.robustness.conditions import Condition, Paraphrase, RobustnessPlan, conditions_of
from diffmem.experiments.robustness.kept import Kept
from diffmem.experiments.robustness.outcome import Arm, Outcome
from diffmem.mitigation.adversarial import Adversarial, handed_over, search
from diffmem.mitigation.base import Mitigation
from diffmem.mitigation.spec import parse_mitigation
from diffmem.models.pipelines.calls import target_of
from diffmem.models.target import Target
from diffmem.runs.microbatch import MicroBatches

Verdict = tuple[bool, str | None]
"""Whether an image is a copy, and the name of the training image that it is nearest to."""
Judge = Callable[[Sequence[Image.Image]], Sequence[Verdict]]


class Robustness:
    """The same prompts and noises under every condition, with and without mitigations.

    Args:
        target: the model, with a pipeline.
        prompts: memorized prompts.
        judge: calls copies.
        plan: the conditions.
        paraphrase: other wordings of a prompt, or None.
        pictures: the training image of a name, for the adversarial search, in the model's size; None leaves that out.
        alignment: judges images against the words that asked for them: copies can vanish because the picture does.
        kept: where outcomes are kept, so that the same conditions are not generated again; None: nowhere.
        silent: no progress on stderr.
    """

    def __init__(
        self,
        target: Target | Any,
        prompts: Sequence[str],
        judge: Judge,
        plan: RobustnessPlan | None = None,
        *,
        paraphrase: Paraphrase | None = None,
        pictures: Callable[[str], Image.Image] | None = None,
        alignment: TextAlignment | None = None,
        kept: Kept | None = None,
        silent: bool = True,
    ) -> None:
        if not prompts:
            raise UsageError("There are no prompts; robustness is asked of prompts whose images are copies.")
        self.target, self.prompts, self.judge, self.plan = (
            target_of(target),
            list(prompts),
            judge,
            plan or RobustnessPlan(),
        )
        self.denoiser, self.pictures, self.alignment = self.target.need_denoiser(), pictures, alignment
        self.conditions = conditions_of(self.prompts, self.plan, self.denoiser.schedule, paraphrase)
        self.plain: Arm = {}
        self.kept, self.silent = kept, silent

    def without(self) -> Arm:
        """The arm without mitigation, made once."""
        for condition in self.conditions:
            self._plain(condition)
        return self.plain

    def _plain(self, condition: Condition) -> Outcome:
        if condition.label not in self.plain:
            self.plain[condition.label] = self._outcome(condition, None)
        return self.plain[condition.label]

    def under(self, mitigation: str | Mitigation) -> Arm:
        """The arm of a mitigation."""
        made = parse_mitigation(mitigation)
        return {condition.label: self._outcome(condition, made) for condition in self.conditions}

    def rows(self, mitigation: str | Mitigation) -> list[dict[str, Any]]:
        """The rows of a mitigation, see `diffmem.experiments.robustness.compare.rows_of`."""
        made = parse_mitigation(mitigation)
        return rows_of(self.prompts, self.conditions, self.without(), self.under(made), made.label, self.plan.worst_of)

    @cached_property
    def adversarial(self) -> Adversarial:
        """The embeddings of the search, one per prompt; its target is the training image that the bare model copies."""
        if self.pictures is None or self.plan.adversarial is None:
            raise MitigationRefused(
                "An adversarial embedding is searched for the training image that a prompt copies: give the images."
            )
        names = self._plain(self.conditions[0]).nearest
        unknown = [text for text, name in zip(self.prompts, names, strict=True) if name is None]
        if unknown:
            raise MitigationRefused(f"No training image was found near the images of {unknown[0]!r}.")
        images = torch.stack([self._pixels(self.pictures(str(name))) for name in names])
        return search(self.denoiser, self.prompts, images, self.plan.adversarial)

    def _pixels(self, picture: Image.Image) -> torch.Tensor:
        """A picture in [-1, 1], [C, H, W], in the size and channels that the model generates."""
        decoder = getattr(self.target.pipeline, "vae", None)
        factor = getattr(self.target.pipeline, "vae_scale_factor", 1)
        height, width = (factor * n for n in self.denoiser.sample_shape[1:])
        channels = self.denoiser.sample_shape[0] if decoder is None else int(decoder.config.in_channels)
        sized = picture.convert("L" if channels == 1 else "RGB")
        if sized.size != (width, height):
            sized = sized.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(sized, np.float32) / 127.5 - 1)
        return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)

    def _outcome(self, condition: Condition, mitigation: Mitigation | None) -> Outcome:
        bypassed = condition.kind == "adversarial" and mitigation is not None and mitigation.about.level == "prompt"
        if bypassed:
            before = self._plain(condition)
            reason = "an embedding is handed over, which no change of the text reaches"
            return replace(before, status="bypassed", reason=reason)
        if self.kept is not None and (known := self.kept.read(condition, mitigation, self.plan)) is not None:
            return known
        if not self.silent:
            arm = "without mitigation" if mitigation is None else mitigation.label
            print(f"diffmem: {arm}: {condition.label}", file=sys.stderr, flush=True)
        try:
            outcome = self._generated(condition, mitigation)
        except (MitigationRefused, UsageError) as refusal:
            return Outcome(
                status="refused", reason=str(refusal)
            )  # not kept: it may be mended, and costs next to nothing
        if self.kept is not None:
            self.kept.write(condition, mitigation, self.plan, outcome)
        return outcome

    def _generated(self, condition: Condition, mitigation: Mitigation | None) -> Outcome:
        work = [
            (prompt, text, draw)
            for prompt, texts in enumerate(condition.texts)
            for text in texts
            for draw in range(condition.draws)
        ]  # fmt: skip
        verdicts: list[Verdict] = []
        aligned: list[float | None] = []
        with ExitStack() as stack:
            if condition.kind == "adversarial":
                found = self.adversarial.conditioning
                rows = {text: found.select([i]) for i, text in enumerate(self.prompts)}
                level = None if mitigation is None else mitigation.about.level
                stack.enter_context(handed_over(self.target, rows, level))
            record = None if mitigation is None else stack.enter_context(mitigation.apply(self.target))
            started, seconds = time.perf_counter(), 0.0
            for items, images in MicroBatches(self.plan.batch).run(work, lambda part: self._images(part, condition)):
                if isinstance(images, Exception):
                    raise UsageError(f"No image of {items[0][1]!r} under {condition.label}: {images}") from images
                seconds += time.perf_counter() - started
                verdicts += self.judge(images)
                if self.alignment is not None:
                    values = self.alignment.judge(images, [text for _, text, _ in items])
                    aligned += [None if np.isnan(value) else float(value) for value in values]
                started = time.perf_counter()
        per_image = self.target.generation_nfe(condition.sampling)
        extra = 0.0 if record is None else record.nfe.total / len(work)
        outcome = Outcome(nfe=None if per_image is None else per_image + extra, seconds=seconds / len(work))
        for prompt in range(len(self.prompts)):
            mine = [verdict for verdict, item in zip(verdicts, work, strict=True) if item[0] == prompt]
            outcome.hits.append([bool(copied) for copied, _ in mine])
            outcome.nearest.append(_most(mine))
            if aligned:
                outcome.aligned.append([value for value, item in zip(aligned, work, strict=True) if item[0] == prompt])
        return outcome

    def _images(self, items: Sequence[tuple[int, str, int]], condition: Condition) -> list[Image.Image]:
        texts, draws = [text for _, text, _ in items], [draw for _, _, draw in items]
        return self.target.generate(texts, draws, self.plan.seed, condition.sampling)


def robustness(
    target: Target | Any,
    prompts: Sequence[str],
    mitigations: Iterable[str | Mitigation],
    judge: Judge,
    plan: RobustnessPlan | None = None,
    *,
    paraphrase: Paraphrase | None = None,
    pictures: Callable[[str], Image.Image] | None = None,
    alignment: TextAlignment | None = None,
) -> list[dict[str, Any]]:
    """Copies without and with each mitigation under every condition; see `Robustness` for the arguments.

    Returns:
        One row per mitigation and condition, see `diffmem.experiments.robustness.compare.rows_of`. Cost: per arm the images of
        all conditions, and once the adversarial search (50 steps of 8 noises per prompt: 1,200 NFE).
    """
    made = Robustness(target, prompts, judge, plan, paraphrase=paraphrase, pictures=pictures, alignment=alignment)
    return [row for one in mitigations for row in made.rows(one)]


def index_judge(index: CopyIndex, threshold: CopyThreshold) -> Judge:
    """Copies by the nearest image of an index at a threshold."""

    def judge(images: Sequence[Image.Image]) -> list[Verdict]:
        found: dict[int, Verdict] = {m.query: (threshold.is_copy(m), m.train_id) for m in match(list(images), index)}
        return [found.get(i, (False, None)) for i in range(len(images))]

    return judge


def pictures_of(source: str | Path | ImageSet) -> Callable[[str], Image.Image] | None:
    """Training images by name from a folder, a file or a set; None for an index, which holds no pictures."""
    if not isinstance(source, ImageSet) and index_files.exists(Path(source)):
        return None
    images = load_images(source)

    def picture(name: str) -> Image.Image:
        item = images.by_id(name)
        if item.image is None:
            raise DataError(f"The training image '{name}' cannot be decoded: {item.problem}.")
        return item.image

    return picture


def _most(verdicts: Sequence[Verdict]) -> str | None:
    """The training image that most of the copies copy; of no copy, the one that most images are nearest to."""
    copied = [name for hit, name in verdicts if hit and name is not None]
    near = copied or [name for _, name in verdicts if name is not None]
    return Counter(near).most_common(1)[0][0] if near else None
