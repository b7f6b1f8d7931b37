"""Once per run: is the model what it was declared to be, on the user's own images?"""

from __future__ import annotations

import math
from dataclasses import asdict

from diffmem.data.images import ImageSet
from diffmem.models.fit import FitResult
from diffmem.models.target import Target
from diffmem.runs.directory import RunDirectory
from diffmem.runs.facts import read_fact, write_fact

FACT = "fit"


def fit_once(target: Target, images: ImageSet | None, run: RunDirectory) -> list[str]:
    """Check a model's declaration and keep what came out as the fact `fit`; gives what a reader must know of it.

    Raises:
        CheckFailed: another declaration fits much better, and `target.despite_check` is not set.
    """
    known = read_fact(run.path, FACT)
    if known is None or known["passed"] is None:
        found = (
            FitResult(None, "Not checked on images: none were given.") if images is None else target.require_fit(images)
        )
        if found is None:
            return []
        known = asdict(found) | {"losses": [loss if math.isfinite(loss) else None for loss in found.losses]}
        write_fact(run.path, FACT, known)
    said = known["passed"] is False or known["warning"] or (known["passed"] is None and target.is_function)
    return [f"check of the model: {known['message']}"] if said else []
