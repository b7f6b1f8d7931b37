"""The whole audit: check, score, generate, match, measure; every stage resumes where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from diffmem.copies.descriptors import DEFAULT_DESCRIPTOR, make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet, as_images
from diffmem.data.prompts import PromptList, as_prompts
from diffmem.errors import ScoreRefused, UsageError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Arm, Options, Reference
from diffmem.experiments._experiment import Experiment, Results, run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.audit.gallery import compare_with_gallery
from diffmem.experiments.audit.measure import measure_matched
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.report.digest import build_digest
from diffmem.report.pictures import write_pictures
from diffmem.report.redaction import Redaction
from diffmem.report.shape import Digest
from diffmem.runs.directory import RunDirectory, usable
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.summary import ArmPlace
from diffmem.scores import DEFAULT_SCORES
from diffmem.scores.base import Score
from diffmem.scores.image.base import ImageScore
from diffmem.scores.spec import parse_image_scores, parse_scores
from diffmem.stages.fit import fit_once
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import Matching, agreement_stage, training_of
from diffmem.stages.measure.stage import MeasureResult
from diffmem.stages.samples import prompts_or_samples
from diffmem.stages.score.rows import Scoring
from diffmem.stages.score.score import Scorer, ScoreResult

ARM = "audit"


@dataclass(frozen=True)
class Finished:
    """What comes after matching: sheets of pairs that were written, and the measures."""

    pictures: list[Path] = field(default_factory=list)
    measured: MeasureResult | None = None


def audit(
    target: Target,
    prompts: PromptList | str | Path | Sequence[str] | None = None,
    train: ImageSet | CopyIndex | str | Path | None = None,
    *,
    heldout: ImageSet | str | Path | None = None,
    gallery: ImageSet | str | Path | None = None,
    out: str | Path | None = None,
    scores: str | Score | Sequence[str | Score] = DEFAULT_SCORES,
    draws: int = 4,
    images: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    noise: Literal["bank", "per-prompt"] = "bank",
    sampling: Sampling | None = None,
    descriptor: str = DEFAULT_DESCRIPTOR,
    descriptor_options: Mapping[str, Any] | None = None,
    matching: Matching | None = None,
    micro_batch: int = 64,
    batch: int = 32,
    retry_errors: bool = False,
    measure: str | ImageScore | Sequence[str | ImageScore] = (),
    measure_images: int = 64,
    redact: Redaction = "none",
    silent: bool = True,
) -> Run:
    """Audit a model: does it reproduce its training images from these prompts?

    Checks that scoring sees the pipeline's network, scores the prompts from pure noise, generates `images` per prompt,
    finds each image's nearest training image, and calls it a copy at a threshold calibrated at a stated
    false-positive rate. Without a training set it scores, generates and measures how much a prompt's images agree.

    Args:
        target: the model.
        prompts: a list of prompts, a file, or a PromptList; None for a model that takes none.
        train: training images (folder, parquet, ImageSet), or an index of them; None if there are none to search.
        heldout: images like the training set's that no training has seen, for calibration.
        gallery: such images, best as many as there are training images: what the generated images seem to copy there is
            chance, and the verdict counts what goes beyond it.
        out: run directory; the same call resumes it.
        scores: names or Score objects.
        draws: noises per prompt for scoring.
        images: images per prompt; by default 4, and 1 of each of `samples`.
        samples: for a model that takes no prompts: how many images to make.
        seed: root seed.
        noise: scoring noise, common to all prompts or per prompt.
        sampling: steps, guidance, scheduler, size of the images.
        descriptor: how images are compared.
        descriptor_options: of the descriptor's class (`weights`, `sha256`, `preset`, ...).
        matching: statistic and false-positive rate; its descriptor is replaced by `descriptor`.
        micro_batch: rows per network call when scoring.
        batch: images per pipeline call.
        retry_errors: compute rows again that ended in an error.
        measure: image scores to run on training images: those that were copied, and as many others for comparison.
        measure_images: how many of either kind at most (and of held-out images).
        redact: what becomes of images in the report, which republishes training images otherwise.
        silent: no progress on stderr.

    Returns:
        The run; what each stage did in this call lies in `run.results["audit"].made`.

    Raises:
        UsageError: held-out images without a training set; neither prompts nor samples, or the wrong one for the model.
        IncompatibleRun: `out` belongs to another model or plan.
    """
    listed = prompts_or_samples(target, prompts, samples)
    scores = () if samples is not None and scores is DEFAULT_SCORES else scores
    images = images or (4 if samples is None else 1)
    experiment = audit_experiment(
        lambda: target, listed, train, heldout=heldout, gallery=gallery, scores=scores,
        draws=draws, images=images, seed=seed, noise=noise,
        sampling=sampling, descriptor=descriptor, descriptor_options=descriptor_options, matching=matching,
        micro_batch=micro_batch, batch=batch, retry_errors=retry_errors, measure=measure, measure_images=measure_images,
        silent=silent,
    )  # fmt: skip
    run = run_experiment(experiment, out, experiment.options)
    run.report(redact)
    return run


def audit_experiment(
    open: Callable[[], Target],
    prompts: PromptList | str | Path | Sequence[str],
    train: ImageSet | CopyIndex | str | Path | None = None,
    *,
    heldout: ImageSet | str | Path | None = None,
    gallery: ImageSet | str | Path | None = None,
    scores: str | Score | Sequence[str | Score] = DEFAULT_SCORES,
    draws: int = 4,
    images: int = 4,
    seed: int = 0,
    noise: Literal["bank", "per-prompt"] = "bank",
    sampling: Sampling | None = None,
    descriptor: str = DEFAULT_DESCRIPTOR,
    descriptor_options: Mapping[str, Any] | None = None,
    matching: Matching | None = None,
    micro_batch: int = 64,
    batch: int = 32,
    retry_errors: bool = False,
    measure: str | ImageScore | Sequence[str | ImageScore] = (),
    measure_images: int = 64,
    silent: bool = True,
    name: str = ARM,
    place: str = "",
) -> AuditExperiment:
    """What `audit` does, not done yet: `open` gives the model, `name` and `place` are the arm's, all else is as in `audit`.

    Experiments of several audits take its arm.
    """
    if train is None and gallery is not None:
        raise UsageError(
            "A gallery is compared with the search of a training set; give the training set too (--train)."
        )
    if train is None and heldout is not None:
        raise UsageError("Held-out images calibrate the search of a training set; give the training set too (--train).")
    if measure and train is None:
        raise UsageError("Images are measured among the training images; give them too (--train).")
    train = None if train is None else training_of(train, descriptor_options)
    if measure and isinstance(train, CopyIndex):
        raise UsageError("An index holds no pictures to measure; give the training images themselves (--train).")
    generation = Generation(draws=images, seed=seed, batch=batch, sampling=sampling or Sampling())
    judged = (matching or Matching()).model_copy(update={"descriptor": descriptor})
    reference = None if train is None else Reference.of(train, heldout, judged, descriptor_options, silent)
    parsed = parse_scores(scores)
    return AuditExperiment(
        open, as_prompts(prompts), parsed,
        Scoring(scores=tuple(s.label for s in parsed), draws=draws, seed=seed, noise=noise, micro_batch=micro_batch),
        generation, judged if reference is None else reference.matching, dict(descriptor_options or {}),
        reference,
        measure=parse_image_scores(measure), measure_images=measure_images, options=Options(retry_errors, silent),
        name=name, place=place, gallery=None if gallery is None else as_images(gallery),
    )  # fmt: skip


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

    def _score(self, run: RunDirectory, target: Target) -> ScoreResult:
        check_once(target, self.prompts, self.generation.sampling, run)
        train = None if self.reference is None else self.reference.train
        fit = fit_once(target, train if isinstance(train, ImageSet) else None, run)
        scorer = Scorer(target, self.prompts, list(self.scores), self.scoring, run)
        result = scorer.score(None, self.options.retry_errors, self.options.silent)
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
        if index.descriptor is not None:
            agreement_stage(run, index.descriptor)
        if self.gallery is not None:
            compare_with_gallery(run.path, index, self.gallery, self.options.silent)
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
