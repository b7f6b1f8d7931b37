"""diffmem bench: measure the methods on models with known memorization."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from diffmem.errors import UsageError

PLANTED = ("digits", "photos")
PAPER_COLUMNS = (
    "model", "measure", "draws", "auroc", "auroc_low", "auroc_high", "tpr_at_1fpr", "seconds_per_10_prompts",
    "nfe_per_prompt", "gamma",
)  # fmt: skip


def bench(
    *,
    suite: str = "digits",
    scores: Annotated[tuple[str, ...], Parameter(name="--score", help="run only this score; may be repeated")] = (),
    data: Annotated[Path | None, Parameter(help="text-shortcut: folder with the prompt lists")] = None,
    prediction: Annotated[
        Literal["epsilon", "v", "flow"] | None, Parameter(help="digits: the variant whose network predicts this")
    ] = None,
    models: Annotated[
        tuple[str, ...],
        Parameter(
            help="anisotropy-paper: digits, digits-v, digits-flow, photos or MODEL=PROMPTS (labelled); default: the bundled",
            consume_multiple=True,
        ),
    ] = (),
    draws: Annotated[int, Parameter(help="noises per prompt")] = 4,
    seed: Annotated[int, Parameter(help="root seed of all randomness")] = 0,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
    quiet: Annotated[bool, Parameter(negative="", help="show no progress")] = False,
) -> int:
    """Measure the methods on models with known memorization, live on this machine.

    Args:
        suite: digits, photos, digits-images (image scores), anisotropy-paper (that paper's tables on any models), or
            text-shortcut (no model, prompt lists of yours).
    """
    import inspect

    from diffmem.bench import SUITES
    from diffmem.cli.output import emit_table

    run = SUITES.get(suite)
    chosen: dict[str, Any] = {"scores": scores} if scores else {}
    chosen |= {"models": models} if models else {}
    chosen |= {name: value for name, value in (("data", data), ("prediction", prediction)) if value is not None}
    takes = inspect.signature(run).parameters
    unknown = [name for name in chosen if name not in takes]
    if unknown:
        raise UsageError(f"The suite {suite} has no option --{'score' if unknown[0] == 'scores' else unknown[0]}.")
    rows = run(draws=draws, seed=seed, silent=quiet or json, **chosen)
    shown = [c for c in rows[0] if c not in ("positives",)] if rows and suite in PLANTED else None
    if suite == "anisotropy-paper":
        shown = list(PAPER_COLUMNS)
        rows = [dict.fromkeys(PAPER_COLUMNS) | row for row in rows]
    emit_table(
        rows, shown, json=json, title=f"Suite {suite}" + (f", {draws} noises per prompt" if suite in PLANTED else "")
    )
    return 0
