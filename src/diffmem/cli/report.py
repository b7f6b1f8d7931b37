"""diffmem report: the report of a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diffmem.cli.options import GateOptions
from diffmem.cli.output import say
from diffmem.errors import UsageError

if TYPE_CHECKING:
    from diffmem.cli.gates import Gate
    from diffmem.experiments._run import Run

GATES = GateOptions()


def report(
    run: Path,
    *,
    out: Annotated[
        Path | None, Parameter(help="the HTML file to write; default: the page in the run directory")
    ] = None,
    redact: Annotated[
        Literal["none", "blur", "hash"] | None,
        Parameter(help="pictures: as they are, blurred, or left out; default: none in the run directory, else blur"),
    ] = None,
    hash_prompts: Annotated[bool, Parameter(negative="", help="show hashes instead of prompts")] = False,
    annex: Annotated[
        bool,
        Parameter(
            negative="", help="write the annex instead: what was tested and what not, for those who must show evidence"
        ),
    ] = False,
    safeguards: Annotated[Path | None, Parameter(help="with --annex: a run of diffmem mitigate on this model")] = None,
    gates: GateOptions = GATES,
) -> int:
    """Write the report of a run: one HTML file that needs no network and no script.

    A report of copies republishes training images: one that leaves the run directory is blurred unless you say
    otherwise.

    Args:
        run: the folder given to --out of the run.
    """
    from diffmem.experiments._run import open_run

    opened = open_run(run)
    conditions = gates.of(opened.summary)
    if safeguards is not None and not annex:
        raise UsageError("--safeguards is for the annex: give --annex too.")
    if annex:
        from diffmem.experiments.annex.page import write_annex

        say(f"{write_annex(opened, safeguards, out, hash_prompts)} (no pictures; evidence, not compliance)")
        return _gated(opened, conditions, gates)
    chosen = opened.redaction(redact, out)
    path = opened.report(chosen, hash_prompts=hash_prompts, out=out)
    pictures = {"none": "pictures as they are", "blur": "pictures blurred", "hash": "no pictures"}[chosen]
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB, {pictures})")
    return _gated(opened, conditions, gates)


def _gated(opened: Run, conditions: list[Gate], gates: GateOptions) -> int:
    """Hold the run to its conditions."""
    from diffmem.cli.gates import conclude

    if not conditions:
        return 0
    return conclude(opened.summary, conditions, gates.values(opened.path, opened.summary), gates.junit)
