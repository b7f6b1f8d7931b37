"""What one condition of a robustness run gave, prompt by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diffmem.experiments._experiment import ArmResult
from diffmem.experiments._table import ArmTable


@dataclass
class Outcome:
    """One condition, without or with a mitigation.

    Attributes:
        hits: per prompt, whether each of its judged images is a copy.
        nearest: per prompt, the training image that most of its copies resemble; without copies, the one that most of its
            images are nearest to; None where nothing was matched.
        aligned: per prompt, how well each of its images shows what was asked, None where its words name nothing that the
            judge knows; empty where alignment is not judged.
        not_judged: images that failed, or are black or constant.
        status: "ok"; "refused" where the mitigation or sampler does not work so; "bypassed" where the mitigation cannot
            reach the condition; "missing" where it is not made yet.
        reason: why.
        nfe: network evaluations per image, None where unknown.
        seconds: per image.
    """

    hits: list[list[bool]] = field(default_factory=list)
    nearest: list[str | None] = field(default_factory=list)
    aligned: list[list[float | None]] = field(default_factory=list)
    not_judged: int = 0
    status: str = "ok"
    reason: str = ""
    nfe: float | None = None
    seconds: float | None = None


def outcome_of(result: ArmResult, base: Sequence[int], prompts: int, judged: bool) -> Outcome:
    """An arm's images by the prompt that they are about.

    Args:
        result: of the arm.
        base: per prompt of the arm, the number of the prompt whose wording it is.
        prompts: how many of those there are.
        judged: whether alignment was judged.
    """
    table = result.table
    if table is None or not table.made.any():
        problems = () if table is None else table.problem
        reason = result.reason or next((problem for problem in problems if problem), "no image was made")
        return Outcome(status="refused", reason=reason)
    about, cost = np.asarray(base)[table.prompt], result.cost or {}
    outcome = Outcome(
        not_judged=int((~table.judged).sum()), nfe=cost.get("nfe_per_image"), seconds=cost.get("seconds_per_image")
    )
    for prompt in range(prompts):
        rows = np.flatnonzero((about == prompt) & table.judged)
        outcome.hits.append([bool(table.copied[i]) for i in rows])
        outcome.nearest.append(_most_frequent(table, rows))
        if judged:
            values = [float(table.aligned[i]) for i in np.flatnonzero((about == prompt) & table.made)]
            outcome.aligned.append([None if np.isnan(value) else value for value in values])
    return outcome


def _most_frequent(table: ArmTable, rows: np.ndarray) -> str | None:
    copied = [name for i in rows if table.copied[i] and (name := table.train_id[i]) is not None]
    near = copied or [name for i in rows if (name := table.train_id[i]) is not None]
    return Counter(near).most_common(1)[0][0] if near else None
