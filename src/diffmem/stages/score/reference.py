"""Where a prompt's score lies among those of reference captions, which no model was trained to reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diffmem.data.prompts import Prompt, PromptList
from diffmem.errors import UsageError
from diffmem.models.target import Target
from diffmem.stages.score.score import score

KIND = "reference"


def percentiles(
    target: Target, prompts: PromptList, label: str, reference: PromptList, *, out: Path | None = None, **how: Any
) -> tuple[dict[str, float], int]:
    """The share of reference captions that score lower than each prompt.

    Both are scored in one run of their own with the same noises, so that scores which stand on all prompts of a run
    (standardized ones) are comparable, too. This scores the prompts a second time.

    Args:
        target: the model.
        prompts: whose percentiles are asked for.
        label: of the score.
        reference: ordinary captions; 99 let the 99th percentile be told.
        out: folder of that run; None: a temporary one.
        how: as `score` takes it: draws, seed, noise, micro_batch, ...

    Returns:
        Prompt id -> share in [0, 1], without prompts that have no value; and how many reference captions have one.

    Raises:
        UsageError: no reference caption has a value.
    """
    mine = [Prompt(f"prompt/{p.id}", p.text, p.label, problem=p.problem) for p in prompts]
    others = [Prompt(f"{KIND}/{p.id}", p.text, problem=p.problem) for p in reference]
    result = score(target, PromptList((*mine, *others), prompts.source), [label], out=out, **how)
    values = {key: float(np.mean(draws)) for key, draws in result.values(label).items()}
    known = np.sort([value for key, value in values.items() if key.startswith(f"{KIND}/")])
    if not len(known):
        reason = next(iter(result.refused.values()), "see the rows of the run")
        raise UsageError(f"No reference caption has a value of {label}: {reason}. Give captions that this model takes.")
    found = {
        key.removeprefix("prompt/"): float(np.searchsorted(known, value, side="left") / len(known))
        for key, value in values.items()
        if key.startswith("prompt/")
    }
    return found, len(known)
