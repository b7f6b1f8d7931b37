"""Images removed from a model's weights, and whether they are gone or only hidden: one experiment whose axis is the weights."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from diffmem.atomic import write_atomic
from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet, as_images
from diffmem.data.prompts import Prompt, PromptList, as_prompts
from diffmem.errors import DiffmemError, MitigationRefused, ModelError, UsageError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Arm, Options, Reference
from diffmem.experiments._experiment import Experiment, Results, run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.mitigate.compare import OTHER
from diffmem.experiments.remove.forget import Forget, bystanders, copied_images, given_images, kept_of
from diffmem.experiments.remove.judge import forced_share, row_of
from diffmem.experiments.remove.summary import RemoveSummary, headline
from diffmem.experiments.robustness.run import as_sampled
from diffmem.keys import row_key
from diffmem.mitigation.adversarial import AdversarialParameters, hand_over, search
from diffmem.mitigation.removal import parse_removals
from diffmem.mitigation.removal.base import Removal
from diffmem.models.conditioning import Conditioning
from diffmem.models.target import Target
from diffmem.notebook import is_silent
from diffmem.runs.summary import ArmPlace
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import Matching
from diffmem.training.data import TrainingSet, load_training_set
from diffmem.training.loop import LOG
from diffmem.training.model import open_base
from diffmem.training.removal import remove_images

BEFORE, ATTACKED, MODELS = "before", ", under attack", "models"
ATTACK = AdversarialParameters()
ATTACK_IMAGES = 4
"""Images of each adversarial embedding."""
FORCED = 0.25
"""Share of kept images that an attack may bring out of the former model, which never copied them."""
BYSTANDERS = 24
"""Kept images whose captions stand for other prompts, where none are given."""


def remove(
    model: str | Path,
    prompts: PromptList | str | Path | Sequence[str] | None,
    methods: str | Removal | Sequence[str | Removal],
    train: ImageSet | str | Path,
    *,
    out: str | Path,
    images: ImageSet | str | Path | None = None,
    edited: Sequence[str | Path] = (),
    others: PromptList | str | Path | Sequence[str] | None = None,
    heldout: ImageSet | str | Path | None = None,
    settings: Generation | None = None,
    adversarial: AdversarialParameters | None = ATTACK,
    matching: Matching | None = None,
    descriptor_options: Mapping[str, Any] | None = None,
    alignment: TextAlignment | None = None,
    device: str | None = None,
    retry_errors: bool = False,
    silent: bool | None = None,
) -> Run:
    """Fine-tune a model so that it forgets images, and say whether they are gone or only hidden; the same call resumes.

    Args:
        model: a pipeline folder, a hub id, or testbed:NAME; it stays as it is.
        prompts: those that bring the images back; None: the captions of `images`.
        methods: removals with their parameters, as text or objects; may be empty where `edited` models are judged.
        train: the training images with their captions: what a copy is, and what is kept.
        out: folder; the models lie in out/models.
        images: the pictures to be removed, as they are in `train`; None: those that the images of `prompts` copy.
        edited: models that were changed elsewhere, judged alike.
        others: prompts of bystanders; None: captions of kept images.
        heldout: images that no training saw, to calibrate the threshold of a copy.
        settings: images per prompt (16 by default, of which the worst counts), seed, sampling.
        adversarial: how an embedding is searched that brings an image back; None leaves the attack out, and with it the
            question whether an image is gone or hidden.
        matching: descriptor, statistic, false-positive rate of a copy.
        descriptor_options: of the descriptor's class.
        alignment: judges images against their prompts; None: alignment is not judged.
        device: where is trained and generated.
        retry_errors: make images again that ended in an error.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        The run; `run.summary.rows` has one row per model. Cost: one training per method, (1 + models) x (prompts + bystanders)
        x images, and one adversarial search per model.

    Raises:
        UsageError: neither prompts nor images, no method, an image that is not in the training set.
    """
    silent = is_silent(silent)
    if isinstance(train, CopyIndex):
        raise UsageError("A removal is trained on the kept images: give the training images, not an index of them.")
    listed = as_images(train)
    copies = Reference.of(listed, heldout, matching or Matching(), descriptor_options, silent)
    removals = parse_removals(methods)
    if not removals and not edited:
        raise UsageError("No removal is named, and no edited model is given.")
    experiment = RemoveExperiment(
        str(model), removals, tuple(map(str, edited)), listed, Path(out),
        settings or Generation(images_per_prompt=16), adversarial, device, silent,
        None if images is None else as_images(images), None if prompts is None else as_prompts(prompts),
        None if others is None else as_prompts(others), copies, alignment,
    )  # fmt: skip
    return run_experiment(experiment, out, Options(retry_errors, silent))


@dataclass
class RemoveExperiment(Experiment[RemoveSummary]):
    """The model as it was, then with each removal; each one plainly and under attack."""

    model: str
    removals: Sequence[Removal]
    edited: Sequence[str]
    train: ImageSet
    out: Path
    settings: Generation
    adversarial: AdversarialParameters | None
    device: str | None
    silent: bool
    images: ImageSet | None
    asked: PromptList | None
    others: PromptList | None
    reference: Reference | None = None
    judge: TextAlignment | None = None
    forget: tuple[Forget, ...] = ()

    refusals: ClassVar[tuple[type[DiffmemError], ...]] = (MitigationRefused, ModelError)

    @cached_property
    def base(self) -> Target:
        """The model as it was."""
        target = open_base(self.model, self.device)
        if not target.need_denoiser().conditional:
            raise UsageError(
                "This model takes no prompts: copies before and after are compared prompt by prompt. Train it anew without "
                "the images."
            )
        return target

    @cached_property
    def index(self) -> CopyIndex:
        """Of the training images, in the run's folder."""
        assert self.reference is not None
        return self.reference.index_in(self.out)

    @cached_property
    def wanted(self) -> dict[str, tuple[str, ...]]:
        """Prompt -> ids of the given pictures that it stands for; empty where no pictures are given."""
        return {} if self.images is None else given_images(self.index, self.images, self.data, self.asked)

    @cached_property
    def data(self) -> TrainingSet:
        """All training images."""
        return load_training_set(self.train)

    @cached_property
    def prompts(self) -> PromptList:
        """The prompts of the images to be removed, then those of bystanders (group "other")."""
        if self.asked is None and self.images is None:
            raise UsageError("Give prompts (--prompts), or the pictures to be removed (--images).")
        asked = (
            [p.text for p in self.asked if p.problem is None and p.label is not False]
            if self.asked
            else list(self.wanted)
        )
        texts = list(dict.fromkeys(asked))
        if self.others is not None:
            besides = [p.text for p in self.others if p.problem is None]
        elif self.asked is not None and (told := [p.text for p in self.asked if p.label is False]):
            besides = told
        else:
            besides = bystanders(self.data, texts, BYSTANDERS, self.settings.seed)
        rows = [Prompt(f"prompt/{i}", text) for i, text in enumerate(texts)]
        rows += [
            Prompt(f"{OTHER}/{i}", text, group=OTHER)
            for i, text in enumerate(dict.fromkeys(besides))
            if text not in texts
        ]
        return PromptList(tuple(rows), "asked" if self.asked is None else self.asked.source)

    @cached_property
    def controls(self) -> tuple[Forget, ...]:
        """Kept images under their captions, as many as are to be forgotten: what the attack makes of images never copied."""
        gone = {one.image for one in self.forget}
        kept = kept_of(self.data, self.index, gone)
        texts = bystanders(
            kept, [one.prompt for one in self.forget], len({one.prompt for one in self.forget}), self.settings.seed
        )
        by_text = {image.captions[0]: image.id for image in reversed(kept.images) if image.captions}
        return tuple(Forget(text, by_text[text]) for text in texts)

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Removals may be added; the model, the images and the sampling may not change."""
        pictures = "" if self.images is None else self.images.fingerprint
        plan = {"generate": self.settings.model_dump(mode="json"), "remove": {"images": pictures}}
        return plan, {"model": self.base.fingerprint, "prompts": self.prompts.fingerprint}

    def arms(self, results: Results) -> Iterator[Arm]:
        """The former model, then each removed and each edited one; plainly, then under attack."""
        yield self._plain(BEFORE, "before", self._former)
        before = results[BEFORE].table
        if before is not None:
            self.forget = copied_images(before, self.prompts, self.wanted)
        if not self.forget:
            return
        yield from self._calibrated(results)
        for removal in self.removals:
            place = self._place(removal)
            yield self._plain(removal.label, place, lambda removal=removal: self._removed(removal))
            yield from self._attacked(removal.label, place, results)
        for source in self.edited:
            place = f"edited-{row_key(edited=source).hex()[:8]}"
            yield self._plain(source, place, lambda source=source: open_base(source, self.device))
            yield from self._attacked(source, place, results)

    def _former(self) -> Target:
        return self.base

    def _place(self, removal: Removal) -> str:
        return f"{removal.name}-{row_key(label=removal.label, version=removal.version).hex()[:8]}"

    def _plain(self, name: str, place: str, opened: Any) -> Arm:
        return Arm(
            name, opened, self.prompts.prompts, self.settings, f"arms/{place}", {"remove": {"attack": None}},
            fingerprints={"prompts": self.prompts.fingerprint},
        )  # fmt: skip

    def _calibrated(self, results: Results) -> Iterator[Arm]:
        """The former model under attack, of fewer steps each time, until hardly a kept image is forced out of it, too.

        A search that is long enough brings any image out of any model; only a shorter one tells what a model knows.
        """
        while self.adversarial is not None:
            yield from self._attacked(BEFORE, "before", results)
            made = results.get(self._attack_name(BEFORE))
            forced = None if made is None else forced_share(made, len(self.forget_once))
            if forced is None or forced <= FORCED:
                return
            steps = self.adversarial.steps // 2
            self.adversarial = self.adversarial.model_copy(update={"steps": steps}) if steps else None

    def _attack_name(self, name: str) -> str:
        return "" if self.adversarial is None else f"{name}{ATTACKED} of {self.adversarial.steps} steps"

    def _attacked(self, name: str, place: str, results: Results) -> Iterator[Arm]:
        """The arm of adversarial embeddings, searched against this very model; none for a model that could not be made."""
        made = results[name]
        if self.adversarial is None or made.made is None:
            return
        aims = [*self.forget_once, *self.controls]
        prompts = [
            Prompt(f"attack/{i}", one.prompt, group=None if i < len(self.forget_once) else OTHER)
            for i, one in enumerate(aims)
        ]
        section = {
            "attack": self.adversarial.model_dump(mode="json"),
            "aims": [[one.prompt, one.image] for one in aims],
        }
        where = f"arms/{place}-attacked-{row_key(section=section).hex()[:8]}"
        yield Arm(
            self._attack_name(name), made.arm.open, prompts,
            self.settings.model_copy(update={"images_per_prompt": min(ATTACK_IMAGES, self.settings.images_per_prompt)}),
            where, {"remove": section}, judged_together=1,
            conditioning=lambda target: self._handed_over(target, aims, self.out / where / "embeddings.pt"),
        )  # fmt: skip

    @property
    def forget_once(self) -> tuple[Forget, ...]:
        """One image per prompt, for the attack."""
        return tuple({one.prompt: one for one in reversed(self.forget)}.values())[::-1]

    def _handed_over(self, target: Target, aims: Sequence[Forget], file: Path) -> AbstractContextManager[Any]:
        """The searched embeddings in place of the prompts; kept in the arm's folder, for the search takes long."""
        assert self.adversarial is not None
        texts = [one.prompt for one in aims]
        if file.exists():
            found = Conditioning(torch.load(file, weights_only=True), len(texts))
        else:
            pictures = {image.id: image.image for image in self.data.images}
            images = torch.stack([as_sampled(target, pictures[one.image]) for one in aims])
            former = self.base.need_denoiser().encode_prompts(texts)
            found = search(target.need_denoiser(), texts, images, self.adversarial, initial=former).conditioning
            buffer = io.BytesIO()
            torch.save({name: value.cpu() for name, value in found.tensors.items()}, buffer)
            write_atomic(file, buffer.getbuffer())
        return hand_over(target, {text: found.select([i]) for i, text in enumerate(texts)}, None)

    def _removed(self, removal: Removal) -> Target:
        """The fine-tuned model, trained where it is not there yet; always read from its folder."""
        folder = self.out / MODELS / self._place(removal)
        if not (folder / LOG).exists():
            by_id = {image.id: image for image in self.data.images}
            forget = [(one.prompt, by_id[one.image]) for one in self.forget]
            kept = kept_of(self.data, self.index, {one.image for one in self.forget})
            remove_images(
                self.model,
                removal,
                forget,
                kept,
                folder,
                seed=self.settings.seed,
                device=self.device,
                silent=self.silent,
            )
        if removal.about.trains == "full":
            return open_base(str(folder / "model"), self.device)
        from diffmem.models.bundled import bundled_path

        return Target.from_pretrained(
            bundled_path(self.model) or self.model, device=self.device, lora=str(folder / "lora"),
            name=f"{self.model} + {removal.name}",
        )  # fmt: skip

    def saved(self, removal: Removal) -> str:
        """Where the model lies, below the run's folder."""
        return f"{MODELS}/{self._place(removal)}/{'lora' if removal.about.trains == 'lora' else 'model'}"

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> RemoveSummary:
        """One row per model, each compared with the one before it was changed."""
        before = results[BEFORE]
        names = [name for name in results if name != BEFORE and ATTACKED not in name]
        saved = {removal.label: self.saved(removal) for removal in self.removals}
        rows = [
            row_of(
                name, results[name], before, results.get(self._attack_name(name)), results.get(self._attack_name(BEFORE)),
                self.prompts,
                self.forget_once, self.index, saved.get(name),
            )
            for name in names
        ]  # fmt: skip
        judged = None if self.judge is None else self.judge.name
        silent = [
            p.text for p in self.prompts if p.group != OTHER and p.text not in {one.prompt for one in self.forget}
        ]
        notes = [f"{len(silent)} prompts brought no copy before, so nothing is removed for them"] if silent else []
        return RemoveSummary(
            headline=headline(rows, len(self.forget), self.removals != [] or self.edited != ()), arms=arms, model=self.model,
            alignment=judged, images=tuple(sorted({one.image for one in self.forget})), rows=tuple(rows), notes=tuple(notes),
            limits=tuple(self._limits(judged)),
        )  # fmt: skip

    def _limits(self, judged: str | None) -> list[str]:
        attack = (
            "No attack tells: none was asked for, or even the shortest search brought images out of the model that it never "
            "copied. What is called lowered may be hidden."
            if self.adversarial is None
            else f"The search for embeddings is one attack, of {self.adversarial.steps} steps; a longer one, or further "
            "fine-tuning, may still bring an image back."
        )
        return [
            "Shares are of these prompts and noises; nothing here shows that the images have no influence left, and none of it "
            "replaces training without them.",
            attack,
            "Nothing judged text alignment (--text-alignment)."
            if judged is None
            else f"Alignment is judged by {judged}.",
        ]
