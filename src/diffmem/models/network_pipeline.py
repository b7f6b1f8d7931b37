"""A sampler for networks that bring none, in the form of a diffusers pipeline, so that mitigations take hold of it alike."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffmem.errors import ModelError, UsageError
from diffmem.models.conditioning import Conditioning
from diffmem.models.families.callable import CallableDenoiser
from diffmem.models.generation import Sampling
from diffmem.models.ode import guided
from diffmem.models.parameterization import to_epsilon, to_x0
from diffmem.randomness import gaussian

SAMPLERS = ("ddim", "euler")
"""Two names of one deterministic step: DDIM's is Euler's in sigma/alpha, and in s for flow networks."""


class NetworkPipeline:
    """Images from a CallableDenoiser by the probability-flow ODE, at the times of its schedule.

    Attributes:
        denoiser: the network.
        default_steps, guidance: what is taken where a sampling says nothing.
        tokenizer: none; mitigations that need the words of a vocabulary refuse.
    """

    tokenizer = None

    def __init__(self, denoiser: CallableDenoiser, steps: int = 50, guidance: float = 1.0) -> None:
        if not isinstance(steps, int) or steps < 1:
            raise UsageError(f"steps is {steps!r}; expected a whole number of sampling steps, at least 1.")
        self.denoiser, self.default_steps, self.guidance = denoiser, steps, float(guidance)
        self._require_branch(self.guidance)

    def __repr__(self) -> str:
        return f"NetworkPipeline({self.default_steps} steps of DDIM, guidance {self.guidance:g})"

    @torch.no_grad()
    def __call__(
        self,
        prompt: Sequence[str] | None = None,
        class_labels: Sequence[int] | None = None,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        latents: torch.Tensor | None = None,
    ) -> tuple[list[Image.Image]]:
        """Make images.

        Args:
            prompt: one per image, for models that take prompts.
            class_labels: one per image, for models of classes.
            batch_size: number of images of an unconditional model.
            num_inference_steps: sampling steps.
            guidance_scale: of classifier-free guidance; 1 for none.
            latents: initial noise [B, *sample_shape] of unit variance.

        Returns:
            A tuple with the list of images. Cost: one evaluation per step, two under guidance.
        """
        texts = [str(label) for label in class_labels] if class_labels is not None else list(prompt or ())
        cond = (
            self.denoiser.encode_prompts(texts) if self.denoiser.conditional else Conditioning({}, 1).expand(batch_size)
        )
        size = len(cond)
        if latents is None:
            latents = torch.randn(size, *self.denoiser.sample_shape)
        x = latents.to(self.denoiser.device, torch.float32)
        path: list[float | None] = [*self.denoiser.schedule.sampling_times(num_inference_steps), None]
        for t, t_next in itertools.pairwise(path):
            assert t is not None
            x = self._step(x, t, t_next, cond, guidance_scale)
        return (pictures(self.denoiser.decode(x)),)

    def images(
        self, prompts: Sequence[str], draws: Sequence[int], root_seed: int, sampling: Sampling
    ) -> list[Image.Image]:
        """One image per (prompt, draw), as `generation.generate` makes them with a diffusers pipeline."""
        for name in ("height", "width", "negative_prompt"):
            if getattr(sampling, name) is not None:
                raise UsageError(f"The built-in sampler of a network of one's own has no {name}; leave it out.")
        guidance = self.guidance if sampling.guidance is None else sampling.guidance
        self._require_branch(guidance)
        if sampling.scheduler not in (None, *SAMPLERS):
            raise UsageError(
                f"The built-in sampler of a network of one's own knows {', '.join(SAMPLERS)}, not {sampling.scheduler!r}."
            )
        names = [("generation", prompt, draw) for prompt, draw in zip(prompts, draws, strict=True)]
        noise = torch.stack([gaussian(self.denoiser.sample_shape, root_seed, *name) for name in names])
        asked: dict[str, Any] = (
            self.denoiser.generation_arguments(prompts) if self.denoiser.conditional else {"batch_size": len(prompts)}
        )
        # The class of `self` is another one while mitigations stand about its calls.
        return self(
            **asked, num_inference_steps=sampling.steps or self.default_steps, guidance_scale=guidance, latents=noise,
        )[0]  # fmt: skip

    def nfe(self, sampling: Sampling) -> int:
        """Network evaluations of one image."""
        rows = self.denoiser.rows_per_step(self.guidance if sampling.guidance is None else sampling.guidance)
        return (sampling.steps or self.default_steps) * rows

    def _require_branch(self, guidance: float) -> None:
        if guidance != 1 and not self.denoiser.conditional:
            raise UsageError(
                f"guidance {guidance:g} needs prompts or classes, and this model is unconditional: leave it out."
            )
        if guidance != 1 and not self.denoiser.unconditional_branch:
            raise UsageError(
                f"guidance {guidance:g} compares with the model without a prompt, but from_callable was given no `null`: "
                "leave guidance out, or give `null` if the model was trained without a prompt too."
            )

    def _step(
        self, x: torch.Tensor, t: float, t_next: float | None, cond: Conditioning, guidance: float
    ) -> torch.Tensor:
        """X' = alpha' x0 + sigma' eps (Song et al. 2021, eq. 12 with eta = 0)."""
        x0, eps = self._estimates(x, t, cond, guidance)
        if t_next is None:
            return x0
        alpha, sigma = self.denoiser.schedule.at(t_next)
        return alpha * x0 + sigma * eps

    def _estimates(
        self, x: torch.Tensor, t: float, cond: Conditioning, guidance: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0, eps) of the guided prediction; x0 of a pixel model kept in its range where alpha is small, as DDPM does."""
        denoiser = self.denoiser
        if denoiser.rows_per_step(guidance) == 2:
            both = Conditioning.cat([denoiser.null().expand(len(x)), cond])
            unconditional, conditional = denoiser.predict(torch.cat([x, x]), t, both).chunk(2)
            output = guided(unconditional, conditional, guidance)
        else:
            output = denoiser.predict(x, t, cond)
        alpha, sigma = denoiser.schedule.alpha_sigma(denoiser.times(t, len(x)))
        x0 = to_x0(output, x, alpha, sigma, denoiser.prediction)
        eps = to_epsilon(output, x, alpha, sigma, denoiser.prediction) if float(sigma[0]) > 0 else torch.zeros_like(x)
        return (x0 if denoiser.schedule.kind == "flow" else denoiser.clipped(x0)), eps


def pictures(images: torch.Tensor) -> list[Image.Image]:
    """Images [B, C, H, W], about [-1, 1], as grey or RGB pictures."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ModelError(
            f"The model's images have the shape {tuple(images.shape[1:])}; expected 1 or 3 channels, height, width. Give "
            "`decode` if its samples are no pixels."
        )
    if not bool(torch.isfinite(images).all()):
        raise ModelError(
            "The sampled images hold NaN or infinite values: check the network, its schedule and its dtype."
        )
    bytes_ = ((images.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    arrays = bytes_[:, 0] if bytes_.shape[1] == 1 else np.moveaxis(bytes_, 1, 3)
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
