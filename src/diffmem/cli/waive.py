"""diffmem waive: accept the pairs that a run calls copies, in somebody's name and until a date."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.options import need
from diffmem.errors import UsageError


def waive(
    run: Path,
    *,
    out: Annotated[Path | None, Parameter(help="file of waivers; waivers already in it are kept")] = None,
    owner: Annotated[str | None, Parameter(help="person who answers for these pairs")] = None,
    expires: Annotated[str | None, Parameter(help="last day on which they are accepted, YYYY-MM-DD")] = None,
    reason: Annotated[str, Parameter(help="why they are accepted")] = "",
    train_id: Annotated[
        tuple[str, ...], Parameter(negative="", help="only pairs with this training image; may be repeated")
    ] = (),
) -> int:
    """Accept the pairs that a run calls copies: a gate with --waivers FILE then fails on new ones only.

    The file holds both pictures of each pair at 32 x 32 pixels: like a report with pictures, it shows training images.

    Args:
        run: the run directory of an audit.
    """
    from diffmem.cli.output import note
    from diffmem.report.columns import read_prompts
    from diffmem.report.matches import judge, read_match_rows
    from diffmem.report.waived import called_pairs
    from diffmem.report.waivers import add_waivers
    from diffmem.report.waivers import waive as accept
    from diffmem.runs.manifest import read_manifest
    from diffmem.runs.store import RunStore

    file = need(out, "--out", "waivers need a file")
    if not owner or expires is None:
        raise UsageError("A waiver has an owner and an end: give --owner NAME and --expires YYYY-MM-DD.")
    try:
        end = date.fromisoformat(expires)
    except ValueError as problem:
        raise UsageError(f"--expires is {expires!r}; expected a day as YYYY-MM-DD.") from problem
    read_manifest(run)
    store = RunStore(run)
    rows = read_match_rows(store)
    fact, matches = judge(run, rows, read_prompts(store, rows))
    if fact is None or matches is None:
        raise UsageError(f"'{run}' searched no training set, so there is nothing to waive.")
    found, known = [], set()
    for number, generated, training in called_pairs(run, fact, matches):
        row = matches.row(number)
        known.add(row["train_id"])
        if not train_id or row["train_id"] in train_id:
            found.append(accept(generated, training, owner, end, reason, row["train_id"], row["prompt_id"]))
    missing = sorted({*train_id} - known)
    if missing:
        raise UsageError(
            f"No image is called a copy of {', '.join(missing)}; these are: {', '.join(sorted(known)[:20])}."
        )
    whole = add_waivers(file, found)
    note(f"{len(found)} pairs waived by {owner} until {end}; {file} holds {whole}")
    return 0
