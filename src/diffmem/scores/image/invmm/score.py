"""InvMM: many images inverted at once, each at its own step, out of the batch as soon as it passes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from diffmem.copies.descriptors import DESCRIPTORS, PIXEL_DESCRIPTOR, PUBLISHED_DESCRIPTOR
from diffmem.models.meter import Nfe
from diffmem.scores.base import About
from diffmem.scores.image.base import ImageItem, ImageResult, ImageScore, Workbench
from diffmem.scores.image.invmm.batch import Batch
from diffmem.scores.image.invmm.settings import InvMMParameters, settings_for
from diffmem.scores.image.invmm.similarity import SuccessTest, default_beta, descriptor_of, input_side

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser


class InvMM(ImageScore):
    """Inversion-based memorization measure."""

    about: ClassVar[About] = About(
        name="invmm",
        summary="least divergence from the prior at which the noise reproduces the image every time; 0 = the prior does",
        formula=(
            "KL(N(mu, diag sigma^2) || N(0, I)) / d = mean(mu^2 + sigma^2 - log sigma^2 - 1) / 2 at the first check at "
            "which all of 8 samples reach similarity beta; min E (x0_hat - x0)^2 + lambda KL; "
            "fast mode: bisected towards the prior; infinite where the search found none within its steps"
        ),
        reference="Ma et al., ICCV 2025, arXiv 2405.05846",
        access="gradients",
        cost="24 per step (8 forward, 8 backward counted twice) and the checks; at most 200 steps",
        fails_when=(
            "infinite means not found within the steps allowed, and a found value bounds the divergence from above; "
            "comparable only at equal beta, descriptor, guidance, sampler and step cap"
        ),
        unit="nats per dimension",
    )
    version: ClassVar[int] = 2
    high_means: ClassVar[Literal["more memorized", "less memorized"]] = "less memorized"
    settings: InvMMParameters

    @property
    def similarity(self) -> str:
        """The descriptor of the success test."""
        return self.settings.similarity or (PUBLISHED_DESCRIPTOR if self.settings.mode == "paper" else PIXEL_DESCRIPTOR)

    @property
    def beta(self) -> float:
        """The similarity that counts as reproduced."""
        return default_beta(self.similarity) if self.settings.beta is None else self.settings.beta

    def check(self, denoiser: Denoiser) -> None:
        """Refused where a prompt is asked for that the model cannot take, or epsilon says nothing at pure noise."""
        from diffmem.errors import ModelError, ScoreRefused

        settings = settings_for(denoiser, self.settings)
        published = DESCRIPTORS.get(self.similarity).published_with
        if self.settings.mode == "paper" and published and not self.settings.weights:
            raise ScoreRefused(
                f"{self.label} judges as the paper does, by {published} of {self.similarity}, and this file is not given: add "
                f"weights=FILE (and sha256=…), or similarity={PIXEL_DESCRIPTOR} for the published search with a success test "
                "that needs no file."
            )
        if self.settings.prompt in ("caption", "invert") and not denoiser.conditional:
            raise ScoreRefused(
                f"{self.label} asks for a prompt, and this model takes none: leave prompt={self.settings.prompt} out."
            )
        if settings.prompt == "null" and denoiser.conditional and not denoiser.unconditional_branch:
            raise ScoreRefused(
                f"{self.label} asks for the model without a prompt, and this model has no unconditional branch: measure "
                "with prompt=caption."
            )
        if settings.prompt == "invert":
            try:
                denoiser.soft_prompt()
            except ModelError as problem:
                raise ScoreRefused(f"{problem} Measure with prompt=caption or prompt=null instead.") from problem
        if denoiser.prediction in ("epsilon", "score") and denoiser.schedule.at(denoiser.schedule.t_max)[0] == 0:
            raise ScoreRefused(
                f"This model predicts {denoiser.prediction} on a schedule that ends at alpha = 0, where it says nothing "
                "of x0: InvMM has no loss there. Check the scheduler's config (prediction_type)."
            )

    def estimate(self, denoiser: Denoiser) -> Nfe:
        """What an image costs that is never reached: all steps, all checks, each given up at its first sample.

        Checks that come close cost more; images that pass leave before, and skipped checks cost nothing.
        """
        settings = settings_for(denoiser, self.settings)
        steps = settings.steps * settings.noises
        per_sample = sum(2 if g != 1 else 1 for g in settings.guidance) * settings.sampler_steps
        per_sample *= 2 if self.settings.sampler == "heun" else 1
        per_sample *= 2 if settings.prompt == "invert" and not settings.published else 1
        checks = 2 + settings.steps // settings.every
        seen = checks + 2 * (self.settings.samples - 1) if settings.one_first else checks * self.settings.samples
        return Nfe(forward=steps + seen * per_sample, backward=2 * steps)

    def run(self, denoiser: Denoiser, items: Sequence[ImageItem], bench: Workbench) -> Iterator[ImageResult]:
        """At most `bench.batch` images at once; each leaves with its result, and the next one joins at its own step 0."""
        if not items:
            return
        descriptor = descriptor_of(
            self.similarity, self.settings.weights, items[0].pixels.shape, str(denoiser.device),
            self.settings.sha256, input_side(denoiser),
        )  # fmt: skip
        batch = Batch(
            denoiser, settings_for(denoiser, self.settings), self.settings, SuccessTest(descriptor, self.beta), bench
        )
        waiting = deque(items)
        with batch.frozen():
            while waiting or batch.jobs:
                room = max(1, bench.batch) - len(batch.jobs)
                joining = [waiting.popleft() for _ in range(min(room, len(waiting)))]
                yield from batch.join(joining)
                yield from batch.advance()
                bench.tick(f"{len(batch.jobs)} at work, {len(waiting)} waiting")
