"""The one interface through which scores see a model: encode, predict, decode, and its noise schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from diffmem.errors import ModelError
from diffmem.models.conditioning import Conditioning
from diffmem.models.parameterization import Prediction, convert
from diffmem.models.schedule import Schedule
from diffmem.models.soft_prompt import SoftPrompt


class Denoiser(ABC):
    """A diffusion network with everything that scoring needs; families differ in the four abstract methods.

    Attributes:
        family: short name of the kind of model ("text-unet").
        prediction: what the network itself returns.
        schedule: alpha, sigma and times.
        sample_shape: shape of one x (latent or pixel), without the batch.
        space: "pixel" or "latent".
        conditional: whether the network takes a prompt.
        unconditional_branch: whether epsilon without a prompt exists (guidance-distilled models have none).
        no_branch: why there is no unconditional branch and what to do, in words, where the model is not distilled.
        distilled: why the model counts as distilled to few steps or to one guided evaluation, in words; None otherwise.
        device: where the network runs.
        dtype: in which floating type it runs.
        batches: whether the pipeline makes the same images of several prompts as of each alone; False: one at a time.
        has_tokenizer: whether prompts go through a tokenizer that mitigations can ask.
        cross_attention: whether the network attends to the prompt in layers of their own, whose weights can be read.
        takes_noise: whether the pipeline is known to take initial noise; False: it draws its own from the generators.
    """

    family: str
    prediction: Prediction
    schedule: Schedule
    sample_shape: tuple[int, ...]
    space: Literal["pixel", "latent"]
    conditional: bool
    unconditional_branch: bool
    no_branch: str | None = None
    distilled: str | None = None
    device: torch.device
    dtype: torch.dtype
    batches: bool = True
    has_tokenizer: bool = True
    cross_attention: bool = False
    takes_noise: bool = True

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts -> conditioning of len(prompts) rows; text beyond the tokenizer's limit is reported in `truncated`."""

    def encode_negative(self, prompt: str) -> Conditioning:
        """A negative prompt as the family's pipeline encodes it, one row."""
        return self.encode_prompts([prompt])

    @abstractmethod
    def null(self) -> Conditioning:
        """The conditioning without a prompt, one row."""

    def any_conditioning(self) -> Conditioning:
        """Some conditioning of one row, to time or probe the network with."""
        return self.null()

    @abstractmethod
    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The network's own output for x [B, ...] (already on its device, in its dtype) at times t [B]."""

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] in [-1, 1] -> x0 [B, *sample_shape]; the identity for pixel models."""
        if tuple(images.shape[1:]) != self.sample_shape:
            raise ModelError(
                f"This model takes images of shape {self.sample_shape}, but got {tuple(images.shape[1:])}: "
                "resize or convert them first."
            )
        return images.to(self.device, self.dtype)

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """x0 [B, *sample_shape] -> images [B, C, H, W], about [-1, 1]; the identity for pixel models."""
        return x0

    def predict(
        self, x: torch.Tensor, t: float | torch.Tensor, cond: Conditioning, kind: Prediction | None = None
    ) -> torch.Tensor:
        """The network's prediction at (x, t, cond), as its own output or converted. Cost: 1 NFE per row of x.

        Args:
            x: noisy samples, [B, *sample_shape].
            t: one time for all rows or one per row [B], in the schedule's units.
            cond: B rows, or one row for all.
            kind: None for the network's own output; otherwise "epsilon", "x0", "v", "flow" or "score".

        Returns:
            [B, *sample_shape] in float32 (float64 where x is float64).

        Raises:
            UndefinedConversion: where the conversion does not exist (alpha = 0 or sigma = 0).
        """
        times = self.times(t, len(x))
        output = self.forward(x.to(self.device, self.dtype), times.to(self.device), cond.expand(len(x))).to(
            torch.promote_types(x.dtype, torch.float32)
        )
        if kind is None or kind == self.prediction:
            return output
        alpha, sigma = self.schedule.alpha_sigma(times)
        return convert(output, x.to(output.device, output.dtype), alpha, sigma, self.prediction, kind)

    def convert(self, output: torch.Tensor, x: torch.Tensor, t: float | torch.Tensor, to: Prediction) -> torch.Tensor:
        """Turn an output of this network at (x, t) into another kind of prediction. Cost: no NFE."""
        alpha, sigma = self.schedule.alpha_sigma(self.times(t, len(x)))
        return convert(output, x.to(output.device, output.dtype), alpha, sigma, self.prediction, to)

    def times(self, t: float | torch.Tensor, size: int) -> torch.Tensor:
        """Times as a float64 CPU tensor [size]."""
        times = torch.as_tensor(t, dtype=torch.float64).reshape(-1).cpu()
        return times.expand(size) if len(times) == 1 else times

    def soft_prompt(self) -> SoftPrompt:
        """The family's way to encode prompts that are fitted by gradient; ModelError where there is none."""
        raise ModelError(f"The family {self.family} has no way to fit a prompt through its text encoder.")

    def generation_arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """How the family's pipeline is told the prompts (class-conditional ones take labels)."""
        return {"prompt": list(prompts)}

    def guidance_arguments(self, guidance: float | None, negative: list[str] | None, count: int) -> dict[str, Any]:
        """How the family's pipeline is told the guidance scale and the negative prompts of `count` images; None: not."""
        given = {"guidance_scale": guidance, "negative_prompt": negative}
        return {name: value for name, value in given.items() if value is not None}

    def initial_latents(self, noise: torch.Tensor) -> torch.Tensor:
        """Noise [B, *sample_shape] in the layout in which the family's pipeline takes it."""
        return noise

    def read_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `initial_latents`: a pipeline's latents as [B, *sample_shape]."""
        return latents

    def under(self, height: int | None, width: int | None, guidance: float | None) -> Denoiser:
        """The same model at another image size in pixels and another guidance input; the model itself if it has none."""
        return self

    def rows_per_step(self, guidance: float | None) -> int:
        """Rows that the pipeline evaluates per image and step at a guidance scale (None: its default)."""
        return 2 if self.conditional and (guidance or 1.0) > 1 else 1

    def network_modules(self) -> list[torch.nn.Module]:
        """The modules whose forward calls are this model's network evaluations (for hooks and timing)."""
        return []

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, conditioning tensors) from the arguments with which a pipeline called the network."""
        raise ModelError(f"The family {self.family} has no network module whose calls could be read.")

    def read_output(self, output: Any) -> torch.Tensor:
        """What the pipeline takes from the network's raw output (without a learned variance, unpacked)."""
        taken: torch.Tensor = output
        return taken

    def write_output(self, prediction: torch.Tensor) -> torch.Tensor:
        """The inverse of `read_output`, without a learned variance: a prediction as the network would return it."""
        return self.initial_latents(prediction)
