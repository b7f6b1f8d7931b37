"""diffmem compare: two runs on the same prompts, paired."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def compare(
    first: Path,
    second: Path,
    *,
    labels: Annotated[
        Literal["given", "measured"], Parameter(help="those of the prompt list, or what the first run's images copy")
    ] = "given",
    rate: Annotated[float, Parameter(help="false-positive rate")] = 0.01,
    seed: Annotated[int, Parameter(help="of the resampling")] = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Paired differences of two runs on the same prompts: copies, and the AUROC of every score that both have.

    Args:
        first: a run directory, for example of the base model.
        second: another, for example of the fine-tune, made with the same prompts and seed.
    """
    from diffmem.cli.output import emit_table, note
    from diffmem.experiments.evaluate.runs import compare_runs
    from diffmem.runs.manifest import read_manifest

    seeds = [_seeds(read_manifest(run).plan) for run in (first, second)]
    if seeds[0] != seeds[1]:
        note(f"the runs were made with other seeds ({seeds[0]} and {seeds[1]}): differences hold their noise too")
    rows = compare_runs(first, second, labels, rate, seed)
    emit_table(rows, json=json, title=f"{first} minus {second}, 95 % intervals")
    return 0


def _seeds(plan: dict) -> dict:  # type: ignore[type-arg]
    return {name: part["seed"] for name, part in plan.items() if isinstance(part, dict) and "seed" in part}
