"""What all families built from a diffusers pipeline share."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from diffmem.errors import GenerateOnly, ModelError
from diffmem.models.attention import cross_attentions
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.families._inputs import kind_of, unwrapped
from diffmem.models.families._schedulers import prediction_of, schedule_of


class PipelineDenoiser(Denoiser):
    """A Denoiser whose network is one component of a diffusers pipeline.

    Attributes:
        network_name: the component that is the network ("unet", "transformer").
    """

    network_name: ClassVar[str] = "unet"

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        channels = setting(self.network, "in_channels")
        self.sample_shape = (channels, *sides(self.network, "sample_size"))
        self._set_schedule(pipeline.scheduler)
        self._null: Conditioning | None = None
        self.cross_attention = self.cross_attention and bool(cross_attentions(self))

    @classmethod
    def variants(cls) -> dict[str, bool]:
        """Kinds of models in this family by label, and whether each has an unconditional branch."""
        return {cls.family: cls.unconditional_branch}

    def _set_schedule(self, scheduler: Any) -> None:
        self.schedule = schedule_of(scheduler)
        self.prediction = prediction_of(scheduler)

    @property
    def network(self) -> Any:
        """The network itself."""
        return getattr(self.pipeline, self.network_name)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the pipeline runs its network (also under CPU offload)."""
        network = self.network
        if not (hasattr(network, "_hf_hook") or hasattr(network, "_diffusers_hook")):  # nothing moves it
            first = next(network.parameters(), None)
            if first is not None and first.device.type != "meta":
                return torch.device(first.device)  # the pipeline walks through all its modules to tell, for every call
        return torch.device(self.pipeline._execution_device)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The network's floating type."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    def under(self, height: int | None, width: int | None, guidance: float | None) -> PipelineDenoiser:
        """The same model at another image size, in pixels, and at a guidance scale that its network takes as an input.

        What depends on them (the shape of x, size embeddings, shifted times) follows; None keeps the model's own.
        """
        seen = copy.copy(self)
        factor = getattr(self.pipeline, "vae_scale_factor", 1) if self.space == "latent" else 1
        channels, rows, columns = self.sample_shape
        seen.sample_shape = (channels, height // factor if height else rows, width // factor if width else columns)
        seen._null = None
        return seen

    def rows_per_step(self, guidance: float | None) -> int:
        """Rows that the pipeline evaluates for one image at one step: 2 under classifier-free guidance, else 1.

        Args:
            guidance: the scale asked for; None for the default of the pipeline's call.
        """
        if not self.conditional or getattr(unwrapped(self.network).config, "time_cond_proj_dim", None) is not None:
            return 1
        if guidance is None:
            default = inspect.signature(type(self.pipeline).__call__).parameters.get("guidance_scale")
            guidance = float(default.default) if default is not None and default.default is not None else 1.0
        return 2 if guidance > 1 else 1

    def read_output(self, output: torch.Tensor) -> torch.Tensor:
        """The first half of the channels where the network learns its variance too."""
        channels = self.sample_shape[0]
        return output[:, :channels] if output.shape[1] == 2 * channels else output

    def network_modules(self) -> list[torch.nn.Module]:
        """The network."""
        return [self.network]

    def null(self) -> Conditioning:
        """The encoding of the empty prompt, computed once; an empty conditioning for unconditional models."""
        if not self.conditional:
            return Conditioning({}, 1)
        if self._null is None:
            self._null = self.encode_prompts([""])
        return self._null


class LatentDenoiser(PipelineDenoiser):
    """A PipelineDenoiser that works in the latent space of the pipeline's autoencoder."""

    space = "latent"
    shifts_latents: ClassVar[bool] = False
    """Whether the family's pipeline adds the autoencoder's shift_factor."""
    centers_latents: ClassVar[bool] = False
    """Whether it uses the autoencoder's latents_mean and latents_std."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        scale = setting(self.autoencoder, "scaling_factor", float)
        if not 1e-4 <= scale <= 1e4:
            raise ModelError(
                f"The config of this {kind_of(self.autoencoder)} says scaling_factor = {scale:g}; no latents are of that "
                "size. Correct the component's config.json."
            )

    @property
    def autoencoder(self) -> Any:
        """What turns images into latents and back."""
        return self.pipeline.vae

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] -> scaled latents (the mean of a posterior, a VQ model's latents before lookup)."""
        channels = int(self.autoencoder.config.in_channels)
        if images.shape[1] == 1 != channels:
            images = images.expand(-1, channels, -1, -1)
        with self._full_precision() as vae:
            encoded = vae.encode(images.to(self.device, vae.dtype))
        # AutoencoderKL makes a posterior, VQModel `latents`, AutoencoderDC `latent`.
        found = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded[0]
        mean, scale = self._statistics(found)
        return self._fitting((found - mean) / scale, images)

    def _fitting(self, latents: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The latents of these images; ModelError where the images have another size than this model's samples."""
        if tuple(latents.shape[1:]) != self.sample_shape:
            raise ModelError(
                f"Images of {tuple(images.shape[-2:])} pixels give latents {tuple(latents.shape[1:])}, but this model "
                f"takes {self.sample_shape}: resize the images first."
            )
        return latents

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """Scaled latents -> images, about [-1, 1]."""
        with self._full_precision() as vae:
            latents = x0.to(self.device, vae.dtype)
            mean, scale = self._statistics(latents)
            images: torch.Tensor = vae.decode(latents * scale + mean, return_dict=False)[0]
        return images

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """(mean, scale) of the autoencoder's own latents: own = scaled * scale + mean, as the pipeline computes it."""
        config = self.autoencoder.config
        scale = 1.0 / float(config.scaling_factor)
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if self.centers_latents and mean is not None and deviation is not None:
            means, deviations = (
                torch.tensor(v, device=like.device, dtype=like.dtype).reshape(1, -1, 1, 1) for v in (mean, deviation)
            )
            return means, deviations * scale
        return float(config.get("shift_factor") or 0.0) if self.shifts_latents else 0.0, scale

    @contextmanager
    def _full_precision(self) -> Iterator[Any]:
        """The autoencoder, in float32 where float16 is too small for it (force_upcast), as the pipelines run it."""
        vae = self.autoencoder
        upcast = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))
        if upcast:
            vae.to(dtype=torch.float32)
        try:
            yield vae
        finally:
            if upcast:
                vae.to(dtype=torch.float16)


def setting(component: Any, name: str, kind: type[int | float] = int) -> Any:
    """A number above 0 from a component's config; ModelError for null and anything else."""
    value = component.config.get(name)
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < float("inf"):
        raise ModelError(
            f"The config of this {kind_of(component)} says {name} = {value!r}; expected a number above 0. Write it into "
            "the component's config.json."
        )
    return value


def refuse_guidance_input(network: Any) -> None:
    """Refuse to score a UNet that was distilled with the guidance scale as an input of its own."""
    if network.config.get("time_cond_proj_dim") is not None:
        raise GenerateOnly(
            "This UNet is guidance-distilled (time_cond_proj_dim is set): the guidance scale is an input, and there is no "
            "unconditional branch. It generates only; score the model that it was distilled from."
        )


def sides(component: Any, name: str) -> tuple[int, int]:
    """(height, width) from a config that gives one number or two."""
    value = component.config.get(name)
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value):
        return value[0], value[1]
    size = setting(component, name)
    return size, size


def network_times(t: torch.Tensor) -> torch.Tensor:
    """Whole times as integers, as pipelines pass them; others as float32."""
    return t.long() if bool((t == t.round()).all()) else t.to(torch.float32)
