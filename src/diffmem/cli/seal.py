"""diffmem seal: a run as one file that shows every later edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.output import say


def seal(
    run: Path,
    *,
    out: Annotated[
        Path | None, Parameter(help="the file to write; default: the folder's name followed by .sealed")
    ] = None,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
) -> int:
    """Write a run into one file that shows every later edit, and print its seal; keep that elsewhere.

    The file holds protocol, rows (with the generated images), facts and pages, and a chain of their hashes. Weights and
    indexes of training images stay out, and are named in it.

    Args:
        run: the folder given to --out of the run.
    """
    from diffmem.cli.output import emit_json, note
    from diffmem.experiments.seal.run import seal as seal_run

    made = seal_run(run, out)
    if json:
        emit_json(
            {"file": str(made.path), "seal": made.seal, "files": made.files, "left_out": dict(made.left_out)}
        )  # fmt: skip
        return 0
    for name, why in made.left_out.items():
        note(f"{name} is left out: {why}")
    say(f"Sealed  {made.path} ({made.files:,} files, {made.path.stat().st_size / 1e6:.1f} MB)")
    say(f"Seal    {made.seal}")
    note("keep the seal where the file's owner cannot change it (a mail, a register): it is what proves the file later")
    note("the file holds the generated images, and with copies training images")
    return 0
