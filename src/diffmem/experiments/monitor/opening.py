"""Open a checkpoint as a model: a whole one, or what was saved put over the base that it was trained from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmem.errors import DiffmemError, ModelError, UsageError, first_line
from diffmem.experiments.monitor.checkpoints import Checkpoint
from diffmem.models.bundled import bundled_path
from diffmem.models.functions import is_function, open_function
from diffmem.models.known import resolve
from diffmem.models.lora.files import COMPONENTS
from diffmem.models.target import Target


@dataclass(frozen=True)
class Opening:
    """How checkpoints are opened.

    Attributes:
        base: the model that LoRAs and components lie over; None where every checkpoint is whole.
        loras: loaded into every checkpoint, FILE or FILE:SCALE.
        device, dtype, allow_pickle, variant, distilled: as in `Target.from_pretrained`.
        despite_check: go on where diffmem sees another model than the pipeline runs.
    """

    base: str | None = None
    loras: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None
    allow_pickle: bool = False
    variant: str | None = None
    distilled: bool | None = None
    despite_check: bool = False

    def check(self, checkpoints: tuple[Checkpoint, ...]) -> None:
        """Refuse LoRAs and components without a base, and LoRAs over functions, before any work."""
        over = next((one for one in checkpoints if one.kind in ("lora", "components")), None)
        if over is not None and self.base is None:
            what = "a LoRA" if over.kind == "lora" else "a part of a pipeline"
            raise UsageError(f"{over.source} is {what}: say over which model it was trained (--base MODEL, base=...).")
        function = next((one for one in checkpoints if one.kind == "function"), None)
        if function is not None and self.loras:
            raise UsageError(f"{function.source} is built by a function, into which diffmem loads no LoRA (--lora).")

    def open(self, checkpoint: Checkpoint, without: str | None = None) -> Target:
        """The model of a checkpoint, checked against a run of its own pipeline.

        Args:
            checkpoint: which.
            without: a LoRA of `loras`, or the checkpoint's own, that is left out.

        Raises:
            DiffmemError: what is wrong with it, in a sentence.
        """
        try:
            target = self._opened(checkpoint, without)
            target.name = checkpoint.name
            target.despite_check = self.despite_check
            target.require_check()
            return target
        except DiffmemError:
            raise
        except Exception as problem:  # of torch, diffusers and whatever reads a file that is broken in a new way
            raise ModelError(
                f"{checkpoint.source} cannot be opened: {type(problem).__name__}: {first_line(problem)}"
            ) from problem

    def _opened(self, checkpoint: Checkpoint, without: str | None) -> Target:
        loras = [one for one in self.loras if one != without]
        source = checkpoint.source
        if checkpoint.kind == "function" or (
            checkpoint.kind == "base" and bundled_path(source) is None and is_function(source)
        ):
            options = {"device": self.device, "dtype": self.dtype}
            return open_function(source, {key: value for key, value in options.items() if value is not None})
        if checkpoint.kind == "components":
            return self._over_base(checkpoint, loras)
        if checkpoint.kind == "lora":
            assert self.base is not None
            return self._pretrained(self.base, loras if without == source else [*loras, source])
        return self._pretrained(source, loras)

    def _pretrained(self, source: str, loras: list[str]) -> Target:
        return Target.from_pretrained(
            resolve(source), device=self.device, dtype=self.dtype, lora=loras or None,
            allow_pickle=self.allow_pickle, variant=self.variant, distilled=self.distilled,
        )  # fmt: skip

    def _over_base(self, checkpoint: Checkpoint, loras: list[str]) -> Target:
        """The base with the components that the checkpoint holds (unet/, text_encoder/, as diffusers' scripts save them)."""
        from diffmem.models.components import open_part
        from diffmem.models.folder import parts_of
        from diffmem.models.loading import load_pipeline, quiet_libraries
        from diffmem.models.lora import load_loras

        assert self.base is not None
        import torch

        dtype = torch.float32 if self.dtype is None else getattr(torch, self.dtype)
        pipeline = load_pipeline(
            resolve(self.base),
            dtype=dtype,
            allow_pickle=self.allow_pickle,
            variant=self.variant,
        )
        folder = Path(checkpoint.source)
        there = [name for name in COMPONENTS if (folder / name / "config.json").exists()]
        strange = [name for name in there if not isinstance(pipeline.components.get(name), torch.nn.Module)]
        if strange:
            raise ModelError(f"{checkpoint.source} holds {strange[0]}, which the base {self.base} does not have.")
        index = {name: _class_of(pipeline.components[name]) for name in there}
        with quiet_libraries():
            for part in parts_of(folder, index, self.allow_pickle, self.variant):
                pipeline.register_modules(**{part.name: open_part(part, dtype, self.allow_pickle).eval()})
        load_loras(pipeline, loras or None, allow_pickle=self.allow_pickle)
        pipeline.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        target = Target.from_pipeline(pipeline, name=checkpoint.name, distilled=self.distilled)
        target.notes.append(f"{checkpoint.name}: {' and '.join(there)} of the checkpoint, all else of {self.base}")
        return target


def _class_of(module: Any) -> list[str]:
    kind = type(module)
    return [kind.__module__.partition(".")[0], kind.__name__]
