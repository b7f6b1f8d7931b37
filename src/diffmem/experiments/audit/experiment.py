"""An audit as an experiment: one arm, scored before its images are made and measured after they are matched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffmem.copies.descriptors import make_descriptor
from diffmem.data.images import ImageSet
from diffmem.data.prompts import PromptList
from diffmem.errors import ScoreRefused
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Arm, Options, Reference
from diffmem.experiments._experiment import Experiment, Results
from diffmem.experiments.audit.gallery import compare_with_gallery
from diffmem.experiments.audit.measure import measure_matched
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.report.digest import build_digest
from diffmem.report.pictures import write_pictures
from diffmem.report.shape import Digest
from diffmem.runs.directory import RunDirectory, usable
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.looks import plan_run, record_look
from diffmem.runs.summary import ArmPlace
from diffmem.scores.base import Score
from diffmem.scores.image.base import ImageScore
from diffmem.stages.fit import fit_once
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import Matching, agreement_stage
from diffmem.stages.measure.stage import MeasureResult
from diffmem.stages.score.rows import Scoring
from diffmem.stages.score.score import Scorer, ScoreResult

if TYPE_CHECKING:
    from diffmem.experiments.audit.control import Budget

ARM = "audit"


@dataclass(frozen=True)
class Finished:
    """What comes after matching: sheets of pairs that were written, and the measures."""

    pictures: list[Path] = field(default_factory=list)
    measured: MeasureResult | None = None


@dataclass
class AuditExperiment(Experiment[Digest]):
    """One arm, scored before its images are made and measured after they are matched."""

    open: Callable[[], Target]
    prompts: PromptList
    scores: Sequence[Score]
    scoring: Scoring
    generation: Generation
    matching: Matching
    descriptor_options: Mapping[str, Any]
    reference: Reference | None
    judge: TextAlignment | None = None
    measure: Sequence[ImageScore] = ()
    measure_images: int = 64
    options: Options = field(default_factory=Options)
    name: str = ARM
    place: str = ""
    gallery: ImageSet | None = None
    control: bool = False
    looks: Mapping[int, float] = field(default_factory=dict)

    describes: ClassVar[bool] = False

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Of experiments that audit several models."""
        return {}, {"prompts": self.prompts.fingerprint}

    def arms(self, results: Results) -> Iterator[Arm]:
        """The only one."""
        yield self.arm()

    def arm(self) -> Arm:
        """The audit as an arm."""
        section = {
            "score": self.scoring.model_dump(mode="json"), "match": self.matching.model_dump(mode="json"),
        }  # fmt: skip
        return Arm(
            self.name, self.open, self.prompts.prompts, self.generation, self.place, section,
            fingerprints={"prompts": self.prompts.fingerprint}, reference=self.reference, before=self._score, after=self._finish,
        )  # fmt: skip

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> Digest:
        """The digest of the run's rows."""
        made = results[self.name].made
        assert made is not None
        return build_digest(made.run.path)

    def _budget(self, target: Target) -> Budget:
        from diffmem.experiments.audit.control import budget, require_trainable  # they import the training loop

        require_trainable(target)
        return budget(target, self.generation.images_per_prompt * len(usable(self.prompts)), self.generation)

    def _score(self, run: RunDirectory, target: Target) -> ScoreResult:
        if self.control:
            self._budget(target)  # refuses before any work
        if self.looks:
            plan_run(run.path, self.looks)
        check_once(target, self.prompts, self.generation.sampling, run)
        train = None if self.reference is None else self.reference.train
        fit = fit_once(target, train if isinstance(train, ImageSet) else None, run)
        scorer = Scorer(target, self.prompts, list(self.scores), self.scoring, run)
        result = scorer.score(self.options.shard, self.options.retry_errors, self.options.silent, self.options.runner)
        result.notes += fit
        if not target.can_generate:
            result.notes.append("this model cannot generate images, so nothing could be matched")
        return result

    def _finish(self, run: RunDirectory, target: Target) -> Finished:
        """Agreement of each prompt's images, sheets of pairs, and the measures of training images."""
        if not target.can_generate:
            return Finished()
        if self.reference is None:
            descriptor = make_descriptor(self.matching.descriptor, None, **self.descriptor_options)
            write_fact(run.path, "copies", {"threshold": None, "descriptor": {"name": descriptor.name}, "problems": {}})
            agreement_stage(run, descriptor)
            return Finished()
        index = self.reference.index_in(run.path)
        if self.options.shard is None:
            record_look(run.path, self.generation.images_per_prompt)
        if index.descriptor is not None:
            agreement_stage(run, index.descriptor)
        if self.gallery is not None:
            compare_with_gallery(run.path, index, self.gallery, self.options.silent)
        if self.control and isinstance(self.reference.train, ImageSet):
            from diffmem.experiments.audit.control import run_control

            run_control(
                target,
                run.path,
                self.reference.train,
                index,
                self._budget(target),
                self.generation,
                self.options.silent,
            )
        pictures = write_pictures(run.path)
        if not self.measure or not isinstance(self.reference.train, ImageSet):
            return Finished(pictures)
        try:
            measured = measure_matched(
                target, run.path, self.reference.train, index, self.reference.heldout, self.measure, self.measure_images,
                self.scoring.seed, self.options.retry_errors, self.options.silent,
            )  # fmt: skip
        except ScoreRefused:  # the run keeps the reasons; what was found before it stands
            return Finished(pictures)
        return Finished(pictures, measured)


def check_once(target: Target, prompts: PromptList, sampling: Sampling, run: RunDirectory) -> None:
    """Compare our view with the pipeline's network once per run."""
    if (target.pipeline is None and not target.is_function) or read_fact(run.path, "check") is not None:
        return
    sound = usable(prompts)
    result = target.require_check(sampling, sound[0].text if sound else None)
    if result is not None and result.passed is not None:  # of a network of one's own, `fit_once` says what images show
        write_fact(run.path, "check", result.as_dict())
