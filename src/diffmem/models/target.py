"""The model under audit, seen twice: the user's own pipeline for generating, a Denoiser for scoring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffmem.errors import ModelError, UsageError
from diffmem.models.capture import capture
from diffmem.models.check import CheckResult, compare_calls
from diffmem.models.denoiser import Denoiser
from diffmem.models.families import denoiser_for
from diffmem.models.families.callable import CallableDenoiser
from diffmem.models.fingerprint import pipeline_fingerprint, probe_fingerprint
from diffmem.models.generation import Sampling, generate, nfe_per_image
from diffmem.models.loading import load_pipeline
from diffmem.models.lora import Loras, load_loras, name_of

Generate = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]


class Target:
    """A model under audit.

    Build one with `from_pretrained`, `from_pipeline` or `from_callable`.

    Attributes:
        name: what to call it in reports.
        denoiser: for scoring; None for a model that only generates.
        pipeline: the user's diffusers pipeline, or None.
        fingerprint: identifies weights, configs and type; scores of different fingerprints never mix.
        notes: what was found while opening that the user should know.
    """

    def __init__(
        self,
        name: str,
        denoiser: Denoiser | None,
        pipeline: Any = None,
        fingerprint: str | None = None,
        generator: Generate | None = None,
    ) -> None:
        self.name = name
        self.denoiser = denoiser
        self.pipeline = pipeline
        self._generator = generator
        self._fingerprint = fingerprint
        self.notes: list[str] = []

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
        offload: bool = False,
        name: str | None = None,
    ) -> Target:
        """Open a diffusers pipeline from a folder or a hub id.

        Args:
            source: folder with model_index.json, "owner/name", or the alias of a well-known model ("sd1.4").
            device: "cpu", "cuda", "cuda:1", "mps"; None takes a GPU where there is one.
            dtype: "float32", "bfloat16", "float16" or a torch dtype; None for float32.
            revision: of the hub repository.
            lora: a LoRA to load into it: a .safetensors file, a folder with one, or a hub id; "FILE:0.5" or
                (file, 0.5) with a scale; a list for several.
            allow_pickle: open .bin weights too (they can run code).
            offload: keep only the part that works on the GPU (diffusers' model CPU offload).
            name: what to call it in reports; default: the last part of `source`.

        Raises:
            ModelError: a sentence that says what is wrong with the model.
        """
        pipeline = load_pipeline(source, dtype=_dtype(dtype), revision=revision, allow_pickle=allow_pickle)
        loaded = load_loras(pipeline, lora, allow_pickle=allow_pickle)
        fingerprint = pipeline_fingerprint(pipeline)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if offload:
            if place.type == "cpu":
                raise UsageError("Offloading needs a GPU to offload from; leave `offload` out on a CPU.")
            pipeline.enable_model_cpu_offload(device=place)
        else:
            pipeline.to(place)
        name = name or Path(str(source)).name + name_of(lora)
        target = cls(name, denoiser_for(pipeline), pipeline, fingerprint)
        target.notes += [text for one in loaded for text in (one.summary, *one.notes)]
        return target

    @classmethod
    def from_pipeline(cls, pipeline: Any, *, name: str | None = None) -> Target:
        """Wrap a diffusers pipeline that is loaded already; it is not modified (call `.eval()` on its parts yourself)."""
        training = [k for k, v in pipeline.components.items() if isinstance(v, torch.nn.Module) and v.training]
        if training:
            raise ModelError(
                f"These parts of the pipeline are in training mode: {', '.join(training)}. Dropout would change the "
                "numbers; call .eval() on them first."
            )
        from diffmem.models.latent_pipeline import adopted

        name = name or type(pipeline).__name__
        pipeline = adopted(pipeline)
        return cls(name, denoiser_for(pipeline), pipeline)

    @classmethod
    def from_callable(
        cls,
        fn: Callable[..., torch.Tensor] | None = None,
        sample_shape: Sequence[int] | None = None,
        *,
        name: str = "callable",
        generate: Generate | None = None,
        fingerprint: str | None = None,
        **denoiser: Any,
    ) -> Target:
        """Wrap functions as a model.

        Args:
            fn: the network, see CallableDenoiser; None for a model that only generates (a remote service).
            sample_shape: shape of one x; needed with `fn`.
            name: what to call it.
            generate: (prompts, seeds) -> PIL images, for generation.
            fingerprint: identifies the model; None hashes its outputs on fixed noise.
            denoiser: further arguments of CallableDenoiser.
        """
        if fn is None and generate is None:
            raise UsageError("from_callable needs `fn` (for scoring), `generate` (for images) or both.")
        if fn is not None and sample_shape is None:
            raise UsageError("from_callable needs `sample_shape`, the shape of one sample without the batch.")
        made = CallableDenoiser(fn, sample_shape, **denoiser) if fn is not None and sample_shape is not None else None
        return cls(name, made, None, fingerprint or (None if made else f"callable:{name}"), generate)

    @classmethod
    def from_denoiser(cls, denoiser: Denoiser, *, name: str | None = None) -> Target:
        """Wrap any Denoiser (the closed-form testbeds, a family of your own)."""
        return cls(name or denoiser.family, denoiser)

    @property
    def fingerprint(self) -> str:
        """Identifies the model; computed on first use where it was not given."""
        if self._fingerprint is None:
            if self.pipeline is not None:
                self._fingerprint = pipeline_fingerprint(self.pipeline)
            else:
                self._fingerprint = probe_fingerprint(self.need_denoiser())
        return self._fingerprint

    def need_denoiser(self) -> Denoiser:
        """The Denoiser; ModelError if this model only generates."""
        if self.denoiser is None:
            raise ModelError("This model only generates images: scores that look into the network cannot run on it.")
        return self.denoiser

    @property
    def can_generate(self) -> bool:
        """Whether images can be made."""
        return self.pipeline is not None or self._generator is not None

    def check(self, prompt: str = "a photograph", sampling: Sampling | None = None) -> CheckResult:
        """Prove that scoring sees the network that the pipeline runs.

        While the pipeline makes one image, the inputs and outputs of its network are captured by hooks; the outputs
        must equal `Denoiser.predict` at the same (x_t, t, c). Cost: twice the NFE of one image.
        """
        denoiser = self.need_denoiser()
        if self.pipeline is None:
            raise ModelError("There is no pipeline to compare with: this model was given as a function.")
        sampling = sampling or Sampling(steps=4)
        with capture(denoiser) as calls:
            generate(self.pipeline, denoiser, [prompt], [0], 0, sampling)
        with torch.no_grad():
            return compare_calls(denoiser, calls, prompt if denoiser.conditional else None)

    def generate(
        self, prompts: Sequence[str], draws: Sequence[int], root_seed: int = 0, sampling: Sampling | None = None
    ) -> list[Image.Image]:
        """One image per (prompt, draw), see `diffmem.models.generation.generate`."""
        if self.pipeline is not None:
            return generate(self.pipeline, self.need_denoiser(), prompts, draws, root_seed, sampling or Sampling())
        if self._generator is None:
            raise ModelError("This model has no way to generate images (no pipeline, no `generate` function).")
        from diffmem.randomness import seed_of

        seeds = [seed_of(root_seed, "generation", p, d) for p, d in zip(prompts, draws, strict=True)]
        return self._generator(list(prompts), seeds)

    def generation_nfe(self, sampling: Sampling) -> int | None:
        """NFE of one generated image, or None where it cannot be known."""
        if self.pipeline is None or self.denoiser is None:
            return None
        return nfe_per_image(self.pipeline, self.denoiser, sampling)


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in names:
        raise UsageError(f"Unknown dtype {dtype!r}; expected one of {', '.join(names)}.")
    return names[dtype]
