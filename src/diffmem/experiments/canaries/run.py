"""How strongly a trained model reproduces registered canaries, as a function of how often it saw them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffmem.copies.descriptors import PIXEL_DESCRIPTOR, make_descriptor
from diffmem.copies.descriptors.base import Descriptor
from diffmem.data.canaries import Registration, read_registration
from diffmem.data.images import as_images
from diffmem.data.prompts import Prompt
from diffmem.errors import UsageError
from diffmem.evaluation.clusters import Floats
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Arm, Made, Options, Reference
from diffmem.experiments._experiment import Experiment, Results, run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.canaries.bound import bounds_of
from diffmem.experiments.canaries.images import by_caption, by_sampling, described
from diffmem.experiments.canaries.page import headline
from diffmem.experiments.canaries.statistics import DETECTED, CanaryMeasure, summarize
from diffmem.experiments.canaries.summary import CanariesSummary, ClosestImage
from diffmem.models.target import Target
from diffmem.notebook import is_silent
from diffmem.runs.directory import RunDirectory
from diffmem.runs.summary import ArmPlace
from diffmem.scores.image.base import ImageScore
from diffmem.scores.spec import parse_image_scores
from diffmem.stages.generate import Generation
from diffmem.stages.measure.measure import measure

SAMPLED, ARM = "unconditional sample", "canaries"


def measure_canaries(
    target: Target,
    registration: Registration | str | Path,
    settings: Generation | None = None,
    *,
    out: str | Path | None = None,
    scores: Sequence[str] = ("loss",),
    descriptor: str = PIXEL_DESCRIPTOR,
    descriptor_options: Mapping[str, Any] | None = None,
    trained_with: str | None = None,
    retry_errors: bool = False,
    shard: tuple[int, int] | None = None,
    silent: bool | None = None,
) -> Run:
    """Measure how strongly each canary is reproduced, against negative controls of the same process.

    A model with prompts makes K images under each canary's and each control's caption; strength is how much more they are
    like their own picture than like those of the controls. A model without prompts makes K images per registered
    picture; strength is the greatest similarity that any has with it. Image scores look at the pictures themselves.

    Args:
        target: the trained model.
        registration: what `diffmem canaries make` wrote before training.
        settings: images per caption, seed, sampling.
        out: run directory; the same call goes on where it left.
        scores: image scores to measure with, too; empty for none.
        descriptor: how images are compared.
        descriptor_options: of the descriptor's class.
        trained_with: hash of the registration that the training recorded, if it did.
        retry_errors: make images and measures again that ended in an error.
        shard: (i, n): only this part of the images, without a summary; the call without it finishes, and measures.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        The run; `run.summary.measures` has one entry per way of measuring.

    Raises:
        DataError: a registration that was changed, or whose pictures are gone.
        UsageError: fewer than two controls, or a model that makes no images and no scores.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> from pathlib import Path
        >>> from diffmem.training.canaries import CanaryPlan, draw_canaries
        >>> from diffmem.training.canary_files import write_canaries
        >>> drawn = draw_canaries(images, CanaryPlan(counts=(1, 2), per_count=2, controls=4))
        >>> registration = write_canaries(drawn, images, Path("canaries"))  # what `diffmem canaries make` does
        >>> run = dm.canaries(network, registration, scores=["loss"], out="runs/canaries")
        >>> [measured["name"] for measured in run.summary.measures]
        ['sampling', 'loss']
    """
    silent = is_silent(silent)
    known = registration if isinstance(registration, Registration) else read_registration(registration)
    if len(known.controls) < 2 or not known.trained:
        raise UsageError(
            f"The registration has {len(known.trained)} canaries and {len(known.controls)} controls; expected at least one "
            "and two."
        )
    wanted = parse_image_scores(scores)
    if not target.can_generate and not wanted:
        raise UsageError("This model makes no images: name an image score that it can be measured with (--score loss).")
    maker = make_descriptor(descriptor, as_images(known.pictures()), **(descriptor_options or {}))
    experiment = CanariesExperiment(
        target, known, settings or Generation(images_per_prompt=8), maker, wanted, Options(retry_errors, silent, shard),
        _about(known, trained_with),
    )  # fmt: skip
    return run_experiment(experiment, out, experiment.options)


@dataclass
class CanariesExperiment(Experiment[CanariesSummary]):
    """One arm whose images are compared with the registered pictures.

    Attributes:
        notes: what a reader must know; stages add theirs.
        blind: measure -> strengths of the canaries with a coin, computed without knowledge of the coins.
    """

    target: Target
    known: Registration
    settings: Generation
    maker: Descriptor
    scores: Sequence[ImageScore]
    options: Options
    notes: list[str] = field(default_factory=list)
    blind: dict[str, Floats] = field(default_factory=dict)
    reference: Reference | None = None
    judge: TextAlignment | None = None

    describes: ClassVar[bool] = False

    @property
    def conditional(self) -> bool:
        """Whether the model takes captions."""
        return self.target.denoiser is None or self.target.denoiser.conditional

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """The arm has no folder of its own."""
        return {}, {}

    def arms(self, results: Results) -> Iterator[Arm]:
        """Images under every caption; without prompts, as many samples for all."""
        work = None
        prompts = [Prompt(canary.id, canary.caption) for canary in self.known.canaries]
        if not self.conditional:
            prompts = [Prompt(SAMPLED, SAMPLED)]
            work = [(prompts[0], draw) for draw in range(self.settings.images_per_prompt * len(self.known.canaries))]
        yield Arm(
            ARM, lambda: self.target, prompts, self.settings, section={"canaries": {"descriptor": self.maker.recipe}},
            work=work, fingerprints={"prompts": self.known.hash}, after=self._measured,
        )  # fmt: skip

    def _measured(self, run: RunDirectory, target: Target) -> list[CanaryMeasure]:
        """The registered pictures by every image score."""
        measures = []
        for score in self.scores:
            found = measure(
                target, as_images(self.known.place), [score], out=run.path, seed=self.settings.seed,
                batch=self.settings.batch, retry_errors=self.options.retry_errors, silent=self.options.silent,
            )  # fmt: skip
            values = found.evidence(score.label)
            column = np.array([values.get(f"{canary.id}.png", np.nan) for canary in self.known.canaries])
            self.blind[score.label] = column[list(self.known.coins)]
            unit = "evidence of the score, higher = more memorized"
            measures.append(_of_column(score.label, unit, self.known, column))
            self.notes += [note for note in found.notes if note not in self.notes]
        return measures

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> CanariesSummary:
        """Every measure, generation first."""
        made = results[ARM].made
        assert made is not None
        measures: list[CanaryMeasure] = []
        closest: list[ClosestImage] = []
        if made.generation is not None:
            generated, closest = self._generated(made)
            measures.append(generated)
        measures += made.after
        known, values = self.known, [one.as_dict() for one in measures]
        return CanariesSummary(
            headline=headline(values[0]), arms=arms, notes=tuple(dict.fromkeys(self.notes)), model=self.target.name,
            registration=known.hash, created=known.created,
            place=str(known.folder or known.place.parent), canaries=len(known.trained),
            controls=len(known.controls), other_images=int(known.facts["images"]),
            bounds=bounds_of(known, self.blind),
            exposure_at_most=float(np.log2(len(known.controls) + 1)), measures=tuple(values), closest=tuple(closest),
            limits=(
                "How strongly the model memorizes other pictures: canaries are unlike them, and a picture that looks like "
                "many is learned otherwise.",
            ),
        )  # fmt: skip

    def _generated(self, made: Made) -> tuple[CanaryMeasure, list[ClosestImage]]:
        known, denoiser = self.known, self.target.denoiser
        assert made.generation is not None
        if denoiser is not None and self.conditional:
            encoded = denoiser.encode_prompts([canary.caption for canary in known.canaries])
            if cut := sum(bool(text) for text in encoded.truncated):
                self.notes.append(
                    f"{cut} of {len(known.canaries)} captions are longer than the text encoder reads and were cut (in the "
                    "training too): shorter ones tell canaries apart better (--words dataset)"
                )
        self.notes += made.generation.notes
        prompts = [canary.id for canary in known.canaries] if self.conditional else [SAMPLED]
        similar = described(made.run.store, self.maker, known, prompts)
        if similar.set_aside:
            self.notes.append(f"{similar.set_aside} images were set aside: failed, black or constant")
        of = {canary.id: canary for canary in known.canaries}
        closest = [
            ClosestImage(
                id=name, caption=of[name].caption, count=of[name].count, control=of[name].control, prompt_id=prompt, draw=draw,
                similarity=similarity,
            )
            for name, (prompt, draw, similarity) in similar.closest(known, own=self.conditional).items()
        ]  # fmt: skip
        closest.sort(key=lambda one: -one.similarity)
        if self.conditional:
            found = by_caption(similar, known)
            self.blind["generation"] = found.among(known.coins)
            unit = "similarity with the own picture minus mean similarity with the controls' (0: no trace)"
            against = found.values, found.against, found.shares
            return summarize("generation", unit, known.canaries, *against, self.settings.seed), closest
        values, shares = by_sampling(similar, known)
        self.blind["sampling"] = values[list(known.coins)]
        unit = f"greatest similarity of any of {similar.images} samples with the picture"
        return _of_column("sampling", unit, known, values, shares, self.settings.seed), closest


def _of_column(
    name: str, unit: str, known: Registration, values: Floats, shares: Any = None, seed: int = 0
) -> CanaryMeasure:
    """A measure whose strengths do not depend on which canaries are compared."""
    controls = [i for i, canary in enumerate(known.canaries) if canary.control and np.isfinite(values[i])]
    return summarize(
        name, unit, known.canaries, values, lambda members: values[[*members, *controls]], shares, seed
    )  # fmt: skip


def _about(known: Registration, trained_with: str | None) -> list[str]:
    notes = []
    if (least := 1 / (len(known.controls) + 1)) > DETECTED:
        notes.append(
            f"{len(known.controls)} controls give p-values of at least {least:.1%}: no canary can be called detected at "
            f"{DETECTED:.0%}; register 19 or more"
        )
    if trained_with is None:
        found = (
            "no training log beside this model names a registration: that it was made before the training rests on the "
            "dates alone"
        )
    elif trained_with != known.hash:
        found = f"the training recorded another registration ({trained_with}) than this one ({known.hash})"
    else:
        found = f"the training recorded this registration ({known.hash}) when it began"
    return [found, *notes]
