"""Which part of a checkpoint did it: each part that differs from the base put back, each LoRA left out, the autoencoder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffmem.copies.index import CopyIndex
from diffmem.data.prompts import Prompt
from diffmem.errors import UsageError
from diffmem.evaluation.watching import relative_gap
from diffmem.experiments._compare import compare, pairs, prompt_clusters
from diffmem.experiments._table import read_arm
from diffmem.experiments.monitor.checkpoints import Checkpoint
from diffmem.experiments.monitor.look import Watched, work_of
from diffmem.experiments.monitor.opening import Opening
from diffmem.models.lora import lora_name
from diffmem.models.model_image import convert, encode, model_image, to_pixels
from diffmem.models.target import Target

PARTS = "parts"
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}


@dataclass(frozen=True)
class Part:
    """A checkpoint with one part taken away.

    Attributes:
        name: of the part, in words.
        open: gives the model without it.
    """

    name: str
    open: Callable[[], Target]


def require_parts(opening: Opening, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint without a base, or one that a function builds: there is no part to put back."""
    if checkpoint.kind in ("function", "model") or opening.base is None:
        raise UsageError(
            "Which part of a checkpoint copies is asked by putting parts of its base back: give pipelines, LoRAs or components, "
            "and the base (--base)."
        )


def parts_of(opening: Opening, checkpoint: Checkpoint) -> Iterator[Part]:
    """Each LoRA of a stack left out, then each component that differs from the base put back to the base's.

    Raises:
        UsageError: a checkpoint without a base, or one that a function builds.
    """
    require_parts(opening, checkpoint)
    loras = [*opening.loras, *([checkpoint.source] if checkpoint.kind == "lora" else [])]
    for lora in loras if len(loras) > 1 else []:
        yield Part(f"the LoRA {lora_name(lora)}", lambda lora=lora: opening.open(checkpoint, without=lora))  # type: ignore[misc]
    base = opening.open(_as_base(opening)).pipeline
    changed = differing(opening.open(checkpoint).pipeline, base)
    for name in changed:
        yield Part(name, lambda name=name: _put_back(opening, checkpoint, name))  # type: ignore[misc]


def differing(pipeline: Any, base: Any) -> list[str]:
    """Names of the components whose weights are not those of the base."""
    found = []
    for name, part in pipeline.components.items():
        other = base.components.get(name)
        if isinstance(part, torch.nn.Module) and isinstance(other, torch.nn.Module) and not _equal(part, other):
            found.append(name)
    return found


def _equal(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(
        a[key].shape == b[key].shape and torch.equal(a[key].cpu(), b[key].cpu()) for key in a
    )


def _as_base(opening: Opening) -> Checkpoint:
    assert opening.base is not None
    return Checkpoint(opening.base, 0, "base", opening.base)


def _put_back(opening: Opening, checkpoint: Checkpoint, name: str) -> Target:
    """The checkpoint with one component of the bare base, a text encoder together with its tokenizer."""
    bare = replace(opening, loras=())
    pipeline, base = opening.open(checkpoint).pipeline, bare.open(_as_base(bare)).pipeline
    names = [name, *([TOKENIZERS[name]] if name in TOKENIZERS else [])]
    pipeline.register_modules(**{one: base.components[one] for one in names if one in base.components})
    return Target.from_pipeline(pipeline, name=f"{checkpoint.name}, {name} of the base", distilled=opening.distilled)


def part_row(name: str, whole: Path, without: Path, prompts: list[Prompt], index: CopyIndex) -> dict[str, Any]:
    """Copies of the checkpoint as it is and without a part, the same prompts and noises in pairs.

    Args:
        name: of the part.
        whole: run directory of the checkpoint.
        without: that of the arm without the part.
        prompts: of both.
        index: of the training images.
    """
    before, after = (read_arm(run, prompts, index) for run in (whole, without))
    a, b = pairs(before, after)
    judged = before.judged[a] & after.judged[b]
    a, b = a[judged], b[judged]
    clusters = prompt_clusters(prompts)[before.prompt[a]]
    found = compare(before.copied[a], after.copied[b], clusters, share=True)
    return {"part": name, "status": "ok", "reason": None, "pairs": found.pairs, **found.columns("copied")}


def autoencoder_row(target: Target, watched: Watched) -> dict[str, Any]:
    """Does the autoencoder alone know the training images? Its reconstruction error of training against held-out images."""
    row: dict[str, Any] = {"part": "autoencoder alone", "status": "not measured", "reason": None}
    denoiser = target.denoiser
    if denoiser is None or denoiser.space != "latent" or watched.heldout is None:
        why = "there are no held-out images" if watched.heldout is None else "the model has none"
        return row | {"reason": why}
    form = model_image(denoiser)
    errors: tuple[list[float], list[float]] = ([], [])
    count = len(watched.sample)
    own = (watched.train.by_id(name) for name in watched.sample)
    for place, items in enumerate((own, watched.heldout.items(0, count))):
        for item in items:
            if item.image is None:
                continue
            pixels = to_pixels(convert(item.image, form)[0])[None]
            with torch.no_grad():
                again = denoiser.decode(encode(denoiser, pixels).to(denoiser.device, denoiser.dtype)).float().cpu()
            errors[place].append(float(torch.log((again - pixels).square().mean().clamp(min=1e-12))))
    if not errors[0] or not errors[1]:
        return row | {"reason": "no image could be read"}
    gap, low, high = relative_gap(*errors)
    return row | {
        "status": "ok",
        "gap": gap,
        "gap_low": low,
        "gap_high": high,
        "pairs": len(errors[0]) + len(errors[1]),
    }


def asked_of(fact: Mapping[str, Any]) -> tuple[list[Prompt], list[tuple[Prompt, int]]]:
    """The prompts that a checkpoint was asked for, and (prompt, draw) of each image."""
    prompts = [Prompt(name, text) for name, text in fact["look"]["prompts"]]
    return prompts, work_of(prompts, fact["look"]["draws"])
