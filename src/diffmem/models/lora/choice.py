"""Which LoRAs are asked for, and at what scale."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffmem.atomic import user_path
from diffmem.errors import UsageError

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Names that diffusers and peft give to the file; they say nothing about the LoRA."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_SCALED = re.compile(r"^(?P<file>.+):(?P<scale>[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)$")


@dataclass(frozen=True)
class LoraChoice:
    """One LoRA.

    Attributes:
        file: a file, a folder or a hub id.
        scale: what the change that it makes is multiplied with; None where none was asked for, which is 1.
    """

    file: str
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and (not math.isfinite(self.scale) or self.scale == 0):
            raise UsageError(
                f"The LoRA {self.file} has the scale {self.scale:g}; expected a number other than 0 (leave the LoRA "
                "out to audit the base)."
            )

    def __str__(self) -> str:
        return self.file if self.scale is None else f"{self.file}:{self.scale:g}"


Loras = (
    str
    | Path
    | LoraChoice
    | tuple[str | Path, float]
    | Sequence[str | Path | LoraChoice | tuple[str | Path, float]]
    | None
)
"""What a function that takes LoRAs takes: none, one, or a list of files and (file, scale); text may be "FILE:SCALE"."""


def choices(loras: Loras) -> tuple[LoraChoice, ...]:
    """LoRAs as they are asked for, as a tuple.

    Raises:
        UsageError: a scale that is no number other than 0, or the same LoRA twice.
    """
    if loras is None:
        return ()
    one = isinstance(loras, str | Path | LoraChoice) or (len(loras) == 2 and isinstance(loras[1], int | float))
    made = tuple(_choice(item) for item in ([loras] if one else loras))  # type: ignore[arg-type, union-attr]
    names = [choice.file for choice in made]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise UsageError(
            f"The LoRA {twice[0]} is given twice; give it once, with the sum of its scales ({twice[0]}:2)."
        )
    return made


def _choice(item: str | Path | LoraChoice | tuple[str | Path, float]) -> LoraChoice:
    if isinstance(item, LoraChoice):
        return item
    if isinstance(item, str | Path):
        text = str(item)
        scaled = _SCALED.match(text)
        if scaled and not _there(text):
            return LoraChoice(scaled["file"], float(scaled["scale"]))
        before, colon, said = text.rpartition(":")
        if colon and before and not _there(text) and _there(before):
            raise UsageError(
                f"The LoRA {before} has the scale {said!r}; expected a number other than 0, such as {before}:0.5."
            )
        return LoraChoice(text)
    try:
        file, scale = item
        return LoraChoice(str(file), float(scale))
    except (TypeError, ValueError) as problem:
        raise UsageError(f"{item!r} is no LoRA; expected a file or (file, scale).") from problem


def _there(text: str) -> bool:
    try:
        return user_path(text).exists()
    except (OSError, ValueError):
        return False  # no path at all, which is said where it is opened


def lora_name(lora: str | Path) -> str:
    """What to call a LoRA: its file's name, or its folder's where the file has none of its own."""
    path = Path(str(lora))
    if path.name in FILES:
        return path.parent.name or path.stem
    return path.stem if path.suffix in (".safetensors", *PICKLED) else path.name


def name_of(loras: Loras) -> str:
    """What these LoRAs add to a model's name: "+style+cat:0.5", or nothing."""
    return "".join(f"+{lora_name(c.file)}{'' if c.scale is None else f':{c.scale:g}'}" for c in choices(loras))
