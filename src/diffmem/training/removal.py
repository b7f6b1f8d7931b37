"""Fine-tuning that removes images: the training loop with another loss for the samples that show them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffmem.errors import ModelError, UsageError
from diffmem.keys import row_key
from diffmem.mitigation.removal.base import Moment, Removal, per_row
from diffmem.training.batch import Batch
from diffmem.training.data import TrainingImage, TrainingSet
from diffmem.training.loop import Trainer
from diffmem.training.model import open_base
from diffmem.training.objective import noisy, target
from diffmem.training.plan import DataPlan, ModelPlan, OptimizerPlan, TrainPlan
from diffmem.training.result import TrainResult

FORGET = "forget/"
"""Before the ids of samples that show images to be forgotten."""


def remove_images(
    base: str, removal: Removal, forget: Sequence[tuple[str, TrainingImage]], kept: TrainingSet, out: Path, *,
    seed: int = 0, device: str | None = None, silent: bool = True,
) -> TrainResult:  # fmt: skip
    """Fine-tune a model so that it forgets images; the same call goes on where an earlier one stopped.

    Args:
        base: the model: a folder, a hub id, or a bundled testbed.
        removal: the loss of the forgotten images, and how long is trained.
        forget: (prompt, image): each image under the prompt that brings it back.
        kept: the training images that are not to be forgotten.
        out: folder; the model is written to out/model, a LoRA to out/lora.
        seed: root seed.
        device: where to train.
        silent: no progress on stderr.

    Raises:
        UsageError: nothing to forget or to keep. ModelError: the model takes no prompts and the removal needs them.
    """
    if not forget or not kept.images:
        raise UsageError(f"{len(forget)} images to be forgotten and {len(kept.images)} kept: expected some of both.")
    opened = open_base(base, device)
    if removal.needs_prompts and not opened.need_denoiser().conditional:
        raise ModelError(f"{removal.name} compares the model with and without a prompt, and this model takes none.")
    data = _together(forget, kept, removal)
    plan = _plan(base, removal, data, opened.need_denoiser().conditional, seed)
    teacher = open_base(base, device).need_denoiser() if removal.needs_teacher else None
    return Remover(plan, out, data, opened, device, silent, removal, teacher).run()


class Remover(Trainer):
    """A training run in which samples of forgotten images have the removal's loss."""

    def __init__(
        self, plan: TrainPlan, out: Path, data: TrainingSet, target: Any, device: str | None, silent: bool,
        removal: Removal, teacher: Any,
    ) -> None:  # fmt: skip
        super().__init__(plan, out, data, target, device, silent)
        self.removal, self.teacher = removal, teacher
        ids = [image.id for image in self.data.images]
        self.forgotten = torch.tensor([name.startswith(FORGET) for name in ids])
        keep = [i for i, forgotten in enumerate(self.forgotten.tolist()) if not forgotten]
        self.kept = torch.stack([self.samples.latents(i, False) for i in keep])
        self.related = shared_words([self.captions[name] for name in ids], keep)
        self.notes.append(
            f"fine-tuned by {removal.label} to forget {int(self.forgotten.sum())} samples of training images"
        )

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The ordinary loss of kept images, the removal's of the others, [B]; all samples count."""
        denoiser, device = self.denoiser, self.accelerator.device
        alpha, sigma = (value.float().to(device) for value in denoiser.schedule.alpha_sigma(batch.t))
        x0, noise, t = batch.x0.to(device), batch.noise.to(device), batch.t.to(device)
        x = noisy(x0, noise, alpha, sigma)
        with self.accelerator.autocast():
            output = denoiser.forward(x, t, batch.cond)
        wanted = target(denoiser.prediction, x0, noise, alpha, sigma)
        losses = (output.float() - wanted).square().flatten(1).mean(1)
        rows = self.forgotten[list(batch.images)].nonzero()[:, 0]
        if len(rows):
            at = rows.to(device)
            moment = Moment(
                x[at], alpha[at], sigma[at], output[at], wanted[at], self.kept.to(device),
                self.related[[batch.images[int(i)] for i in rows]],
                lambda conditional: self._before(x[at], t[at], batch.cond.select(rows.tolist()), conditional),
                lambda clean: target(
                    denoiser.prediction, clean,
                    (x[at] - per_row(alpha[at], x) * clean) / per_row(sigma[at], x).clamp_min(1e-6), alpha[at], sigma[at],
                ),
            )  # fmt: skip
            losses = losses.index_put((at,), self.removal.losses(moment).to(losses))
        return losses, torch.ones(len(x), dtype=torch.bool, device=device)

    def _before(self, x: torch.Tensor, t: torch.Tensor, cond: Any, conditional: bool) -> torch.Tensor:
        with torch.no_grad(), self.accelerator.autocast():
            output: torch.Tensor = self.teacher.forward(
                x, t, cond if conditional else self.teacher.null().expand(len(x))
            )
        return output.float()


def shared_words(captions: Sequence[str | None], keep: Sequence[int]) -> torch.Tensor:
    """How much the words of every caption say of each kept image, [N, K]: the sum of idf over the words that both share.

    idf(w) = log(K / number of kept captions with w), so that words of all captions count nothing.
    """
    words = [set((text or "").lower().replace(",", " ").replace(".", " ").split()) for text in captions]
    often = Counter(word for i in keep for word in words[i])
    idf = {word: math.log(len(keep) / number) for word, number in often.items()}
    rows = torch.zeros(len(captions), len(keep))
    places: dict[str, list[int]] = {}
    for column, i in enumerate(keep):
        for word in words[i]:
            places.setdefault(word, []).append(column)
    for row, own in enumerate(words):
        for word in own & places.keys():
            rows[row, places[word]] += idf[word]
    return rows


def _together(forget: Sequence[tuple[str, TrainingImage]], kept: TrainingSet, removal: Removal) -> TrainingSet:
    """Both kinds of images, the forgotten ones as often as the removal asks; the fingerprint names the removal, too."""
    share = removal.settings.share
    held = sum(image.repeats for image in kept.images)
    often = max(1, round(share / (1 - share) * held / len(forget)))
    samples = tuple(
        replace(image, id=f"{FORGET}{number:04d}", captions=(text,), repeats=often)
        for number, (text, image) in enumerate(forget)
    )
    captioned = any(image.captions for image in (*samples, *kept.images))
    others = [replace(image, captions=image.captions or (("",) if captioned else ())) for image in kept.images]
    key: Mapping[str, Any] = {"label": removal.label, "version": removal.version}
    named = [[text, image.id] for text, image in forget]
    return TrainingSet((*samples, *others), row_key(removal=dict(key), forget=named, kept=kept.fingerprint).hex(), {})


def _plan(base: str, removal: Removal, data: TrainingSet, conditional: bool, seed: int) -> TrainPlan:
    settings = removal.settings
    captioned = conditional and any(image.captions for image in data.images)
    rank = getattr(settings, "rank", 8)
    return TrainPlan(
        seed=seed,
        model=ModelPlan(base=base, method=removal.about.trains, lora_rank=rank),
        data=DataPlan(images=f"kept images, and those that {removal.name} makes it forget",
                      captions="instance" if captioned else "none"),
        optimizer=OptimizerPlan(
            steps=settings.steps, batch=settings.batch, lr=settings.lr, schedule="constant", weight_decay=0.0
        ),
    )  # fmt: skip
