"""The whole audit: check, score, generate, match; every stage resumes where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffmem.copies.descriptors import make_descriptor
from diffmem.data.images import ImageSet, load_images
from diffmem.data.prompts import PromptList, load_prompts
from diffmem.errors import UsageError
from diffmem.experiments.audit.measure import measure_matched
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.report.html import write_report
from diffmem.report.pictures import write_pictures
from diffmem.report.redaction import Redaction
from diffmem.report.summary import summarize
from diffmem.runs.directory import RunDirectory, record_model, usable
from diffmem.runs.facts import read_fact, write_fact
from diffmem.scores import DEFAULT_SCORES
from diffmem.scores.base import Score
from diffmem.scores.image.base import ImageScore
from diffmem.scores.spec import parse_image_scores, parse_scores
from diffmem.stages.generate import Generation, GenerationResult, generate_stage
from diffmem.stages.match.stage import Matching, MatchResult, agreement_stage, build_index, match_stage
from diffmem.stages.score.rows import Scoring
from diffmem.stages.score.score import Scorer, ScoreResult


@dataclass
class AuditRun:
    """A finished audit.

    Attributes:
        path: its run directory (temporary if none was given; it lives as long as this object).
        scoring, generation, matching: what each stage did in this call.
        pictures: sheets of pairs that were written.
        report: the report as one HTML file; `digest.json` lies beside it.
    """

    run: RunDirectory
    scoring: ScoreResult
    generation: GenerationResult | None = None
    matching: MatchResult | None = None
    pictures: list[Path] = field(default_factory=list)
    report: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.run.path

    def summary(self) -> dict[str, Any]:
        """What was found, as plain values; the same that `diffmem show` prints."""
        return summarize(self.run.path)


def audit(
    target: Target,
    prompts: PromptList | str | Path | Sequence[str],
    train: ImageSet | str | Path | None = None,
    *,
    heldout: ImageSet | str | Path | None = None,
    out: str | Path | None = None,
    scores: Sequence[str | Score] = DEFAULT_SCORES,
    draws: int = 4,
    images: int = 4,
    seed: int = 0,
    noise: Literal["bank", "per-prompt"] = "bank",
    sampling: Sampling | None = None,
    descriptor: str = "l2-tiled",
    descriptor_options: Mapping[str, Any] | None = None,
    matching: Matching | None = None,
    micro_batch: int = 64,
    batch: int = 32,
    retry_errors: bool = False,
    measure: Sequence[str | ImageScore] = (),
    measure_images: int = 64,
    redact: Redaction = "none",
    silent: bool = True,
) -> AuditRun:
    """Audit a model: does it reproduce its training images from these prompts?

    Checks that scoring sees the pipeline's network, scores the prompts from pure noise, generates `images` per prompt,
    finds each image's nearest training image, and calls it a copy at a threshold calibrated at a stated
    false-positive rate. Without a training set it scores, generates and measures how much a prompt's images agree.

    Args:
        target: the model.
        prompts: a list of prompts, a file, or a PromptList.
        train: training images (folder, parquet, ImageSet); None if there are none to search.
        heldout: images like the training set's that no training has seen, for calibration.
        out: run directory; the same call resumes it.
        scores: names or Score objects.
        draws: noises per prompt for scoring.
        images: images per prompt.
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

    Raises:
        UsageError: held-out images without a training set.
        IncompatibleRun: `out` belongs to another model or plan.
    """
    if train is None and heldout is not None:
        raise UsageError("Held-out images calibrate the search of a training set; give the training set too (--train).")
    if measure and train is None:
        raise UsageError("Images are measured among the training images; give them too (--train).")
    listed = prompts if isinstance(prompts, PromptList) else load_prompts(prompts)
    train_set = None if train is None else train if isinstance(train, ImageSet) else load_images(train)
    held = None if heldout is None else heldout if isinstance(heldout, ImageSet) else load_images(heldout)
    parsed = parse_scores(scores)
    wanted = parse_image_scores(measure)
    scoring = Scoring(
        scores=tuple(s.label for s in parsed), draws=draws, seed=seed, noise=noise, micro_batch=micro_batch
    )
    generation = Generation(draws=images, seed=seed, batch=batch, sampling=sampling or Sampling())
    judged = (matching or Matching()).model_copy(update={"descriptor": descriptor})
    run = RunDirectory(
        out,
        {"score": scoring.model_dump(mode="json"), "generate": generation.model_dump(mode="json"),
         "match": judged.model_dump(mode="json")},
        {"model": target.fingerprint, "prompts": listed.fingerprint},
    )  # fmt: skip
    record_model(target, run.path)
    _check(target, listed, generation.sampling, run)
    result = AuditRun(run, Scorer(target, listed, parsed, scoring, run).score(None, retry_errors, silent))
    if target.can_generate:
        result.generation = generate_stage(target, listed, generation, run, None, retry_errors, silent)
        describe = make_descriptor(descriptor, train_set, **(descriptor_options or {}))
        agreement_stage(run, describe)
        if train_set is None:
            write_fact(run.path, "copies", {"threshold": None, "descriptor": {"name": describe.name}, "problems": {}})
        else:
            index = build_index(train_set, describe, run.path / "index" / describe.name, silent)
            result.matching = match_stage(run, judged, index, held, images, silent)
            result.pictures = write_pictures(run.path)
            if wanted:
                measured = measure_matched(
                    target, run.path, train_set, held, wanted, measure_images, seed, retry_errors, silent
                )
                result.notes += measured.notes
    else:
        result.notes.append("this model cannot generate images, so nothing could be matched")
    result.report = write_report(run.path, redact)
    return result


def _check(target: Target, prompts: PromptList, sampling: Sampling, run: RunDirectory) -> None:
    """Compare our view with the pipeline's network once per run."""
    if target.pipeline is None or read_fact(run.path, "check") is not None:
        return
    sound = usable(prompts)
    few = sampling.model_copy(update={"steps": min(sampling.steps or 4, 4)})
    result = target.check(sound[0].text if sound else "a photograph", few)
    write_fact(run.path, "check", result.as_dict())
