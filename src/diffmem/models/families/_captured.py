"""The latents of a captured pipeline: how they are laid out for the network, the scheduler, the autoencoder and us."""

from __future__ import annotations

from typing import Any, Literal

import torch

from diffmem.errors import ModelError
from diffmem.models.denoiser import Denoiser
from diffmem.models.families._pipeline import LatentDenoiser
from diffmem.models.pipelines.latents import Answer, as_initial, decoded_layout, find_initial
from diffmem.models.pipelines.layout import Layout
from diffmem.models.pipelines.survey import Run

AUTOENCODERS = ("vae", "vqvae", "movq")


class CapturedLatents(LatentDenoiser):
    """x as the autoencoder decodes it, unpacked and unscaled; the network and the scheduler get the pipeline's own layout."""

    space: Literal["pixel", "latent"]  # type: ignore[assignment]
    _answer: Answer
    _decode_options: dict[str, Any]

    @property
    def autoencoder(self) -> Any:
        """The pipeline's autoencoder; None for pixel models."""
        return next((part for name in AUTOENCODERS if (part := self.pipeline.components.get(name)) is not None), None)

    def _read_latents(self, run: Run, own: torch.Tensor, takes_latents: bool) -> None:
        """Find the layout of the pipeline's latents [1, ...], and in which one it takes initial ones."""
        layout: Layout | None = None
        self._decode_options = {}
        if self.autoencoder is not None:
            layout, self._decode_options = decoded_layout(run, self.autoencoder, own)
        self.space = "latent" if self.autoencoder is not None else "pixel"
        self._layout_known = layout is not None
        self._layout = layout or Layout.identity(tuple(own.shape[1:]))
        shape = self._layout.shape
        self.sample_shape = tuple(n for i, n in enumerate(shape) if n != 1 or i == 0 or len(shape) == 3)
        if self._layout_known and len(self.sample_shape) != 3:
            raise ModelError(f"its samples are of shape {self.sample_shape}, which is no single image.")
        self._initial = find_initial(run, self._layout, own) if takes_latents else None
        self.takes_noise = self._initial is not None

    def read_output(self, output: Any) -> torch.Tensor:
        """What the scheduler is given of the network's output, [B, *sample_shape]."""
        rows = torch.stack(output) if isinstance(output, list) else output
        size = int(torch.Size(self._layout.own).numel())
        channels = 1 if rows[0].numel() == size else self._answer.channels  # the scheduler's prediction has one part
        if rows[0].numel() != channels * size:
            raise ModelError(f"The network returned {rows[0].numel()} values per row; expected {channels * size}.")
        own = rows.reshape(len(rows), channels * self._layout.own[0], *self._layout.own[1:])
        return self._answer.sign * self._laid_out(own.chunk(channels, 1)[0])

    def write_output(self, prediction: torch.Tensor) -> torch.Tensor:
        """The inverse of `read_output`, in the pipeline's layout."""
        own = self._layout.gathered(prediction.reshape(len(prediction), *self._layout.shape))
        return self._answer.sign * own.reshape(len(prediction), *self._layout.own)

    def _laid_out(self, own: torch.Tensor) -> torch.Tensor:
        return self._layout.spread(own).reshape(len(own), *self.sample_shape)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] -> latents as the pipeline scales them; ModelError where its way of decoding was not read."""
        if self._known_autoencoder() is None:
            return Denoiser.encode_images(self, images)
        pixels = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        frames = len(self._layout.shape) == 4
        with self._full_precision() as vae:
            pixels = pixels.to(self.device, vae.dtype)
            encoded = vae.encode(pixels.unsqueeze(2) if frames else pixels)
        found = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded[0]
        found = found.squeeze(2) if frames else found
        scale, shift = (v.reshape(self.sample_shape).to(found) for v in (self._layout.scale, self._layout.shift))
        if found.shape[1:] != shift.shape:
            return self._fitting(found, images)
        return self._fitting((found - shift) / scale, images)

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """Latents -> images, about [-1, 1]."""
        if self._known_autoencoder() is None:
            return x0
        with self._full_precision() as vae:
            latents = x0.to(self.device, vae.dtype).reshape(len(x0), *self._layout.shape)
            scaled = latents * self._layout.scale.to(latents) + self._layout.shift.to(latents)
            images: torch.Tensor = vae.decode(scaled, return_dict=False, **self._decode_options)[0]
        return images.squeeze(2) if images.ndim == 5 else images

    def _known_autoencoder(self) -> Any:
        if self.autoencoder is not None and not self._layout_known:
            raise ModelError(
                "How this pipeline turns its latents into what its autoencoder decodes could not be read: images cannot be "
                "encoded, so measures on images refuse."
            )
        return self.autoencoder

    def initial_latents(self, noise: torch.Tensor) -> torch.Tensor:
        """Noise [B, *sample_shape] in the layout in which the pipeline takes it; its own one where it takes none."""
        own = self._layout.gathered(noise.reshape(len(noise), *self._layout.shape))
        return as_initial(own.reshape(len(noise), *self._layout.own), self._initial or self._layout.own)

    def read_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """The pipeline's latents, in its own layout or that of its argument, as [B, *sample_shape]."""
        if tuple(latents.shape[1:]) == self._layout.own:
            return self._laid_out(latents)
        return self._laid_out(latents.flatten(2).transpose(1, 2).contiguous())
