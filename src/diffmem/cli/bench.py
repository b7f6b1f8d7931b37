"""diffmem bench: measure the methods on models with known memorization."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def bench(
    *,
    suite: str = "digits",
    scores: Annotated[tuple[str, ...], Parameter(name="--score", help="only these; may be repeated")] = (),
    draws: Annotated[int, Parameter(help="noises per prompt")] = 4,
    seed: int = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure the methods on models with known memorization, live on this machine.

    Args:
        suite: digits.
        seed: root seed.
    """
    from diffmem.bench import SUITES
    from diffmem.cli.output import emit_table

    run = SUITES.get(suite)
    chosen = {"scores": scores} if scores else {}
    rows = run(draws=draws, seed=seed, silent=quiet or json, **chosen)
    emit_table(rows, json=json, title=f"Suite {suite}, {draws} noises per prompt")
    return 0
