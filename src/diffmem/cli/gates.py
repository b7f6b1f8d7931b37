"""`--fail-if`: conditions on what a run found, so that a model's release can be gated in CI."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffmem.errors import GateTripped, NothingJudged, UsageError

if TYPE_CHECKING:
    from diffmem.runs.summary import Summary

_CONDITION = re.compile(r"^\s*([\w.]+)\s*(>=|<=|==|!=|>|<)\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*$", re.IGNORECASE)
_OPERATORS = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ALIASES = {"copies": "copies.prompts_copied", "errors": "images.errors"}


def parse_gate(text: str) -> tuple[str, str, float]:
    """`copies>0` -> (name, operator, number); UsageError if it is no condition."""
    found = _CONDITION.match(text)
    if found is None:
        raise UsageError(f'--fail-if takes NAME>NUMBER (also >=, <, <=, ==, !=), such as "copies>0", but got {text!r}.')
    return found[1], found[2], float(found[3])


def conclude(summary: Summary, gates: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> int:
    """How a verb ends: 0, or an error where nothing could be judged (exit code 3) or a gate tripped (1).

    Args:
        summary: of the run.
        gates: conditions, see `check_gates`.
        values: what the gates read, in place of the summary itself.

    Raises:
        NothingJudged: the run gave no value at all. GateTripped, UsageError: see `check_gates`.
    """
    reason = summary.nothing_judged()
    if reason is not None:
        raise NothingJudged(f"Nothing could be judged: {reason}")
    check_gates(gates, summary.as_dict() if values is None else values)
    return 0


def check_gates(gates: Sequence[str], summary: Mapping[str, Any]) -> None:
    """Raise GateTripped naming every condition that holds.

    Args:
        gates: conditions; a name is a number of the summary by its path (`copies.images_copied`), or `copies` for the
            prompts that copy and `errors` for images that failed.
        summary: what `diffmem show RUN --json` prints.

    Raises:
        UsageError: an unknown name (with the closest one), or a number that this run did not compute. A gate that cannot
            be read never passes silently.
        GateTripped: exit code 1.
    """
    numbers = _numbers(summary)
    tripped = []
    for gate in gates:
        name, sign, limit = parse_gate(gate)
        path = _ALIASES.get(name, name)
        if path not in numbers:
            known = [*_ALIASES, *numbers]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"--fail-if {gate!r}: this run has no number '{name}'.{hint} It has: {', '.join(known)}.")
        if _OPERATORS[sign](numbers[path], limit):
            tripped.append(f"{name} is {numbers[path]:g} ({gate.strip()})")
    if tripped:
        raise GateTripped("The gate tripped: " + "; ".join(tripped) + ".")


def _numbers(summary: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping) and key not in ("plan", "stages"):
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found
