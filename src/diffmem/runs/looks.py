"""Which looks at an audit were planned, which were made, and the error that each may spend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmem.errors import IncompatibleRun
from diffmem.runs.asked import asked_draws
from diffmem.runs.facts import read_fact, write_fact

FACT = "looks"


def plan_run(run: Path, levels: Mapping[int, float]) -> None:
    """Keep the plan of a run before its first look.

    Args:
        run: the run directory.
        levels: images per prompt at each look -> level of its test.

    Raises:
        IncompatibleRun: the run was looked at without a plan, or has another.
    """
    fact, plan = read_fact(run, FACT), {str(n): level for n, level in levels.items()}
    if fact is None:
        write_fact(run, FACT, {"plan": plan, "made": []})
    elif fact["plan"] != plan:
        known = "was looked at without a plan" if fact["plan"] is None else f"has the looks {', '.join(fact['plan'])}"
        raise IncompatibleRun(
            f"'{run}' {known}: its error is spent by that. Plan before the first look: give another --out (and another "
            "--seed, for fresh images)."
        )


def record_look(run: Path, images_per_prompt: int) -> None:
    """Note that the verdict is looked at with so many images per prompt."""
    fact: dict[str, Any] = read_fact(run, FACT) or {"plan": None, "made": []}
    if images_per_prompt not in fact["made"]:
        write_fact(run, FACT, fact | {"made": [*fact["made"], images_per_prompt]})


def level_of(run: Path, level: float) -> float:
    """The level of the test at the look that counts: `level` at the first without a plan, the plan's own, else 0: spent."""
    fact, images = read_fact(run, FACT), asked_draws(run)
    if fact is None or images is None:
        return level
    if fact["plan"] is not None:
        return float(fact["plan"].get(str(images), 0.0))
    return level if images == (fact["made"] or [images])[0] else 0.0
