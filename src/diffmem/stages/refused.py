"""Scores that were asked for and did not run, kept in the run so that `show` and the report say so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffmem.runs.facts import read_fact, write_fact

FACT = "refused"


def record_refused(run: Path, refused: Mapping[str, str]) -> None:
    """Add score label -> reason to the fact `refused`."""
    known = read_fact(run, FACT) or {}
    if refused and not refused.items() <= known.items():
        write_fact(run, FACT, known | dict(refused))
