"""diffmem bench: measure the methods on models with known memorization."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from diffmem.errors import UsageError

PLANTED = ("digits", "photos")


def bench(
    *,
    suite: str = "digits",
    scores: Annotated[tuple[str, ...], Parameter(name="--score", help="only these; may be repeated")] = (),
    data: Annotated[Path | None, Parameter(help="text-shortcut: folder with prompt lists")] = None,
    prediction: Annotated[
        Literal["epsilon", "v", "flow"] | None, Parameter(help="digits: the variant whose network gives this")
    ] = None,
    draws: Annotated[int, Parameter(help="noises per prompt")] = 4,
    seed: int = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure the methods on models with known memorization, live on this machine.

    Args:
        suite: digits, photos, digits-images (image scores), or text-shortcut (no model, prompt lists of yours).
        seed: root seed.
    """
    import inspect

    from diffmem.bench import SUITES
    from diffmem.cli.output import emit_table

    run = SUITES.get(suite)
    chosen: dict[str, Any] = {"scores": scores} if scores else {}
    chosen |= {name: value for name, value in (("data", data), ("prediction", prediction)) if value is not None}
    takes = inspect.signature(run).parameters
    unknown = [name for name in chosen if name not in takes]
    if unknown:
        raise UsageError(f"The suite {suite} has no option --{'score' if unknown[0] == 'scores' else unknown[0]}.")
    rows = run(draws=draws, seed=seed, silent=quiet or json, **chosen)
    shown = [c for c in rows[0] if c not in ("positives",)] if rows and suite in PLANTED else None
    emit_table(
        rows, shown, json=json, title=f"Suite {suite}" + (f", {draws} noises per prompt" if suite in PLANTED else "")
    )
    return 0
