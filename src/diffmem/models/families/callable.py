"""Any function as a model: for networks outside diffusers, remote services and closed forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from diffmem.errors import ModelError
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.parameterization import Prediction
from diffmem.models.schedule import DiscreteSchedule, Schedule

Encoded = torch.Tensor | Mapping[str, torch.Tensor]


class CallableDenoiser(Denoiser):
    """A Denoiser made of functions.

    Args:
        fn: (x [B, *shape], t [B], conditioning tensors by name, each [B, ...]) -> the network's own output [B, *shape].
        sample_shape: shape of one x.
        prediction: what `fn` returns.
        schedule: noise schedule; DDPM's linear one if None.
        encode: prompts -> tensor [B, ...] (named "prompt") or tensors by name; None for an unconditional model.
        null: the conditioning without a prompt, as `encode` would return it for one prompt; None takes encode([""]).
        encode_images: images [B, C, H, W] in [-1, 1] -> x0; None for pixel models.
        decode: x0 -> images; None for pixel models.
        device: where x is put before `fn` is called.
        dtype: in which floating type.
    """

    family = "callable"
    unconditional_branch = True

    def __init__(
        self,
        fn: Callable[[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor],
        sample_shape: Sequence[int],
        *,
        prediction: Prediction = "epsilon",
        schedule: Schedule | None = None,
        encode: Callable[[Sequence[str]], Encoded] | None = None,
        null: Encoded | None = None,
        encode_images: Callable[[torch.Tensor], torch.Tensor] | None = None,
        decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.fn = fn
        self.sample_shape = tuple(sample_shape)
        self.prediction = prediction
        self.schedule = schedule or DiscreteSchedule.linear()
        self.conditional = encode is not None
        self.device, self.dtype = torch.device(device), dtype
        self.space: Literal["pixel", "latent"] = "pixel" if encode_images is None else "latent"
        self._encode, self._null = encode, null
        self._encode_images, self._decode = encode_images, decode

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The user's encoding; refused for unconditional models."""
        if self._encode is None:
            raise ModelError("This model is unconditional: it was given no `encode` function for prompts.")
        return _conditioning(self._encode(list(prompts)))

    def null(self) -> Conditioning:
        """The user's null conditioning, else that of the empty prompt, else an empty one."""
        if self._null is not None:
            return _conditioning(self._null)
        return self.encode_prompts([""]) if self._encode is not None else Conditioning({}, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The user's function, with its shape checked."""
        output = self.fn(x, t, cond.tensors)
        if output.shape != x.shape:
            raise ModelError(
                f"The model function returned shape {tuple(output.shape)} for x of {tuple(x.shape)}; both must agree."
            )
        return output

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """The user's encoder, or the identity."""
        return super().encode_images(images) if self._encode_images is None else self._encode_images(images)

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """The user's decoder, or the identity."""
        return x0 if self._decode is None else self._decode(x0)


def _conditioning(encoded: Encoded) -> Conditioning:
    tensors = {"prompt": encoded} if isinstance(encoded, torch.Tensor) else dict(encoded)
    return Conditioning(tensors, len(next(iter(tensors.values()))))
