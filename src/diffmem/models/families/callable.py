"""Any function as a model: for networks outside diffusers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from diffmem.errors import ModelError, UsageError
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.families._declared import (
    Bound,
    ScheduleName,
    bounds_of,
    class_names,
    plain_range,
    prediction_of,
    require_eval_mode,
    schedule_of,
    shape_of,
)
from diffmem.models.noise_levels import NoiseLevelSchedule
from diffmem.models.parameterization import Prediction
from diffmem.models.schedule import Schedule

Encoded = torch.Tensor | Mapping[str, torch.Tensor]
Function = Callable[[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]


class _Network(torch.nn.Module):
    """The user's function as a module, so that hooks see its calls as they see a pipeline's.

    Its own x and t are diffmem's; the function is given both as the schedule says that the network was trained.
    """

    def __init__(self, fn: Function) -> None:
        super().__init__()
        self.fn = fn

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, cond: Mapping[str, torch.Tensor], schedule: Schedule
    ) -> tuple[torch.Tensor]:
        """The function's output, as the only element of a tuple."""
        scale = schedule.input_scale(t)
        factor = None if scale is None else scale.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        given = x if factor is None else x * factor
        output = self.fn(given, schedule.network_time(t).to(x.device, x.dtype), cond)
        if not isinstance(output, torch.Tensor) or output.shape != x.shape:
            what = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
            raise ModelError(
                f"The model function returned {what} for x of {tuple(x.shape)}; expected a tensor of the shape of x."
            )
        return (output,)


class CallableDenoiser(Denoiser):
    """A Denoiser made of functions; `Target.from_callable` explains every argument."""

    family = "callable"
    has_tokenizer = False
    no_branch = (
        "this model was given none (no `null` in from_callable): give what it was trained with in place of a prompt, or "
        "generate, match and take image scores."
    )

    def __init__(
        self,
        fn: Function,
        sample_shape: Sequence[int],
        *,
        prediction: Prediction = "epsilon",
        schedule: Schedule | ScheduleName | Sequence[float] | np.ndarray | torch.Tensor = "linear",
        pixel_range: tuple[Bound, Bound] = (-1.0, 1.0),
        classes: int | Sequence[str] | None = None,
        encode: Callable[[Sequence[str]], Encoded] | None = None,
        null: Encoded | str | int | None = None,
        encode_images: Callable[[torch.Tensor], torch.Tensor] | None = None,
        decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_eval_mode(fn)
        self.network = _Network(fn)
        self.sample_shape = shape_of(sample_shape)
        self.prediction, self.schedule = prediction_of(prediction), schedule_of(schedule)
        if isinstance(self.schedule, NoiseLevelSchedule) and prediction in ("v", "flow"):
            raise UsageError(
                f"prediction={prediction!r} does not go with a {type(self.schedule).__name__}: expected 'epsilon', 'x0' or "
                "'score'."
            )
        first = next(self.network.parameters(), None)
        self.device = (
            torch.device(device) if device is not None else torch.device("cpu") if first is None else first.device
        )
        floating = first is not None and first.is_floating_point()
        self.dtype = dtype or (first.dtype if first is not None and floating else torch.float32)
        self._low, self._high = bounds_of(pixel_range)
        self.pixel_range = plain_range(pixel_range)
        self.space: Literal["pixel", "latent"] = "pixel" if encode_images is None else "latent"
        self._encode_images, self._decode = encode_images, decode
        if classes is not None and encode is not None:
            raise UsageError("Give `classes` (prompts are class numbers or names) or `encode`, not both.")
        self.classes = None if classes is None else class_names(classes)
        self._encode = encode
        self.conditional = encode is not None or classes is not None
        self._null = self._conditioning_of_null(null)
        self.unconditional_branch = not self.conditional or self._null is not None

    def _conditioning_of_null(self, null: Encoded | str | int | None) -> Conditioning | None:
        if not self.conditional:
            if null is not None:
                raise UsageError(
                    "`null` is the conditioning without a prompt; without `classes` or `encode` there is none."
                )
            return Conditioning({}, 1)
        if null is None:
            return None
        if isinstance(null, str):
            return self.encode_prompts([null])
        if isinstance(null, int):
            if self.classes is None:
                raise UsageError(
                    f"null={null} is the number of a class, but there are no `classes`: give what `encode` returns for one "
                    'prompt, or a prompt (null="").'
                )
            return Conditioning({"label": torch.tensor([null])}, 1)
        found = _conditioning(null)
        if len(found) != 1:
            raise UsageError(f"`null` has {len(found)} rows; expected one, as `encode` returns for one prompt.")
        return found

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The user's encoding, or class numbers as {"label": int64 [B]}; refused for unconditional models."""
        if self.classes is not None:
            return Conditioning({"label": torch.tensor(self.labels(prompts), dtype=torch.long)}, len(prompts))
        if self._encode is None:
            raise ModelError("This model is unconditional: it was given neither `classes` nor `encode`.")
        found = _conditioning(self._encode(list(prompts)))
        if len(found) != len(prompts):
            raise ModelError(
                f"`encode` returned {len(found)} rows for {len(prompts)} prompts; expected one row per prompt."
            )
        return found

    def labels(self, prompts: Sequence[str]) -> list[int]:
        """Class numbers of prompts, each the number itself or a class's name."""
        names = self.classes or ()
        by_name = {name: number for number, name in enumerate(names)}
        found = []
        for prompt in prompts:
            text = prompt.strip()
            number = by_name.get(text, int(text) if text.isdecimal() else -1)
            if not 0 <= number < len(names):
                named = "" if names[0] == "0" else f", or one of its names ({', '.join(names[:5])}, ...)"
                raise ModelError(
                    f"{prompt!r} is no class of this model: expected a number 0 ... {len(names) - 1}{named}."
                )
            found.append(number)
        return found

    def null(self) -> Conditioning:
        """The conditioning without a prompt, one row; ModelError where the model has none."""
        if self._null is None:
            raise ModelError(
                "This model has no unconditional branch (from_callable was given no `null`), so it computes nothing "
                "without a prompt: give captions or classes, or `null` if it was trained without a prompt too."
            )
        return self._null

    def any_conditioning(self) -> Conditioning:
        """See Denoiser.any_conditioning: without a prompt, else the first class, else a text."""
        if self._null is not None:
            return self._null
        return self.encode_prompts([self.classes[0] if self.classes else "a photograph"])

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The user's function; a score is turned into the gradient by x, which the function may see in other units."""
        tensors = {name: value.to(self.device) for name, value in cond.tensors.items()}
        output: torch.Tensor = self.network(x, t, tensors, self.schedule)[0]
        scale = self.schedule.input_scale(t) if self.prediction == "score" else None
        return output if scale is None else output * scale.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] -> the model's pixel range, or through the user's encoder."""
        if self._encode_images is None:
            images = super().encode_images(images)
        low, high = (bound.to(images.device, images.dtype) for bound in (self._low, self._high))
        scaled = images if self.pixel_range == (-1.0, 1.0) else low + (images + 1) / 2 * (high - low)
        return scaled if self._encode_images is None else self._encode_images(scaled.to(self.device, self.dtype))

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """The model's pixel range, or the user's decoder's -> images, about [-1, 1]."""
        images = x0 if self._decode is None else self._decode(x0.to(self.device, self.dtype))
        if self.pixel_range == (-1.0, 1.0):
            return images
        low, high = (bound.to(images.device, images.dtype) for bound in (self._low, self._high))
        return (images - low) / (high - low) * 2 - 1

    def with_pixel_range(self, pixel_range: tuple[Bound, Bound]) -> CallableDenoiser:
        """The same network, believed to take other pixels."""
        seen = copy.copy(self)
        seen.pixel_range = pixel_range
        seen._low, seen._high = bounds_of(pixel_range)
        return seen

    def clipped(self, x0: torch.Tensor) -> torch.Tensor:
        """A clean sample within the pixel range; as it is for latents."""
        if self.space == "latent":
            return x0
        low, high = (bound.to(x0.device, x0.dtype) for bound in (self._low, self._high))
        return torch.maximum(torch.minimum(x0, high), low)

    def generation_arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Class numbers, or the prompts."""
        return (
            {"class_labels": self.labels(prompts)}
            if self.classes is not None
            else super().generation_arguments(prompts)
        )

    def rows_per_step(self, guidance: float | None) -> int:
        """2 under guidance, else 1."""
        return 2 if self.conditional and guidance not in (None, 1.0) else 1

    def network_modules(self) -> list[torch.nn.Module]:
        """The function, wrapped."""
        return [self.network]

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, conditioning) of one call of the network."""
        return args[0], args[1], dict(args[2])


def _conditioning(encoded: Encoded) -> Conditioning:
    if not isinstance(encoded, torch.Tensor | Mapping) or not (isinstance(encoded, torch.Tensor) or encoded):
        raise ModelError(
            f"`encode` returned a {type(encoded).__name__}; expected a tensor [B, ...], or tensors by name."
        )
    tensors = {"prompt": encoded} if isinstance(encoded, torch.Tensor) else dict(encoded)
    return Conditioning(tensors, len(next(iter(tensors.values()))))
