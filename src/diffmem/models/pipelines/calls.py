"""One call of a diffusers pipeline, opened: its prompts, embeddings and noise can be read and replaced before it runs."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diffmem.errors import MitigationRefused, ModelError
from diffmem.models.conditioning import Conditioning

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser
    from diffmem.models.pipelines.record import Record
    from diffmem.models.target import Target

Around = Callable[[dict[str, Any]], AbstractContextManager[dict[str, Any]]]
Proceed = Callable[[dict[str, Any]], Any]

EMBEDDINGS = {
    "encoder_hidden_states": "prompt_embeds",
    "text_embeds": "pooled_prompt_embeds",
    "pooled_projections": "pooled_prompt_embeds",
    "encoder_attention_mask": "prompt_attention_mask",
    "encoder_hidden_states_mask": "prompt_embeds_mask",
}
"""Under which argument diffusers pipelines take each tensor of a Conditioning."""

_TEXTS = ("prompt", "prompt_2", "prompt_3")
_NEGATIVE_TEXTS = tuple(f"negative_{name}" for name in _TEXTS)
_IMAGES = ("image", "mask_image", "control_image")
"""Starting points of image-to-image pipelines: one for all prompts, or one per prompt."""
_TENSORS = tuple({*EMBEDDINGS.values(), *(f"negative_{name}" for name in EMBEDDINGS.values())})


def target_of(target: Target | Any) -> Target:
    """The target itself, or a pipeline as a Target; ModelError without a pipeline."""
    from diffmem.models.target import Target

    made = target if isinstance(target, Target) else Target.from_pipeline(target, called_by_user=True)
    if made.pipeline is None:
        raise ModelError(
            "A mitigation changes how a pipeline or the built-in sampler runs, but this model makes its images with a "
            "function of its own (`generate`): leave that out."
        )
    return made


@dataclass(frozen=True, eq=False)
class Layer:
    """One thing that stands about every call of one pipeline.

    Attributes:
        pipeline: whose calls.
        order: the least stands outside; of equal ones the earlier.
        handle: (arguments, proceed) -> output; `proceed(arguments)` makes the rest of the call, as often as it is called.
        assigned: told the name of every attribute that is set on the pipeline.
    """

    pipeline: Any
    order: int
    handle: Callable[[dict[str, Any], Proceed], Any]
    assigned: Callable[[str], None] | None = None


@contextmanager
def layered(layer: Layer) -> Iterator[None]:
    """Put a layer about every call of its pipeline.

    Python looks `__call__` up on the class, so the object is given a subclass of its own class for as long as there is
    a layer; name and signature are the class's own. Layers may begin and end in any order, also during a call.
    """
    pipeline = layer.pipeline
    cls = type(pipeline)
    layers: list[Layer] | None = cls.__dict__.get("_diffmem_layers")
    if layers is None:
        layers = []
        pipeline.__class__ = _subclass(cls, layers)
    layers.append(layer)
    try:
        yield
    finally:
        layers.remove(layer)
        if not any(other.pipeline is pipeline for other in layers):
            pipeline.__class__ = type(pipeline).__mro__[1]


@contextmanager
def intercepted(pipeline: Any, around: Around, order: int = 0) -> Iterator[None]:
    """Run `around(arguments)` about every call of a pipeline, see `layered`."""

    def handle(arguments: dict[str, Any], proceed: Proceed) -> Any:
        with around(arguments) as changed:
            return proceed(changed)

    with layered(Layer(pipeline, order, handle)):
        yield


def layers_of(pipeline: Any) -> list[Layer]:
    """The layers about a pipeline's calls, the outermost first."""
    layers: list[Layer] = type(pipeline).__dict__.get("_diffmem_layers", [])
    return sorted((layer for layer in layers if layer.pipeline is pipeline), key=lambda layer: layer.order)


def _subclass(cls: type, layers: list[Layer]) -> type:
    original: Any = cls.__call__
    set_attribute: Any = cls.__setattr__
    signature = inspect.signature(original)
    rest = [name for name, p in signature.parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD]

    def proceed_after(self: Any, done: Layer | None) -> Proceed:
        """What is left of a call after one layer; layers that come later in their order may begin meanwhile."""

        def proceed(arguments: dict[str, Any]) -> Any:
            found = layers_of(self)
            later = found if done is None else [layer for layer in found if layer.order > done.order]
            if done in found:
                later = found[found.index(done) + 1 :]
            if later:
                return later[0].handle(arguments, proceed_after(self, later[0]))
            return original(self, **arguments)

        return proceed

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(self, *args, **kwargs).arguments)
        del arguments[next(iter(signature.parameters))]
        for name in rest:
            arguments |= arguments.pop(name, {})
        return proceed_after(self, None)(arguments)

    def assign(self: Any, name: str, value: Any) -> None:
        set_attribute(self, name, value)
        for layer in layers_of(self):
            if layer.assigned is not None:
                layer.assigned(name)

    same = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {"__call__": call, "__setattr__": assign, "_diffmem_layers": layers, **same})


def _repeated(images: Any, copies: int, whole: bool) -> Any:
    """A list or batch of images, `copies` times: a b a b (whole) or a a b b; a single image is for all rows."""
    if isinstance(images, list | tuple):
        return list(images) * copies if whole else [image for image in images for _ in range(copies)]
    if isinstance(images, torch.Tensor) and images.ndim > 3:
        return torch.cat([images] * copies) if whole else images.repeat_interleave(copies, 0)
    return images


class Call:
    """The arguments of one call with one row per image.

    Several images per prompt are spelled out as rows, which the pipelines treat alike, so that a mitigation sees
    every image by itself.

    Attributes:
        pipeline: the user's pipeline.
        denoiser: its Denoiser.
        arguments: what the pipeline will be called with; changed in place.
        record: what the mitigation writes down.
    """

    def __init__(self, pipeline: Any, denoiser: Denoiser, arguments: dict[str, Any], record: Record) -> None:
        self.pipeline, self.denoiser, self.record = pipeline, denoiser, record
        self.parameters = dict(inspect.signature(type(pipeline).__call__).parameters)
        self.arguments = dict(arguments)
        self._spell_out()

    def _spell_out(self) -> None:
        arguments = self.arguments
        copies = int(arguments.get("num_images_per_prompt") or 1)
        if "num_images_per_prompt" in self.parameters:
            arguments["num_images_per_prompt"] = 1
        for name in _TENSORS:
            if arguments.get(name) is not None:
                arguments[name] = arguments[name].repeat_interleave(copies, 0)
        for name in _IMAGES:
            if arguments.get(name) is not None and copies > 1:
                # diffusers repeats starting points as a whole and control images one by one.
                whole = "strength" in self.parameters and name != "control_image"
                arguments[name] = _repeated(arguments[name], copies, whole)
        for name in (*_TEXTS, "class_labels"):
            value = arguments.get(name)
            if value is not None:
                rows = value if isinstance(value, list | tuple) else [value]
                arguments[name] = [row for row in rows for _ in range(copies)]
        for name in _NEGATIVE_TEXTS:
            value = arguments.get(name)
            if isinstance(value, str):
                arguments[name] = [value] * self.size
            elif value is not None:
                arguments[name] = [row for row in value for _ in range(copies)]

    @property
    def size(self) -> int:
        """Images of this call."""
        for name in ("prompt", "prompt_embeds", "class_labels"):
            if self.arguments.get(name) is not None:
                return len(self.arguments[name])
        raise MitigationRefused("The pipeline was called without a prompt, prompt_embeds or class_labels.")

    @property
    def texts(self) -> list[str]:
        """The prompts, one per image (class labels as text); MitigationRefused if only embeddings were given."""
        for name in ("prompt", "class_labels"):
            if self.arguments.get(name) is not None:
                return [str(row) for row in self.arguments[name]]
        raise MitigationRefused("The pipeline was called with prompt_embeds; this mitigation needs the prompt's text.")

    def replace_texts(self, change: Callable[[int, str], str]) -> None:
        """Pass every text of every image (each encoder's own, where given) through change(image, text)."""
        for name in _TEXTS:
            if self.arguments.get(name) is not None:
                self.arguments[name] = [change(i, text) for i, text in enumerate(self.arguments[name])]

    def value(self, name: str) -> Any:
        """An argument, or the pipeline's own default."""
        if name in self.arguments:
            return self.arguments[name]
        return self.parameters[name].default if name in self.parameters else None

    @property
    def guidance(self) -> float:
        """The scale of classifier-free guidance, 1 where there is none."""
        scale = self.value("true_cfg_scale" if "true_cfg_scale" in self.parameters else "guidance_scale")
        return 1.0 if scale is None else float(scale)

    @property
    def first_time(self) -> float:
        """The time of the sampler's first step."""
        return self.denoiser.schedule.sampling_times(int(self.value("num_inference_steps") or 50))[0]

    def names(self) -> list[tuple[str | int, ...]]:
        """A name per image for its randomness: its prompt and the seed of its generator, else of its noise.

        Neither depends on what else is in the batch, on the device or on the dtype; a single generator shared by a
        batch is told apart by the image's place, as is the pipeline's own noise.
        """
        texts: Sequence[str] = self.texts if self._has_text else ["prompt_embeds"] * self.size
        generator, latents = self.arguments.get("generator"), self.arguments.get("latents")
        seeds: list[tuple[str | int, ...]]
        if isinstance(generator, list) and len(generator) == self.size:
            seeds = [(g.initial_seed(),) for g in generator]
        elif isinstance(generator, torch.Generator):
            seeds = [(generator.initial_seed(), i) for i in range(self.size)]
        elif latents is not None:
            rows = latents.detach().float().cpu().numpy()
            seeds = [(hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest(),) for row in rows]
        else:
            seeds = [("unseeded", i) for i in range(self.size)]
        return [(text, *seed) for text, seed in zip(texts, seeds, strict=True)]

    @property
    def _has_text(self) -> bool:
        return any(self.arguments.get(name) is not None for name in ("prompt", "class_labels"))

    def conditioning(self) -> Conditioning:
        """The prompts as the network will see them, one row per image."""
        if self._has_text:
            return self.denoiser.encode_prompts(self.texts)
        return self._given(self.denoiser.encode_prompts([""] * self.size), "")

    def negative(self) -> Conditioning:
        """What guidance leads away from, one row per image: the negative prompts, else the null conditioning."""
        texts = self.arguments.get("negative_prompt")
        base = self.denoiser.encode_prompts(texts) if texts else self.denoiser.null().expand(self.size)
        return self._given(base, "negative_")

    def _given(self, base: Conditioning, prefix: str) -> Conditioning:
        given = {k: self.arguments.get(prefix + EMBEDDINGS[k]) for k in base.tensors if k in EMBEDDINGS}
        tensors = {k: v if given.get(k) is None else given[k] for k, v in base.tensors.items()}
        return Conditioning(tensors, self.size)  # type: ignore[arg-type]

    def set_conditioning(self, cond: Conditioning) -> None:
        """Give the pipeline embeddings in place of the prompts' texts."""
        self._set(cond, "")

    def set_negative(self, cond: Conditioning) -> None:
        """Give the pipeline embeddings in place of the negative prompts' texts."""
        self._set(cond, "negative_")

    def _set(self, cond: Conditioning, prefix: str) -> None:
        for name in _TEXTS:
            if prefix + name in self.parameters:  # PixArt takes "" where none is given
                self.arguments[prefix + name] = None
        for name, value in cond.tensors.items():
            if name in EMBEDDINGS:
                dtype = self.denoiser.dtype if value.is_floating_point() else value.dtype
                self.arguments[prefix + EMBEDDINGS[name]] = value.detach().to(dtype)

    def noise(self) -> torch.Tensor:
        """The initial noise x_T of every image, [B, *sample_shape]; drawn as the pipeline would if none was given."""
        if "latents" not in self.parameters or not self.denoiser.takes_noise:
            raise MitigationRefused(
                f"{type(self.pipeline).__name__} takes no `latents` that diffmem knows to lay out: the initial noise of its "
                "images cannot be set."
            )
        if self.arguments.get("latents") is None:
            from diffusers.utils.torch_utils import randn_tensor

            from diffmem.models.generation import noise_shape

            shape = noise_shape(self.pipeline, self.denoiser, self.value("height"), self.value("width"))
            drawn = randn_tensor(
                (self.size, *shape), generator=self.arguments.get("generator"), device=self.denoiser.device,
                dtype=self.denoiser.dtype,
            )  # fmt: skip
            assert isinstance(drawn, torch.Tensor)
            self.set_noise(drawn)
            return drawn
        return self.denoiser.read_latents(self.arguments["latents"])

    def set_noise(self, noise: torch.Tensor) -> None:
        """Start from other noise, [B, *sample_shape]."""
        self.arguments["latents"] = self.denoiser.initial_latents(
            noise.detach().to(self.denoiser.device, self.denoiser.dtype)
        )
