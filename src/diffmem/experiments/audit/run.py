"""The whole audit: check, score, generate, match, measure; every stage resumes where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet, as_images
from diffmem.data.prompts import PromptList, as_prompts
from diffmem.errors import UsageError
from diffmem.evaluation.looks import spending_levels
from diffmem.experiments._arm import Options, Reference
from diffmem.experiments._experiment import run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.against.run import audit_against
from diffmem.experiments.audit.experiment import AuditExperiment
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.notebook import is_silent
from diffmem.renamed import renamed
from diffmem.report.redaction import Redaction
from diffmem.report.shape import Digest
from diffmem.runs.runners import require_folder
from diffmem.runs.units import Runner
from diffmem.scores import DEFAULT_SCORES
from diffmem.scores.base import Score
from diffmem.scores.image.base import ImageScore
from diffmem.scores.spec import parse_image_scores, parse_scores
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import Matching, training_of
from diffmem.stages.samples import prompts_or_samples
from diffmem.stages.score.rows import Scoring


@renamed(images="images_per_prompt")
def audit(
    target: Target | Callable[[], Target],
    prompts: PromptList | str | Path | Sequence[str] | None = None,
    train: ImageSet | CopyIndex | str | Path | None = None,
    *,
    heldout: ImageSet | str | Path | None = None,
    gallery: ImageSet | str | Path | None = None,
    base: Target | Callable[[], Target] | None = None,
    out: str | Path | None = None,
    scores: str | Score | Sequence[str | Score] = DEFAULT_SCORES,
    draws: int = 4,
    images_per_prompt: int | None = None,
    samples: int | None = None,
    looks: Sequence[int] = (),
    seed: int = 0,
    noise: Literal["bank", "per-prompt"] = "bank",
    sampling: Sampling | None = None,
    descriptor: str | None = None,
    descriptor_options: Mapping[str, Any] | None = None,
    matching: Matching | None = None,
    micro_batch: int = 64,
    batch: int = 32,
    retry_errors: bool = False,
    measure: str | ImageScore | Sequence[str | ImageScore] = (),
    measure_images: int = 64,
    control: bool = False,
    shard: tuple[int, int] | None = None,
    runner: Runner | str | None = None,
    redact: Redaction = "none",
    silent: bool | None = None,
) -> Run:
    """Audit a model: does it reproduce its training images from these prompts?

    Checks that scoring sees the pipeline's network, scores the prompts from pure noise, generates `images_per_prompt` of each,
    finds each image's nearest training image, and calls it a copy at a threshold calibrated at a stated
    false-positive rate. Without a training set it scores, generates and measures how much a prompt's images agree.

    Args:
        target: the model, or a function that opens it when its turn comes.
        prompts: a list of prompts, a file, or a PromptList; None for a model that takes none.
        train: training images (folder, parquet, ImageSet), or an index of them; None if there are none to search.
        heldout: images like the training set's that no training has seen, for calibration.
        gallery: such images, best as many as there are training images: what the generated images seem to copy there is
            chance, and the verdict counts what goes beyond it.
        base: the model that `target` was fine-tuned from, or a function that opens it: both are audited, in `out/base` and
            `out/lora`, and the summary says what the fine-tune leaks and its base does not.
        out: run directory; the same call resumes it.
        scores: names or Score objects.
        draws: noises per prompt for scoring.
        images_per_prompt: how many are generated of each; by default 4, and 1 of each of `samples`.
        samples: for a model that takes no prompts: how many images to make.
        looks: images per prompt at each of several looks, such as (2, 4, 8), in place of `images_per_prompt`: the audit ends at
            the first look that says `reproduces`. Each spends its share of the error of a single look, so that looking
            again finds nothing by chance (see `evaluation.looks.spending_levels`). More images without a plan cannot make a
            verdict `reproduces` by a rate.
        seed: root seed.
        noise: scoring noise, common to all prompts or per prompt.
        sampling: steps, guidance, scheduler, size of the images.
        descriptor: how images are compared; default: as `matching` says.
        descriptor_options: of the descriptor's class (`weights`, `sha256`, `preset`, ...).
        matching: descriptor, statistic and false-positive rate.
        micro_batch: rows per network call when scoring.
        batch: images per pipeline call.
        retry_errors: compute rows again that ended in an error.
        measure: image scores to run on training images: those that were copied, and as many others for comparison.
        measure_images: how many of either kind at most (and of held-out images).
        control: plant 40 drawn pictures in a copy of the model by a short LoRA, and see how many of them this audit finds; at
            most a quarter of what the audit's images cost.
        shard: (i, n): only this part of the prompts, without a report; n processes share `out`, and the call without it
            finishes.
        runner: who scores and generates, see `score`.
        redact: what becomes of images in the report, which republishes training images otherwise.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        The run; what each stage did in this call lies in `run.results["audit"].made` (with a base: "base" and "lora").

    Raises:
        UsageError: held-out images without a training set; neither prompts nor samples, or the wrong one for the model; a
            control of too small an audit.
        ModelError: `target` and `base` are the same model; a control of a model that cannot be fine-tuned.
        IncompatibleRun: `out` belongs to another model or plan.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> run = dm.audit(network, samples=4, train=images[:10], heldout=images[10:], out="runs/audit")
        >>> run.summary.copies.images_copied
        0
    """
    silent = is_silent(silent)
    if looks and (
        images_per_prompt is not None or samples is not None or base is not None or shard is not None or train is None
    ):
        raise UsageError(
            "Looks say how many images each prompt gets, and end where copies are found: give a training set, and leave "
            "images_per_prompt, samples, base and shard out."
        )
    levels = dict(zip(looks, spending_levels(looks), strict=True)) if looks else {}
    if base is not None and (gallery is not None or samples is not None or control):
        raise UsageError(
            "With a base the base is the control, and both models are given prompts: leave gallery, samples and control out."
        )
    if train is None and gallery is not None:
        raise UsageError(
            "A gallery is compared with the search of a training set; give the training set too (--train)."
        )
    if train is None and heldout is not None:
        raise UsageError("Held-out images calibrate the search of a training set; give the training set too (--train).")
    if measure and train is None:
        raise UsageError("Images are measured among the training images; give them too (--train).")
    known = None if train is None else training_of(train, descriptor_options)
    if measure and isinstance(known, CopyIndex):
        raise UsageError("An index holds no pictures to measure; give the training images themselves (--train).")
    if control and not isinstance(known, ImageSet):
        raise UsageError(
            "The control plants pictures like the training images and looks for them among these: give the images (--train)"
            f"{', not an index of them' if known is not None else ''}."
        )
    if base is None:
        target = target if isinstance(target, Target) else target()
        listed = prompts_or_samples(target, prompts, samples)
    elif prompts is None:
        raise UsageError("A model and its base are compared on the same prompts: give them.")
    else:
        listed = as_prompts(prompts)
    parsed = parse_scores(() if samples is not None and scores is DEFAULT_SCORES else scores)
    judged = matching or Matching()
    if descriptor is not None:
        judged = judged.model_copy(update={"descriptor": descriptor})
    reference = None if known is None else Reference.of(known, heldout, judged, descriptor_options, silent)
    experiment = AuditExperiment(
        _opener(target), listed, parsed,
        Scoring(scores=tuple(s.label for s in parsed), draws=draws, seed=seed, noise=noise, micro_batch=micro_batch),
        Generation(
            images_per_prompt=looks[0] if looks else images_per_prompt or (4 if samples is None else 1), seed=seed,
            batch=batch, sampling=sampling or Sampling()
        ),
        judged if reference is None else reference.matching, dict(descriptor_options or {}), reference,
        measure=parse_image_scores(measure), measure_images=measure_images,
        options=Options(retry_errors, silent, shard, require_folder(runner, out)),
        gallery=None if gallery is None else as_images(gallery), control=control and len(looks) < 2, looks=levels,
    )  # fmt: skip
    if base is not None:
        return audit_against(experiment, _opener(base), out, redact)
    run = run_experiment(experiment, out, experiment.options)
    for images in looks[1:]:
        summary = run.summary
        assert isinstance(summary, Digest)
        if summary.verdict.state == "reproduces":
            break
        again = experiment.generation.model_copy(update={"images_per_prompt": images})
        last = replace(experiment, generation=again, control=control and images == looks[-1])
        run = run_experiment(last, run.path, experiment.options)
    if shard is None:
        run.report(redact)
    return run


def _opener(model: Target | Callable[[], Target]) -> Callable[[], Target]:
    return (lambda: model) if isinstance(model, Target) else model
