"""The options that say who does the work of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diffmem.cli import verbs

if TYPE_CHECKING:
    from diffmem.runs.units import Runner


@Parameter(name="*", group=verbs.RARE)
@dataclass(frozen=True)
class RunnerOptions:
    """Who does the work."""

    runner: Annotated[
        str | None,
        Parameter(help="who does the work: ray starts a Ray cluster on this machine, ray:ADDRESS uses a running one"),
    ] = None
    workers: Annotated[
        int | None, Parameter(help="with --runner: number of workers; default: one per GPU, or per core")
    ] = None
    unit_seconds: Annotated[
        float | None,
        Parameter(help="with --runner: seconds after which a piece of work counts as stuck; default: 1800"),
    ] = None

    def open(self) -> Runner | None:
        """The runner; None for this process."""
        from diffmem.runs.runners import as_runner

        return as_runner(self.runner, self.workers, self.unit_seconds)


SPREAD = RunnerOptions()
