"""diffmem report: the report of a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from diffmem.cli.options import GateOptions
from diffmem.cli.output import say

GATES = GateOptions()


def report(
    run: Path,
    *,
    out: Annotated[Path | None, Parameter(help="the file; default: the page in the run directory")] = None,
    redact: Annotated[
        Literal["none", "blur", "hash"] | None,
        Parameter(help="pictures: as they are, blurred, or left out; default: none in the run directory, else blur"),
    ] = None,
    hash_prompts: Annotated[bool, Parameter(negative="", help="show hashes instead of prompts")] = False,
    gates: GateOptions = GATES,
) -> int:
    """Write the report of a run: one HTML file that needs no network and no script.

    A report of copies republishes training images: one that leaves the run directory is blurred unless you say
    otherwise.

    Args:
        run: the folder given to --out of the run.
    """
    from diffmem.cli.gates import conclude
    from diffmem.experiments._run import open_run

    opened = open_run(run)
    conditions = gates.of(opened.summary)
    chosen = opened.redaction(redact, out)
    path = opened.report(chosen, hash_prompts=hash_prompts, out=out)
    pictures = {"none": "pictures as they are", "blur": "pictures blurred", "hash": "no pictures"}[chosen]
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB, {pictures})")
    if not conditions:
        return 0
    return conclude(opened.summary, conditions, gates.values(opened.path, opened.summary), gates.junit)
