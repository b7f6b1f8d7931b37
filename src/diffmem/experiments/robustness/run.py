"""Does a mitigation hold when something else changes? Copies without and with it under every condition of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet, as_images
from diffmem.data.prompts import Prompt, PromptList, as_prompts
from diffmem.errors import DataError, DiffmemError, MitigationRefused, UsageError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Arm, Options, Reference
from diffmem.experiments._experiment import ArmResult, Experiment, Results, run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.robustness.compare import rows_of
from diffmem.experiments.robustness.conditions import Condition, Paraphrase, RobustnessPlan, conditions_of
from diffmem.experiments.robustness.outcome import Outcome, outcome_of
from diffmem.experiments.robustness.summary import RobustnessSummary, headline
from diffmem.keys import row_key
from diffmem.mitigation.adversarial import Adversarial, hand_over, search
from diffmem.mitigation.base import Mitigation
from diffmem.mitigation.spec import parse_mitigations
from diffmem.models.pipelines.calls import target_of
from diffmem.models.target import Target
from diffmem.notebook import is_silent
from diffmem.runs.summary import ArmPlace
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import Matching

PLAIN = "plain"


def robustness(
    target: Target | Any,
    prompts: PromptList | str | Path | Sequence[str],
    methods: str | Mitigation | Sequence[str | Mitigation],
    train: ImageSet | CopyIndex | str | Path,
    plan: RobustnessPlan | None = None,
    *,
    out: str | Path | None = None,
    heldout: ImageSet | str | Path | None = None,
    matching: Matching | None = None,
    descriptor_options: Mapping[str, Any] | None = None,
    paraphrase: Paraphrase | None = None,
    pictures: ImageSet | str | Path | None = None,
    alignment: TextAlignment | None = None,
    retry_errors: bool = False,
    shard: tuple[int, int] | None = None,
    silent: bool | None = None,
) -> Run:
    """Copies without and with each mitigation under every condition; the same call resumes.

    Args:
        target: the model, with a pipeline.
        prompts: memorized prompts.
        methods: mitigations, as text or objects.
        train: the training images, or an index of them.
        plan: the conditions.
        out: folder; None for a temporary one.
        heldout: images that no training saw, for the threshold of a copy, whose rate is per image here.
        matching: descriptor, statistic, false-positive rate.
        descriptor_options: of the descriptor's class.
        paraphrase: other wordings of a prompt; None leaves that condition out.
        pictures: the training images themselves, for the adversarial search and for amg; `train` by default, unless that is
            an index, which holds none.
        alignment: judges images against the words that asked for them: copies can vanish because the picture does.
        retry_errors: make images again that ended in an error.
        shard: (i, n): only this part of the prompts, without a summary; the call without it finishes.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        The run; `run.summary.rows` has one row per mitigation and condition. Cost: (1 + mitigations) times the images of
        all conditions, and once the adversarial search (50 steps of 8 noises per prompt: 1,200 NFE).

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
        >>> digits = dm.Target.from_pretrained("testbed:digits", device="cpu")  # a small model that comes with diffmem
        >>> plan = dm.experiments.RobustnessPlan(
        ...     sampling=dm.Sampling(steps=2), images_per_prompt=1, worst_of=(1, 2), guidance=(1.0,), samplers=(),
        ...     adversarial=None,
        ... )
        >>> run = dm.robustness(digits, ["a seven"], ["random-tokens"], images, plan)
        >>> list(dict.fromkeys(row["kind"] for row in run.summary.rows))
        ['seeds', 'guidance']
    """
    silent = is_silent(silent)
    listed = [prompt.text for prompt in as_prompts(prompts) if prompt.problem is None]
    given = pictures if pictures is not None else None if isinstance(train, CopyIndex) else train
    experiment = RobustnessExperiment(
        target_of(target), listed, [one.with_images(given) for one in parse_mitigations(methods)],
        plan or RobustnessPlan(), Reference.of(train, heldout, matching, descriptor_options, silent), alignment,
        paraphrase, None if given is None else pictures_of(given),
    )  # fmt: skip
    return run_experiment(experiment, out, Options(retry_errors, silent, shard))


@dataclass
class RobustnessExperiment(Experiment[RobustnessSummary]):
    """The same prompts and noises under every condition, without and with each mitigation.

    Attributes:
        pictures: the training image of a name, for the adversarial search; None leaves that out.
    """

    target: Target
    prompts: list[str]
    mitigations: Sequence[Mitigation]
    plan: RobustnessPlan
    reference: Reference | None
    judge: TextAlignment | None = None
    paraphrase: Paraphrase | None = None
    pictures: Callable[[str], Image.Image] | None = None
    conditions: list[Condition] = field(init=False)
    refused: dict[str, str] = field(default_factory=dict)

    refusals: ClassVar[tuple[type[DiffmemError], ...]] = (MitigationRefused, UsageError)
    describes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UsageError("There are no prompts; robustness is asked of prompts whose images are copies.")
        self.denoiser = self.target.need_denoiser()
        self.conditions = conditions_of(self.prompts, self.plan, self.denoiser.schedule, self.paraphrase)
        self._done: Results = {}

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Conditions and mitigations may be added; the model and the seed may not change."""
        return {"robustness": {"seed": self.plan.seed}}, {"model": self.target.fingerprint}

    def arms(self, results: Results) -> Iterator[Arm]:
        """Every condition without mitigation, then all of them under each."""
        self._done = results
        for mitigation in (None, *self.mitigations):
            for condition in self.conditions:
                if not _bypassed(condition, mitigation) and not self._out_of_reach(condition):
                    yield self._arm(condition, mitigation)

    def _arm(self, condition: Condition, mitigation: Mitigation | None) -> Arm:
        about = None if mitigation is None else [mitigation.label, mitigation.version]
        prompts = [
            Prompt(f"{number}/{k}", text, group=str(number))
            for number, texts in enumerate(condition.texts)
            for k, text in enumerate(texts)
        ]
        searched = self.plan.adversarial if condition.kind == "adversarial" else None
        section = {
            "kind": condition.kind, "mitigation": about,
            "adversarial": None if searched is None else searched.model_dump(mode="json"),
        }  # fmt: skip
        settings = Generation(
            images_per_prompt=condition.images_per_prompt,
            seed=self.plan.seed,
            batch=self.plan.batch,
            sampling=condition.sampling,
        )
        key = row_key(
            condition=section, settings=settings.model_dump(mode="json", exclude={"batch", "images_per_prompt"}),
            texts=[list(texts) for texts in condition.texts],
        ).hex()[:8]  # fmt: skip
        return Arm(
            _name(condition, mitigation), lambda: self.target, prompts, settings,
            f"arms/{condition.kind}-{PLAIN if mitigation is None else mitigation.name}-{key}", {"robustness": section},
            () if mitigation is None else (mitigation,),
            conditioning=None if searched is None else lambda target: self._handed_over(target, mitigation),
            judged_together=1,
        )  # fmt: skip

    def _handed_over(self, target: Target, mitigation: Mitigation | None) -> AbstractContextManager[Any]:
        found = self.adversarial.conditioning
        rows = {text: found.select([i]) for i, text in enumerate(self.prompts)}
        return hand_over(target, rows, None if mitigation is None else mitigation.about.level)

    def _out_of_reach(self, condition: Condition) -> bool:
        """Whether a condition cannot be made at all; the reason is kept for its rows."""
        if condition.kind != "adversarial" or condition.label in self.refused:
            return condition.label in self.refused
        names = self._outcome(self.conditions[0], None).nearest
        unknown = [text for text, name in zip(self.prompts, names, strict=False) if name is None]
        if self.pictures is None:
            reason = (
                "An adversarial embedding is searched for the training image that a prompt copies: give the images."
            )
        elif unknown or not names:
            reason = f"No training image was found near the images of {(unknown or self.prompts)[0]!r}."
        else:
            return False
        self.refused[condition.label] = reason
        return True

    @cached_property
    def adversarial(self) -> Adversarial:
        """The embeddings of the search, one per prompt; its target is the training image that the bare model copies."""
        assert self.pictures is not None and self.plan.adversarial is not None
        names = self._outcome(self.conditions[0], None).nearest
        images = torch.stack([as_sampled(self.target, self.pictures(str(name))) for name in names])
        return search(self.denoiser, self.prompts, images, self.plan.adversarial)

    def _outcome(self, condition: Condition, mitigation: Mitigation | None) -> Outcome:
        if condition.label in self.refused:
            return Outcome(status="refused", reason=self.refused[condition.label])
        if _bypassed(condition, mitigation):
            reason = "an embedding is handed over, which no change of the text reaches"
            return replace(self._outcome(condition, None), status="bypassed", reason=reason)
        result: ArmResult | None = self._done.get(_name(condition, mitigation))
        if result is None:
            return Outcome(status="missing", reason="not made yet")
        base = [int(str(prompt.group)) for prompt in result.arm.prompts]
        return outcome_of(result, base, len(self.prompts), self.judge is not None)

    def outcomes(self, mitigation: Mitigation | None) -> dict[str, Outcome]:
        """The outcomes of all conditions, by label."""
        return {condition.label: self._outcome(condition, mitigation) for condition in self.conditions}

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> RobustnessSummary:
        """One row per mitigation and condition."""
        self._done = results
        plain, rows = self.outcomes(None), []
        for one in self.mitigations:
            found = rows_of(self.prompts, self.conditions, plain, self.outcomes(one), one.label, self.plan.worst_of)
            rows += [row for row in found if row["status"] != "missing"]
        return RobustnessSummary(
            headline=headline(rows), arms=arms, model=self.target.name,
            alignment=None if self.judge is None else self.judge.name, prompts=tuple(self.prompts), rows=tuple(rows),
            limits=tuple(self._limits()),
        )  # fmt: skip

    def _limits(self) -> list[str]:
        limits = [
            "Shares are of these prompts and noises; the intervals say what other prompts like them would give.",
            "The adversarial embedding was searched against the bare model: a mitigation that withstands it has not been "
            "shown to withstand a search made against itself.",
        ]
        if self.judge is None:
            limits.append("Nothing judged text alignment: copies may have vanished because the picture did.")
        if self.reference is not None and self.reference.heldout is None:
            limits.append("No held-out images were given (--heldout); the rate of false calls may be unknown.")
        return limits


def pictures_of(source: str | Path | ImageSet) -> Callable[[str], Image.Image]:
    """Training images by name from a folder, a file or a set."""
    images = as_images(source)

    def picture(name: str) -> Image.Image:
        item = images.by_id(name)
        if item.image is None:
            raise DataError(f"The training image '{name}' cannot be decoded: {item.problem}.")
        return item.image

    return picture


def as_sampled(target: Target, picture: Image.Image) -> torch.Tensor:
    """A picture in [-1, 1], [C, H, W], in the size and channels that the model generates."""
    shape = target.need_denoiser().sample_shape
    decoder = getattr(target.pipeline, "vae", None)
    factor = getattr(target.pipeline, "vae_scale_factor", 1)
    height, width = (factor * n for n in shape[1:])
    channels = shape[0] if decoder is None else int(decoder.config.in_channels)
    sized = picture.convert("L" if channels == 1 else "RGB")
    if sized.size != (width, height):
        sized = sized.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(sized, np.float32) / 127.5 - 1)
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def _bypassed(condition: Condition, mitigation: Mitigation | None) -> bool:
    return condition.kind == "adversarial" and mitigation is not None and mitigation.about.level == "prompt"


def _name(condition: Condition, mitigation: Mitigation | None) -> str:
    return f"{PLAIN if mitigation is None else mitigation.label}: {condition.label}"
