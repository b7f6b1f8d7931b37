"""A LoRA file against the model that it is loaded into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmem.data.images import ImageSet
from diffmem.data.prompts import PromptList
from diffmem.experiments._run import Run
from diffmem.experiments.audit.run import audit
from diffmem.models.lora import Loras
from diffmem.models.target import Target


def audit_lora(
    source: str | Path,
    lora: Loras,
    prompts: PromptList | str | Path | Sequence[str],
    train: ImageSet | str | Path | None = None,
    *,
    out: str | Path,
    opening: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """Audit a LoRA and its base on the same prompts and noises: what does the LoRA leak that the base does not?

    Args:
        source: the base, as in `Target.from_pretrained`.
        lora: the LoRA, with a scale or several, as `Target.from_pretrained` takes them.
        prompts: as in `audit`.
        train: the LoRA's training images, as in `audit`.
        out: a folder; `out/base` and `out/lora` become run directories, and the same call resumes both.
        opening: further arguments of `Target.from_pretrained` (device, dtype, ...).
        settings: further arguments of `audit` (scores, draws, images_per_prompt, seed, sampling, ...).

    Returns:
        The run; its arms are "base" and "lora". Cost: twice an audit; only one of the models is in memory at a time.
    """
    more = dict(opening or {})
    return audit(
        lambda: Target.from_pretrained(source, lora=lora, **more), prompts, train,
        base=lambda: Target.from_pretrained(source, **more), out=out, **settings,
    )  # fmt: skip
