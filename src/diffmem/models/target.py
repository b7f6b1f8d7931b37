"""The model under audit, seen twice: the user's own pipeline for generating, a Denoiser for scoring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffmem.errors import GenerateOnly, ModelError, UsageError, first_line
from diffmem.models.checked import Checked
from diffmem.models.denoiser import Denoiser
from diffmem.models.families import denoiser_for
from diffmem.models.families._declared import Bound, ScheduleName
from diffmem.models.families._inputs import network_of
from diffmem.models.families.callable import CallableDenoiser, Encoded, Function
from diffmem.models.fingerprint import pipeline_fingerprint, probe_fingerprint
from diffmem.models.generation import Sampling, generate, nfe_per_image
from diffmem.models.loading import load_pipeline
from diffmem.models.lora import Loras, load_loras, name_of
from diffmem.models.network_pipeline import NetworkPipeline
from diffmem.models.parameterization import Prediction
from diffmem.models.schedule import Schedule
from diffmem.models.versions import require_versions
from diffmem.notebook import ShownInNotebooks

Generate = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]


class Target(Checked, ShownInNotebooks):
    """A model under audit.

    Build one with `from_pretrained`, `from_pipeline` or `from_callable`.

    Attributes:
        name: what to call it in reports.
        denoiser: for scoring; None for a model that only generates.
        despite_check: whether a check that fails is only said (`require_check`).
        generates_only: why it only generates, or None.
        pipeline: the user's diffusers pipeline; for functions the built-in sampler, or None.
        fingerprint: identifies weights, configs and type; scores of different fingerprints never mix.
        notes: what was found while opening that the user should know.
        reopen: opens the same model in another process; None where only the object itself can be sent there.
    """

    def __init__(
        self,
        name: str,
        denoiser: Denoiser | None,
        pipeline: Any = None,
        fingerprint: str | None = None,
        generator: Generate | None = None,
    ) -> None:
        require_versions()
        self.name = name
        self.denoiser = denoiser
        self.pipeline = pipeline
        self.generates_only: str | None = None
        self.despite_check = False
        self._generator = generator
        self._fingerprint = fingerprint
        self.notes: list[str] = []
        self.reopen: Callable[[], Target] | None = None
        super().__init__()

    def __repr__(self) -> str:
        does = "only generates images" if self.denoiser is None else f"{self.denoiser.family} on {self.denoiser.device}"
        return f"Target({self.name!r}: {does})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "family": "-" if self.denoiser is None else self.denoiser.family,
            "only generates": self.generates_only,
            "sample shape": None if self.denoiser is None else " x ".join(map(str, self.denoiser.sample_shape)),
            "device": None if self.denoiser is None else str(self.denoiser.device), "notes": self.notes,
        }  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        lora: Loras = None,
        allow_pickle: bool = False,
        variant: str | None = None,
        distilled: bool | None = None,
        offload: bool = False,
        name: str | None = None,
    ) -> Target:
        """Open a diffusers pipeline from a folder or a hub id.

        Args:
            source: folder with model_index.json, "owner/name", the alias of a well-known model ("sd1.4"), or `testbed:NAME`
                for a small model that comes with diffmem (digits, photos).
            device: "cpu", "cuda", "cuda:1", "mps"; None takes a GPU where there is one.
            dtype: "float32", "bfloat16", "float16" or a torch dtype; None for float32.
            revision: of the hub repository.
            lora: a LoRA to load into it: a .safetensors file, a folder with one, or a hub id; "FILE:0.5" or
                (file, 0.5) with a scale; a list for several.
            allow_pickle: open .bin weights too (they can run code).
            variant: of the weights' files ("fp16"), for folders that hold those.
            distilled: whether the model is distilled and has no unconditional branch; None goes by the signs in its
                configs and sampler.
            offload: keep only the part that works on the GPU (diffusers' model CPU offload).
            name: what to call it in reports; default: the last part of `source`.

        Raises:
            ModelError: a sentence that says what is wrong with the model.
        """
        place = _place(device)
        pipeline = load_pipeline(
            source, dtype=_dtype(dtype), revision=revision, allow_pickle=allow_pickle, variant=variant
        )
        loaded = load_loras(pipeline, lora, allow_pickle=allow_pickle)
        fingerprint = pipeline_fingerprint(pipeline)
        if offload:
            if place.type == "cpu":
                raise UsageError("Offloading needs a GPU to offload from; leave `offload` out on a CPU.")
            pipeline.enable_model_cpu_offload(device=place)
        else:
            pipeline.to(place)
        name = name or Path(str(source)).name + name_of(lora)
        target = cls._seen(name, pipeline, fingerprint, distilled)
        target.notes += [text for one in loaded for text in (one.summary, *one.notes)]
        target.reopen = partial(
            cls.from_pretrained, source, device=device, dtype=dtype, revision=revision, lora=lora, allow_pickle=allow_pickle,
            variant=variant, distilled=distilled, offload=offload, name=name,
        )  # fmt: skip
        return target

    @classmethod
    def from_pipeline(
        cls, pipeline: Any, *, name: str | None = None, distilled: bool | None = None, called_by_user: bool = False
    ) -> Target:
        """Wrap a diffusers pipeline that is loaded already; it is not modified (call `.eval()` on its parts yourself).

        Args:
            pipeline: a diffusers pipeline.
            name: for reports.
            distilled: whether it counts as distilled; None goes by its configs.
            called_by_user: its owner makes the calls, and gives what they need beside a prompt (guard, mitigations).
        """
        if not isinstance(getattr(pipeline, "components", None), dict):
            raise ModelError(
                f"A {type(pipeline).__name__} is no diffusers pipeline; wrap functions with from_callable."
            )
        training = [k for k, v in pipeline.components.items() if isinstance(v, torch.nn.Module) and v.training]
        if training:
            raise ModelError(
                f"These parts of the pipeline are in training mode: {', '.join(training)}. Dropout would change the "
                "numbers; call .eval() on them first."
            )
        from diffmem.models.latent_pipeline import adopted

        name = name or type(pipeline).__name__
        pipeline = adopted(pipeline)
        return cls._seen(name, pipeline, None, distilled, called_by_user)

    @classmethod
    def _seen(
        cls, name: str, pipeline: Any, fingerprint: str | None, distilled: bool | None, called_by_user: bool = False
    ) -> Target:
        """A target of a pipeline: with a Denoiser, or for generating only."""
        try:
            denoiser = denoiser_for(pipeline, distilled, called_by_user)
        except GenerateOnly as problem:
            target = cls(name, None, pipeline, fingerprint)
            target.generates_only = str(problem)
            target.notes.append(str(problem))
            return target
        target = cls(name, denoiser, pipeline, fingerprint)
        if denoiser.distilled is not None and not network_of(pipeline).config.get(
            "guidance_embeds"
        ):  # those are made so
            target.notes.append(
                f"{name} counts as distilled: {denoiser.distilled}. It has no unconditional branch, so scores that compare "
                "with one refuse, and its images need the steps and guidance that it was made for (--steps, --guidance). "
                "If it is not distilled: distilled=False (--no-distilled)."
            )
        return target

    @classmethod
    def from_callable(
        cls,
        fn: Function | None = None,
        sample_shape: Sequence[int] | None = None,
        *,
        prediction: Prediction = "epsilon",
        schedule: Schedule | ScheduleName | Sequence[float] | torch.Tensor = "linear",
        pixel_range: tuple[Bound, Bound] = (-1.0, 1.0),
        classes: int | Sequence[str] | None = None,
        encode: Callable[[Sequence[str]], Encoded] | None = None,
        null: Encoded | str | int | None = None,
        encode_images: Callable[[torch.Tensor], torch.Tensor] | None = None,
        decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
        steps: int = 50,
        guidance: float = 1.0,
        generate: Generate | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        name: str = "callable",
        fingerprint: str | None = None,
    ) -> Target:
        """Wrap a network of one's own: `fn(x, t, cond)` is its output for noisy samples x at times t under cond.

        x is [B, *sample_shape] and x = alpha x0 + sigma eps, x0 in `pixel_range` (for "ve" and "edm" x = x0 + t eps); t is
        [B], in the same floating type and on the same device as x, from the schedule's clean end to its noisy one (0 ...
        999 for "linear"); cond is a dict: {} for an unconditional model, {"label": int64 [B]} with `classes`, {"prompt":
        ...} or the names that `encode` gave. It returns a tensor of the shape of x.

        Args:
            fn: the network; None for a model that only generates (a remote service).
            sample_shape: shape of one x, (channels, height, width); needed with `fn`.
            prediction: what `fn` returns: "epsilon" (the noise), "x0" (the clean sample), "v" (alpha eps - sigma x0),
                "flow" (eps - x0) or "score" (-eps/sigma).
            schedule: "linear" or "cosine" (DDPM, t = 0 ... 999), "flow" (alpha = 1 - t, sigma = t, t in [0, 1]), "ve" or
                "edm" (t is the noise level sigma, .01 ... 50 or .002 ... 80); an object of diffmem.models.schedule or
                noise_levels for other numbers (FlowSchedule(scale=1, reversed=True): t = 1 is the image); or the
                cumulative alphas abar at t = 0 ... T-1.
            pixel_range: what black and white are to the network, each a number or one per channel.
            classes: how many classes, or their names: a prompt is then the number or name of a class.
            encode: prompts -> tensor [B, ...], or tensors by name, for other conditional models.
            null: the conditioning without a prompt: the number of the class that means "none", a prompt (""), or what
                `encode` returns for one prompt. None: the model has no unconditional branch; scores that compare with one
                refuse, all else works.
            encode_images: images [B, C, H, W] in `pixel_range` -> x0, for a network on latents; None for pixels.
            decode: x0 -> images in `pixel_range`, for a network on latents.
            steps: steps of the built-in sampler (DDIM, for flows Euler) where nothing else is asked for.
            guidance: its guidance scale; 1 for none.
            generate: (prompts, seeds) -> PIL images, in place of the built-in sampler; mitigations cannot change it.
            device: where x is put before `fn` is called; None: where the parameters of `fn` are, if it is a module.
            dtype: the floating type of x; None: that of the parameters of `fn`, else float32.
            name: what to call it in reports.
            fingerprint: identifies the model; None hashes its outputs on fixed noise.

        Raises:
            UsageError: an argument that makes no sense, with what was expected.
            ModelError: a module in training mode.

        Examples:
            >>> import diffmem as dm
            >>> dm.Target.from_callable(
            ...     lambda x, t, cond: x * 0, (1, 8, 8), prediction="epsilon", schedule="linear", name="zero", device="cpu"
            ... )
            Target('zero': callable on cpu)
        """
        if fn is None and generate is None:
            raise UsageError("from_callable needs `fn` (for scoring), `generate` (for images) or both.")
        if fn is None:
            return cls(name, None, None, fingerprint or f"callable:{name}", generate)
        if sample_shape is None:
            raise UsageError("from_callable needs `sample_shape`, the shape of one sample without the batch.")
        made = CallableDenoiser(
            fn, sample_shape, prediction=prediction, schedule=schedule, pixel_range=pixel_range, classes=classes,
            encode=encode, null=null, encode_images=encode_images, decode=decode, device=device, dtype=dtype,
        )  # fmt: skip
        sampler = None if generate is not None else NetworkPipeline(made, steps, guidance)
        return cls(name, made, sampler, fingerprint, generate)

    @classmethod
    def from_denoiser(cls, denoiser: Denoiser, *, name: str | None = None) -> Target:
        """Wrap any Denoiser (the closed-form testbeds, a family of your own)."""
        return cls(name or denoiser.family, denoiser)

    @property
    def fingerprint(self) -> str:
        """Identifies the model; computed on first use where it was not given."""
        if self._fingerprint is None:
            if self.pipeline is not None and not self.is_function:
                self._fingerprint = pipeline_fingerprint(self.pipeline)
            else:
                self._fingerprint = probe_fingerprint(self.need_denoiser())
        return self._fingerprint

    def need_denoiser(self) -> Denoiser:
        """The Denoiser; ModelError if this model only generates."""
        if self.denoiser is None:
            reason = "scores that look into the network cannot run on it."
            raise ModelError(f"This model only generates images: {self.generates_only or reason}")
        return self.denoiser

    @property
    def is_function(self) -> bool:
        """Whether the model was given as functions, so that there is no pipeline of diffusers."""
        return self.pipeline is None or isinstance(self.pipeline, NetworkPipeline)

    @property
    def can_generate(self) -> bool:
        """Whether images can be made."""
        return self.pipeline is not None or self._generator is not None

    def generate(
        self, prompts: Sequence[str], draws: Sequence[int], root_seed: int = 0, sampling: Sampling | None = None
    ) -> list[Image.Image]:
        """One image per (prompt, draw), see `diffmem.models.generation.generate`."""
        if isinstance(self.pipeline, NetworkPipeline):
            return self.pipeline.images(prompts, draws, root_seed, sampling or Sampling())
        if self.pipeline is not None:
            return generate(self.pipeline, self.denoiser, prompts, draws, root_seed, sampling or Sampling())
        if self._generator is None:
            raise ModelError("This model has no way to generate images (no pipeline, no `generate` function).")
        from diffmem.randomness import seed_of

        seeds = [seed_of(root_seed, "generation", p, d) for p, d in zip(prompts, draws, strict=True)]
        return self._generator(list(prompts), seeds)

    def generation_nfe(self, sampling: Sampling) -> int | None:
        """NFE of one generated image, or None where it cannot be known."""
        if self.pipeline is None or self.denoiser is None:
            return None
        if isinstance(self.pipeline, NetworkPipeline):
            return self.pipeline.nfe(sampling)
        return nfe_per_image(self.pipeline, self.denoiser, sampling)


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in names:
        raise UsageError(f"Unknown dtype {dtype!r}; expected one of {', '.join(names)}.")
    return names[dtype]


def _place(device: str | torch.device | None) -> torch.device:
    """A device that is there; a GPU where there is one if none is asked for."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        raise UsageError(
            f"The device {str(device)!r} cannot be used here: {first_line(problem)} Expected cpu, or cuda, cuda:1 or mps "
            "where the machine and the installed torch have it."
        ) from problem
    return place
