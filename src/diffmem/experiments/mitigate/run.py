"""Mitigations compared: the same prompts from the same noises without and with each, copies and side effects counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet
from diffmem.data.prompts import Prompt, PromptList, as_prompts
from diffmem.errors import MitigationRefused, UsageError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Arm, Options, Reference
from diffmem.experiments._experiment import ArmResult, Experiment, Results, run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments._verdict import FoundVerdict
from diffmem.experiments.mitigate.compare import OTHER, compare_arms
from diffmem.experiments.mitigate.summary import MitigateSummary, best_of, headline
from diffmem.experiments.mitigate.verdict import verdict_of
from diffmem.keys import row_key
from diffmem.mitigation.base import Mitigation
from diffmem.mitigation.calibrate import calibrated
from diffmem.mitigation.spec import parse_mitigations
from diffmem.models.generation import Sampling, steps_of
from diffmem.models.target import Target
from diffmem.notebook import is_silent
from diffmem.runs.facts import read_fact
from diffmem.runs.summary import ArmPlace
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import Matching

PLAIN, SETTINGS, NONE = "plain", "settings", "none"


def mitigate(
    target: Target,
    prompts: PromptList | str | Path | Sequence[str],
    methods: str | Mitigation | Sequence[str | Mitigation],
    train: ImageSet | CopyIndex | str | Path,
    *,
    out: str | Path,
    others: PromptList | str | Path | Sequence[str] | None = None,
    reference: PromptList | str | Path | Sequence[str] | None = None,
    heldout: ImageSet | str | Path | None = None,
    settings: Generation | None = None,
    matching: Matching | None = None,
    descriptor_options: Mapping[str, Any] | None = None,
    alignment: TextAlignment | None = None,
    pictures: ImageSet | str | Path | None = None,
    retry_errors: bool = False,
    shard: tuple[int, int] | None = None,
    silent: bool | None = None,
) -> Run:
    """Generate the same images without and with each mitigation and compare them in pairs; the same call resumes.

    Args:
        target: the model; mitigations take hold of its own pipeline and leave nothing behind.
        prompts: prompts to be mitigated; where they carry labels, those labelled false are `others`.
        methods: mitigations with their parameters, as text or objects.
        train: the training images, or an index of them with its descriptor.
        out: folder.
        others: prompts that are not memorized, to see what a mitigation does to bystanders.
        reference: ordinary prompts, at least 20, other than `others`: their median becomes the target of
            wen, low-noise-norm, han-sample and anisotropy where none is given; without it, targets are those published
            for other models.
        heldout: images that no training saw, to calibrate the threshold of a copy.
        settings: images per prompt, seed, sampling.
        matching: descriptor, statistic, false-positive rate of a copy.
        descriptor_options: of the descriptor's class.
        alignment: judges images against their prompts; None: alignment is not judged.
        pictures: the training images themselves, for a mitigation that keeps away from them (amg); `train` by default,
            unless that is an index, which holds none.
        retry_errors: make images again that ended in an error.
        shard: (i, n): only this part of the prompts, without a summary; the call without it finishes.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        The run: its arms are "none" and one per setting, `run.summary.rows` compares them.

    Raises:
        UsageError: no prompts to mitigate, a method twice.

    Cost: (1 + settings) x prompts x images, each with the mitigation's own evaluations on top; the rows say how many.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
        >>> digits = dm.Target.from_pretrained("testbed:digits", device="cpu")  # a small model that comes with diffmem
        >>> few = dm.experiments.Generation(images_per_prompt=2, sampling=dm.Sampling(steps=2))
        >>> run = dm.mitigate(digits, ["a seven"], ["random-tokens:count=2"], images, out="runs/mitigate", settings=few)
        >>> [row["setting"] for row in run.summary.rows]
        ['none', 'random-tokens:count=2']
    """
    silent = is_silent(silent)
    listed = _sides(as_prompts(prompts), None if others is None else as_prompts(others))
    settings = settings or Generation()
    known = pictures if pictures is not None else None if isinstance(train, CopyIndex) else train
    made = [one.with_images(known) for one in parse_mitigations(methods)]
    if reference is not None:
        ordinary = as_prompts(reference)
        made = [_on_reference(one, target, ordinary, settings.sampling) for one in made]
    labels = [one.label for one in made]
    if len(set(labels)) != len(labels):
        raise UsageError(
            f"A mitigation is given twice: {', '.join(sorted({x for x in labels if labels.count(x) > 1}))}."
        )
    copies = Reference.of(train, heldout, matching, descriptor_options, silent)
    experiment = MitigateExperiment(target, listed, made, settings, copies, alignment)
    return run_experiment(experiment, out, Options(retry_errors, silent, shard))


@dataclass
class MitigateExperiment(Experiment[MitigateSummary]):
    """One arm without mitigation, then one per setting."""

    target: Target
    prompts: PromptList
    mitigations: Sequence[Mitigation]
    settings: Generation
    reference: Reference | None
    judge: TextAlignment | None

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Settings and mitigations may be added; the model may not change."""
        plan = {"generate": self.settings.model_dump(mode="json"), "mitigate": {}}
        return plan, {"model": self.target.fingerprint, "prompts": self.prompts.fingerprint}

    def arms(self, results: Results) -> Iterator[Arm]:
        """`plain/` and one folder per setting in `settings/`."""
        yield self._arm(NONE, PLAIN, None)
        for one in self.mitigations:
            key = row_key(label=one.label, version=one.version).hex()[:8]
            yield self._arm(one.label, f"{SETTINGS}/{one.name}-{key}", one)

    def _arm(self, name: str, place: str, mitigation: Mitigation | None) -> Arm:
        about = None if mitigation is None else [mitigation.label, mitigation.version]
        return Arm(
            name, lambda: self.target, self.prompts.prompts, self.settings, place, {"mitigate": {"mitigation": about}},
            () if mitigation is None else (mitigation,), fingerprints={"prompts": self.prompts.fingerprint},
        )  # fmt: skip

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> MitigateSummary:
        """One row per arm, each compared with the one without mitigation."""
        plain = results[NONE]
        rows = [self._row(plain, plain)] + [self._row(plain, one) for name, one in results.items() if name != NONE]
        judged = None if self.judge is None else self.judge.name
        return MitigateSummary(
            verdict=self._verdict(rows, results), headline=headline(rows), arms=arms, model=self.target.name,
            alignment=judged, rows=tuple(rows),
            limits=tuple(self._limits(judged)),
        )  # fmt: skip

    def _verdict(self, rows: Sequence[Mapping[str, Any]], results: Results) -> FoundVerdict | None:
        best, plain = best_of(rows), results[NONE]
        if best is None or plain.table is None or plain.made is None:
            return None
        table = results[best["setting"]].table
        assert table is not None
        fact = read_fact(plain.made.run.path, "copies") or {}
        return verdict_of(best["setting"], table, self.prompts.prompts, fact.get("threshold"), plain.table)

    def _row(self, before: ArmResult, after: ArmResult) -> dict[str, Any]:
        mitigation = after.arm.mitigations[0].name if after.arm.mitigations else NONE
        if before.table is None or after.table is None or self.reference is None:
            return {"method": mitigation, "setting": after.arm.name, "status": after.status, "reason": after.reason}
        row = compare_arms(
            mitigation, after.arm.name, before.table, after.table, self.prompts.prompts, self.reference.index
        )
        return row | dict(after.cost or {})

    def _limits(self, judged: str | None) -> list[str]:
        limits = [
            "Shares are of these prompts, this sampler and these noises; prompts that nobody listed are not in them.",
            "A mitigation may trade a copy of one image for a copy of another, or for an image nobody wants: look at the "
            "strips.",
            "Nothing judged text alignment (--text-alignment)."
            if judged is None
            else f"Alignment is judged by {judged}.",
        ]
        if not any(prompt.group == OTHER for prompt in self.prompts):
            limits.append("No other prompts were given (--others), so side effects are not known.")
        return limits


def _sides(prompts: PromptList, others: PromptList | None) -> PromptList:
    """One list whose groups say which side a prompt is on; ids are made unique, texts stay, and with them all noises."""
    sides: list[tuple[str, Prompt]] = [(OTHER if p.label is False and others is None else "", p) for p in prompts]
    sides += [(OTHER, p) for p in others or ()]
    if not any(side != OTHER for side, _ in sides):
        raise UsageError("None of the prompts is to be mitigated: all of them are labelled as not memorized.")
    rows = [
        Prompt(f"{side or 'prompt'}/{p.id}", p.text, p.label, side or None, p.extra, p.problem) for side, p in sides
    ]
    return PromptList(tuple(rows), prompts.source)


def _on_reference(mitigation: Mitigation, target: Target, reference: PromptList, sampling: Sampling) -> Mitigation:
    """The mitigation with the median of ordinary prompts as its target, if it needs a target and none was given."""
    if not mitigation.has_open_target:
        return mitigation
    try:
        texts = [prompt.text for prompt in reference if prompt.problem is None]
        return calibrated(mitigation, target.need_denoiser(), texts, steps=steps_of(target.pipeline, sampling))
    except MitigationRefused:
        return mitigation  # its row will say why
