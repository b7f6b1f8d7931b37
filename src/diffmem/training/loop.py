"""The training loop: resumable to the bit, and the same whatever the micro-batch or the number of processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffmem.atomic import write_atomic
from diffmem.errors import IncompleteRun, UsageError
from diffmem.models.target import Target
from diffmem.notebook import is_silent
from diffmem.randomness import seed_of
from diffmem.runs.microbatch import is_out_of_memory
from diffmem.runs.progress import Progress
from diffmem.runs.provenance import provenance
from diffmem.training.batch import Batch, Latents, Samples
from diffmem.training.canary_files import registered_in
from diffmem.training.captions import CaptionDraw, captions_of, cut_captions
from diffmem.training.card import model_card
from diffmem.training.changes import within
from diffmem.training.checkpoint import State, load_state, load_weights, save_state
from diffmem.training.data import TrainingSet, left_out, load_training_set
from diffmem.training.duplication import Order, repeated, weights
from diffmem.training.identity import Identity
from diffmem.training.model import Trainable, open_base, prepare_model
from diffmem.training.objective import noisy, target
from diffmem.training.plan import TrainPlan
from diffmem.training.result import TrainResult
from diffmem.training.selection import unique_images
from diffmem.training.stop import StopWish

LOG = "log.json"
KEPT = "checkpoints"
"""Folder of the models of all checkpoints, where they are kept."""


Watch = Callable[[int, Any], object]
"""Called with the step and the pipeline in training, before the first step, at every checkpoint and at the end."""
MakeWatch = Callable[[TrainingSet, Mapping[str, str | None]], Watch]
"""Makes it from the data and the caption that each image is trained with."""


def train(
    plan: TrainPlan, out: str | Path, *, data: TrainingSet | None = None, target: Target | None = None,
    device: str | None = None, silent: bool | None = None, watch: MakeWatch | None = None,
) -> TrainResult:  # fmt: skip
    """Train a model as a plan says; the same call goes on where an earlier one stopped.

    Args:
        plan: see `TrainPlan`.
        out: folder of the run.
        data: the images, instead of reading `plan.data.images`.
        target: the base model, instead of opening `plan.model.base`; it is changed.
        device: where to train; default: a GPU where there is one.
        silent: no progress on stderr; by default progress shows in notebooks only.
        watch: makes a monitor that sees the pipeline, with the averaged weights where there are any; it changes no result.

    Raises:
        IncompleteRun: stopped (Ctrl-C) or out of disk; everything up to the last checkpoint is kept.
        IncompatibleRun: the folder holds another plan or other data.
        DataError, UsageError, ModelError: what was found, what was expected, what to do.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> plan = dm.training.TrainPlan.model_validate({
        ...     "model": {"base": "testbed:digits"}, "data": {"images": "given", "captions": "fixed"},
        ...     "optimizer": {"steps": 2, "batch": 4},
        ... })
        >>> images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
        >>> trained = dm.train(plan, "runs/train", data=dm.training.load_training_set(list(images)), device="cpu")
        >>> trained.log["steps"], trained.target.can_generate
        (2, True)
    """
    silent = is_silent(silent)
    trainer = Trainer(plan, Path(out), data, target, device, silent)
    if watch is not None and trainer.accelerator.is_main_process:
        trainer.watch = watch(trainer.data, trainer.captions)
    return trainer.run()


class Trainer:
    """One training run at work."""

    def __init__(
        self, plan: TrainPlan, out: Path, data: TrainingSet | None, target: Target | None, device: str | None,
        silent: bool,
    ) -> None:  # fmt: skip
        from accelerate import Accelerator

        self.plan, self.out = plan, out
        # accelerate makes one group of several processes on CPUs only where it is told to use them.
        self.accelerator = Accelerator(mixed_precision=plan.optimizer.precision, cpu=on_cpu(device))
        self.silent = silent or not self.accelerator.is_main_process
        self.data = (
            data if data is not None else load_training_set(plan.data.images, plan.data.limit, plan.data.caption_files)
        )
        self.notes = left_out(self.data)
        # Before anything is trained: a registration in the data folder, and whether its pictures are what is in there.
        self.canaries = registered_in(plan.data.images, self.data)
        if self.canaries is not None and not self.canaries["as_registered"]:
            self.notes.append("the canaries in the data are not as often in it as their registration says")
        if plan.changes.deduplicate:
            self.data, removed = unique_images(self.data)
            self.notes.append(f"{removed} near-duplicates were left out")
        self.target = target if target is not None else open_base(plan.model.base, str(self.accelerator.device))
        self.identity = Identity(out, plan, self.data.fingerprint, self.target.fingerprint)
        self.identity.check()
        self.model: Trainable = prepare_model(plan.model, self.target, plan.seed)
        self.denoiser = self.target.need_denoiser()
        self.captions: dict[str, str | None] = {image.id: None for image in self.data.images}
        self.watch: Watch | None = None
        self.samples = self._samples()
        self.parameters = list(self.model.parameters.values())
        self._build_optimizer()
        self.log: dict[str, Any] = {"loss": [], "grad_norm": [], "left_out": 0, "seconds": 0.0}
        self.step = 0
        self.micro_batch = plan.optimizer.micro_batch or plan.optimizer.batch

    def _samples(self) -> Samples:
        plan = self.plan
        ids = [image.id for image in self.data.images]
        draw = None
        if self.denoiser.conditional:
            tokenizer = getattr(self.model.pipeline, "tokenizer", None)
            draws = plan.duplication.regime == "dup_image" or plan.changes.multiple_captions > 1
            captions = captions_of(self.data, plan.data, tokenizer, plan.seed, draws)
            self.captions = {name: texts[0] if texts else None for name, texts in zip(ids, captions, strict=True)}
            if tokenizer is not None and not hasattr(self.model.pipeline, "tokenizer_2"):  # a second one may read more
                self.notes += cut_captions(captions, tokenizer)
            several = (
                repeated(ids, plan.duplication, plan.seed) if plan.duplication.regime == "dup_image" else frozenset()
            )
            lacking = [ids[i] for i in several if len(captions[i]) < 2]
            if lacking and plan.data.captions in ("fixed", "class", "none"):
                self.notes.append(
                    f"under captions = '{plan.data.captions}' an image has one caption, with which it repeats: dup_image is "
                    "dup_both here"
                )
            elif lacking:
                raise UsageError(
                    f"duplication.regime = 'dup_image' repeats images under different captions, but {len(lacking)} of "
                    f"{len(several)} repeated images have only one ({lacking[0]}): give them a list (captions)."
                )
            draw = CaptionDraw(captions, several, plan.data, plan.changes, tokenizer)
        elif plan.data.captions != "none":
            raise UsageError("This model takes no prompts; set data.captions = 'none'.")
        shown = zip(weights(ids, plan.duplication, plan.seed), self.data.images, strict=True)
        order = Order([weight * image.repeats for weight, image in shown], plan.seed)
        return Samples(plan, self.denoiser, order, Latents(self.denoiser, self.data, plan.data.flip), draw)

    def _build_optimizer(self) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        settings = self.plan.optimizer
        optimizer = torch.optim.AdamW(self.parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.schedule = get_scheduler(
            settings.schedule, optimizer, num_warmup_steps=settings.warm_up, num_training_steps=settings.steps
        )
        self.average = EMAModel(self.parameters, decay=settings.ema, foreach=True) if settings.ema else None

    def run(self) -> TrainResult:
        """Train what is left, then write the model."""
        # Written only here: a run that its data or plan kept from starting leaves nothing that refuses the mended one.
        if self.accelerator.is_main_process:
            self.identity.claim()
        self.accelerator.wait_for_everyone()
        self._resume()
        steps = self.plan.optimizer.steps
        for module in self.model.modules.values():
            module.train()
        before, started = self.log["seconds"], time.perf_counter()
        if self.step == 0:
            started += self._look()
        try:
            with (
                StopWish() as wish,
                Progress(steps, "training", unit="steps", done=self.step, silent=self.silent) as bar,
            ):
                while self.step < steps:
                    loss, norm, stop = self._step(wish)
                    self.step += 1
                    self.log["loss"].append(round(loss, 6))
                    self.log["grad_norm"].append(round(norm, 6))
                    self.log["seconds"] = before + time.perf_counter() - started
                    bar.note(f"loss {sum(self.log['loss'][-50:]) / len(self.log['loss'][-50:]):.4f}")
                    bar.advance()
                    if stop and self.step < steps:
                        self._save()
                        raise IncompleteRun(f"Stopped after step {self.step} of {steps}; the same command goes on.")
                    if self.step % self.plan.checkpoint_every == 0 and self.step < steps:
                        self._save()
                        started += self._look()
        except KeyboardInterrupt:  # a second signal: in the middle of a step there is nothing whole to save
            raise IncompleteRun(
                f"Stopped at once in step {self.step + 1} of {steps}; the same command goes on from the last checkpoint."
            ) from None
        return self._finish()

    def _look(self) -> float:
        """Show the monitor the model as it would be saved now; the seconds that this took."""
        begun = time.perf_counter()
        if self.watch is not None:
            with self._averaged():
                self.watch(self.step, self.model.pipeline)
        self.accelerator.wait_for_everyone()
        return time.perf_counter() - begun

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the model's place, where there are any, as they would be saved."""
        if self.average is None:
            yield
            return
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            self.average.restore(self.parameters)

    def _step(self, wish: StopWish) -> tuple[float, float, bool]:
        """One optimizer step; memory that runs out halves the micro-batch and the step is made again.

        Returns:
            Loss, norm of the gradient, and whether any process was asked to stop.
        """
        while True:
            try:
                return self._attempt(wish)
            except RuntimeError as problem:
                if not is_out_of_memory(problem) or self.micro_batch == 1 or self.accelerator.num_processes > 1:
                    raise
                self.micro_batch = max(1, self.micro_batch // 2)
                self.optimizer.zero_grad()
                self.notes.append(f"out of memory: the micro-batch was halved to {self.micro_batch}")

    def _attempt(self, wish: StopWish) -> tuple[float, float, bool]:
        size = self.plan.optimizer.batch
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        # Dropout is the one thing drawn from the global state; named by the step it is the same after a resume.
        torch.manual_seed(seed_of(self.plan.seed, "training", "dropout", self.step, rank))
        places = range(self.step * size, (self.step + 1) * size)[rank::processes]
        total = 0.0
        left_out = 0
        for part in _parts(places, self.micro_batch):
            losses, kept = self._losses(self.samples.batch(part))
            left_out += int((~kept).sum())
            loss = (losses * kept).sum() / size
            self.accelerator.backward(loss)
            total += float(loss.detach())
        self._share_gradients()
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.plan.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        if self.average is not None:
            self.average.step(self.parameters)
        # On the device: NCCL sums nothing else. All processes stop after the same step, whoever was asked.
        own = torch.tensor([total, left_out, wish.asked], dtype=torch.float32, device=self.accelerator.device)
        loss_sum, left_out_sum, stop = self.accelerator.reduce(own, "sum").tolist()
        self.log["left_out"] += round(left_out_sum)
        return loss_sum, float(norm), stop > 0

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean squared error of each sample, [B], and which samples count, [B]."""
        denoiser = self.denoiser
        alpha, sigma = denoiser.schedule.alpha_sigma(batch.t)
        device = self.accelerator.device
        x0, noise, t = batch.x0.to(device), batch.noise.to(device), batch.t.to(device)
        x = noisy(x0, noise, alpha, sigma)
        with self.accelerator.autocast():
            output = denoiser.forward(x, t, batch.cond)
        wanted = target(denoiser.prediction, x0, noise, alpha, sigma)
        losses = (output.float() - wanted).square().flatten(1).mean(1)
        kept = torch.ones(len(x), dtype=torch.bool, device=device)
        limit = self.plan.changes.drop_score_difference
        if limit is not None and denoiser.conditional:
            # Wen et al. 2024: a sample whose prompt steers this strongly is being memorized; leave it out.
            with torch.no_grad(), self.accelerator.autocast():
                without = denoiser.forward(x, t, denoiser.null().expand(len(x)))
            kept = within(output, without, limit) | batch.unconditional.to(device)
        return losses, kept

    def _share_gradients(self) -> None:
        """Sum the gradients of all processes: each holds its part of one mean."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "sum")
        start = 0
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = flat[start : start + gradient.numel()].view_as(gradient)
            start += gradient.numel()

    def _resume(self) -> None:
        state = load_state(self.out)
        if state is None:
            return
        load_weights(self.model.parameters, state.weights)
        self.optimizer.load_state_dict(state.parts["optimizer"])
        self.schedule.load_state_dict(state.parts["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state.parts["average"])
            self.average.to(self.accelerator.device)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.parts["scaler"])
        self.step, self.log = state.step, dict(state.log)

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            parts = {
                "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                "average": self.average.state_dict() if self.average is not None else None,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }  # fmt: skip
            save_state(self.out, State(self.step, self.model.parameters, parts, self.log))
            if self.plan.keep_checkpoints:
                with self._averaged():
                    self.model.save_as(self.out / KEPT / f"checkpoint-{self.step}")
        self.accelerator.wait_for_everyone()

    def _repeated(self) -> list[str]:
        """Ids of the images that were seen more often than the others."""
        ids = [image.id for image in self.data.images]
        return sorted(ids[i] for i in repeated(ids, self.plan.duplication, self.plan.seed))

    def _finish(self) -> TrainResult:
        for module in self.model.modules.values():
            module.eval()
        self._save()
        self._look()
        if self.average is not None:
            self.average.copy_to(self.parameters)
        saved = self.out / ("lora" if self.plan.model.method == "lora" else "model")
        self.log |= {
            "steps": self.step, "images": len(self.data), "data": self.data.fingerprint,
            "plan": self.plan.model_dump(mode="json"), "notes": self.notes,
            "parameters": sum(p.numel() for p in self.parameters), "processes": self.accelerator.num_processes,
            "device": str(self.accelerator.device), "provenance": provenance().model_dump(mode="json"),
            "canaries": self.canaries, "repeated": self._repeated(),
        }  # fmt: skip
        if self.accelerator.is_main_process:
            self.model.save(self.out)
            write_atomic(self.out / LOG, json.dumps(self.log, indent=1).encode())
            write_atomic(self.out / "README.md", model_card(self.plan, self.log, self.target.name).encode())
        self.accelerator.wait_for_everyone()
        self.target._fingerprint = None  # its weights are others now
        return TrainResult(self.out, saved, self.log, self.target, self.notes, self.accelerator.is_main_process)


def on_cpu(device: str | None) -> bool:
    """Whether training goes on the CPU: asked for, or there is nothing else.

    Raises:
        UsageError: another device was asked for and this machine has none.
    """
    faster = torch.cuda.is_available() or torch.backends.mps.is_available()
    if device not in (None, "cpu") and not faster:
        raise UsageError(f"--device {device}, but torch sees no GPU on this machine: leave it out, or give cpu.")
    return device == "cpu" or not faster


def _parts(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
