"""diffmem review: people label the pairs of a run in a browser, or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from diffmem.cli.output import say
from diffmem.cli.verbs import RARE
from diffmem.errors import UsageError


def review(
    run: Path,
    *,
    reviewer: Annotated[str | None, Parameter(help="name of the person who labels")] = None,
    sample: Annotated[
        int | None,
        Parameter(
            help="how many images below the threshold are drawn at random; default: those drawn before, else 200"
        ),
    ] = None,
    seed: Annotated[int | None, Parameter(group=RARE, help="seed of the random sample")] = None,
    port: Annotated[int, Parameter(group=RARE, help="port of the page; 0 takes a free one")] = 0,
    open_page: Annotated[bool, Parameter(name="--open", negative="", help="open the page in the browser too")] = False,
    set_threshold: Annotated[
        float | Literal["calibrated"] | None,
        Parameter(
            help="set the threshold of a copy to the lowest one whose precision the labels show to be at least this, or "
            "back to the calibrated one; then end"
        ),
    ] = None,
    csv: Annotated[Path | None, Parameter(help="write the labels of all reviewers to this file; then end")] = None,
    add: Annotated[Path | None, Parameter(help="add the labels of a file that --csv wrote; then end")] = None,
) -> int:
    """Label the pairs of a run, every called copy and a random sample of the others, on a page in the browser.

    The page is served to this machine alone, at an address with a random token, until Ctrl-C. Each label is in the run before
    the next picture is shown; diffmem show and report count it.

    Args:
        run: the folder of a run whose images were matched.
    """
    if csv is not None or add is not None or set_threshold is not None:
        for name, value in (("--reviewer", reviewer), ("--sample", sample), ("--seed", seed)):
            if value is not None:
                raise UsageError(f"{name} belongs to the page, which --csv, --add and --set-threshold do not open.")
        _exchange(run, csv, add)
        if set_threshold is not None:
            say(_set_threshold(run, set_threshold))
        return 0
    from diffmem.experiments.review.serve import review as serve

    if reviewer is None:
        raise UsageError("--reviewer is missing: every label names who gave it.")
    serve(run, reviewer, sample=sample, seed=seed, port=port, open_page=open_page, tell=say)
    return 0


def _set_threshold(run: Path, target: float | Literal["calibrated"]) -> str:
    from diffmem.experiments.review.session import folder_to_review, judged
    from diffmem.report.review.summary import read_reviewed
    from diffmem.report.review.threshold import reset_threshold, set_threshold

    folder = folder_to_review(run)
    if isinstance(target, str):
        return reset_threshold(folder)
    if not 0 < target < 1:
        raise UsageError(f"--set-threshold is {target}; expected a precision between 0 and 1, or 'calibrated'.")
    fact, matches = judged(folder)
    return set_threshold(folder, fact, matches, read_reviewed(folder, fact, matches), target)


def _exchange(run: Path, csv: Path | None, add: Path | None) -> None:
    from diffmem.cli.output import note
    from diffmem.errors import DataError
    from diffmem.experiments.review.session import folder_to_review, reattach
    from diffmem.report.review.csv_file import import_labels, write_labels
    from diffmem.report.review.labels import read_labels
    from diffmem.runs.store import RunStore

    folder = folder_to_review(run)
    if add is not None:
        found = import_labels(RunStore(folder), add)
        say(f"{found.added} labels added, {found.known} known already, {found.empty} rows without a category left out")
        for text in found.problems[:20]:
            note(f"left out: {text}")
        if len(found.problems) > 20:
            note(f"left out: {len(found.problems) - 20} more rows")
        reattach(folder)
        if found.problems and not found.added and not found.known:
            raise DataError(f"No row of '{add}' is a label.")
    if csv is not None:
        say(f"{csv}: {write_labels(csv, read_labels(folder).current)} labels")
