"""Who does units of work: this process where no runner is named, or a Ray cluster."""

from __future__ import annotations

from pathlib import Path

from diffmem.errors import UsageError
from diffmem.runs.ray_runner import RayRunner
from diffmem.runs.units import Runner


def as_runner(
    runner: Runner | str | None, workers: int | None = None, unit_seconds: float | None = None
) -> Runner | None:
    """The runner of a name: None for this process, `ray` for a cluster of its own, `ray:ADDRESS` for one that is there.

    Args:
        runner: a name, or a runner as it is.
        workers: how many; by default one per GPU, or per core where there is none.
        unit_seconds: after which a unit counts as stuck.

    Raises:
        UsageError: no such runner, or Ray is not installed.
    """
    if runner is None:
        if workers is not None or unit_seconds is not None:
            raise UsageError("Workers and the time limit of a unit belong to a runner: give it too (--runner ray).")
        return None
    if not isinstance(runner, str):
        return runner
    name, _, address = runner.partition(":")
    if name != "ray":
        raise UsageError(f"There is no runner '{runner}'; expected ray, or ray:ADDRESS of a cluster (ray:auto).")
    return RayRunner(address or None, workers, *(() if unit_seconds is None else (unit_seconds,)))


def require_folder(runner: Runner | str | None, out: str | Path | None) -> Runner | None:
    """The runner; UsageError where its workers would share no folder."""
    found = as_runner(runner)
    if found is not None and out is None:
        raise UsageError("A runner's workers write to the run directory, which must be named: give it (--out).")
    return found
