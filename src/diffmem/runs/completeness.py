"""Which rows a run had when its stages were done: rows that are gone since, or have come from elsewhere, are said."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffmem.runs.facts import read_fact, update_fact

if TYPE_CHECKING:
    from diffmem.runs.store import RunStore

FACT = "rows"


def record_rows(store: RunStore, stages: Sequence[str]) -> None:
    """Keep number and hash of the keys of these stages, which are complete now. Cost: reads their keys."""
    if stages:
        found = {stage: _described(store, stage) for stage in stages}
        update_fact(store.path, FACT, lambda before: (before or {}) | found)


def row_changes(store: RunStore) -> tuple[str, ...]:
    """One sentence per stage whose rows are not those that it had when it was done.

    Raises:
        DataError: what was kept of them is damaged.
    """
    found = []
    for stage, kept in (read_fact(store.path, FACT) or {}).items():
        now = _described(store, stage)
        if now == kept:
            continue
        missing = kept["rows"] - now["rows"]
        if missing > 0:
            text = f"{missing} of {kept['rows']} rows of '{stage}' that '{store.path}' had are missing"
            found.append(f"{text}: the same command computes them again.")
        else:
            found.append(
                f"'{store.path}' has other rows of '{stage}' than when that was done ({now['rows']}; then {kept['rows']}): a "
                "command that goes on with it was stopped, or parts of another run were laid there."
            )
    return tuple(found)


def _described(store: RunStore, stage: str) -> dict[str, Any]:
    keys = sorted(store.finished(stage))
    return {"rows": len(keys), "keys": hashlib.sha256(b"".join(keys)).hexdigest()}
