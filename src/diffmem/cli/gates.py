"""`--fail-if`: conditions on what a run found, so that a model's release can be gated in CI."""

from __future__ import annotations

import difflib
import operator
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from diffmem.errors import DiffmemError, GateTripped, NothingJudged, UsageError

if TYPE_CHECKING:
    from diffmem.runs.summary import Summary

_CONDITION = re.compile(r"^\s*([\w.]+)\s*(>=|<=|==|!=|>|<)\s*(\S(?:.*\S)?)\s*$")
_NUMBER = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?\s*%?$", re.IGNORECASE)
_OPERATORS = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
ALIASES = {
    "verdict": "verdict.state", "copies": "copies.prompts_copied", "copies.rate": "verdict.share",
    "copies.rate.low": "verdict.share.low", "copies.rate.high": "verdict.share.high", "excess": "verdict.excess",
    "excess.low": "verdict.excess.low", "excess.high": "verdict.excess.high", "bound": "verdict.bound",
    "confirmed": "verdict.confirmed", "errors": "images.errors", "precision": "review.precision",
    "precision.low": "review.precision.low", "precision.high": "review.precision.high", "kappa": "review.kappa",
}  # fmt: skip
"""Short names of what gates read; docs/gates.md holds the same table."""
WORDS: dict[str, tuple[str, ...]] = {
    "check": ("passed", "failed", "not run"), "calibration": ("calibrated", "uncalibrated", "not searched"),
}  # fmt: skip
"""Words that are made of a summary for gates, beside the words that it holds itself."""
_OF_COPIES = ("verdict", "copies")
Value = float | str


@dataclass(frozen=True)
class Gate:
    """A condition; `limit` is a number (a percentage as a share) or a word."""

    text: str
    name: str
    sign: str
    limit: Value

    @property
    def path(self) -> str:
        """Where the value lies in the summary."""
        return ALIASES.get(self.name, self.name)


def parse_gate(text: str, about: type[Summary] | None = None) -> Gate:
    """A condition from what was typed.

    Args:
        text: such as `verdict==reproduces`, `copies.rate>5%`, `errors>0`.
        about: the summary that it will be read from; refuses names and words that this can never hold.

    Raises:
        UsageError: it is no condition, or names nothing of `about`, with the closest name.
    """
    found = _CONDITION.match(text)
    if found is None:
        raise UsageError(
            '--fail-if takes a condition such as "verdict==reproduces", "copies.rate>5%" or "errors>0" (>, >=, <, <=, '
            f"==, !=), but got {text!r}."
        )
    name, sign, typed = found.groups()
    limit: Value = typed
    if _NUMBER.match(typed):
        limit = float(typed.rstrip("% ")) / (100 if typed.endswith("%") else 1)
    gate = Gate(text.strip(), name, sign, limit)
    if isinstance(limit, str) and sign not in ("==", "!="):
        raise UsageError(f"--fail-if {text!r}: a word is compared by == or !=, a number looks like 5, 0.05 or 5%.")
    if about is not None:
        _require_known(gate, about)
    return gate


def parse_gates(texts: Sequence[str], about: type[Summary] | None) -> list[Gate]:
    """All conditions, before any work is done."""
    return [parse_gate(text, about) for text in texts]


def conclude(
    summary: Summary,
    gates: Sequence[Gate] = (),
    values: Mapping[str, Any] | None = None,
    junit: Path | None = None,
) -> int:
    """How a verb ends: 0, or an error where nothing could be judged (exit code 3) or a gate tripped (1).

    Args:
        summary: of the run.
        gates: conditions, see `check_gates`.
        values: what the gates read, in place of the summary itself.
        junit: file for the outcome of each gate as JUnit XML; also written where the outcome is an error.

    Raises:
        NothingJudged: the run gave no value at all. GateTripped, NothingJudged, UsageError: see `check_gates`.
    """
    read = summary.as_dict() if values is None else values
    outcomes: list[tuple[Gate, DiffmemError | None]] = []
    reason = summary.nothing_judged()
    for gate in gates:
        try:
            if reason is not None:
                raise NothingJudged(f"Nothing could be judged: {reason}")
            check_gates([gate], read)
            outcomes.append((gate, None))
        except DiffmemError as problem:
            outcomes.append((gate, problem))
    if junit is not None:
        from diffmem.cli.junit import write_junit

        write_junit(junit, outcomes, summary.headline)
    if reason is not None:
        raise NothingJudged(f"Nothing could be judged: {reason}")
    problems = [problem for _, problem in outcomes if problem is not None]
    tripped = [str(problem) for problem in problems if isinstance(problem, GateTripped)]
    if tripped:
        raise GateTripped("The gate tripped: " + "; ".join(tripped) + ".")
    if problems:
        raise problems[0]
    return 0


def check_gates(gates: Sequence[Gate], summary: Mapping[str, Any]) -> None:
    """Raise GateTripped at the first condition that holds.

    Args:
        gates: conditions.
        summary: what `diffmem show RUN --json` prints.

    Raises:
        UsageError: a name that this summary does not have.
        NothingJudged: a value that this run did not compute; or a gate on copies that does not hold while the verdict is
            `unknown`. A gate that cannot be read never passes.
        GateTripped: exit code 1.
    """
    values = readable_values(summary)
    verdict = summary.get("verdict") or {}
    for gate in gates:
        if gate.path not in values and not _is_absent(gate.path, values):
            raise _no_such_name(gate, [*ALIASES, *values])
        value = values.get(gate.path)
        if value is None:
            raise NothingJudged(
                f"--fail-if {gate.text!r}: this run has no value for '{gate.name}', so it passes no gate."
            )
        if isinstance(value, str) != isinstance(gate.limit, str):
            raise UsageError(f"--fail-if {gate.text!r}: '{gate.name}' is {value!r} and cannot be compared with this.")
        if _OPERATORS[gate.sign](value, gate.limit):
            raise GateTripped(f"{gate.name} is {value if isinstance(value, str) else format(value, 'g')} ({gate.text})")
        if gate.path.startswith(_OF_COPIES) and verdict.get("state") == "unknown":
            raise NothingJudged(
                f"--fail-if {gate.text!r} does not hold, but the verdict is unknown, and an unknown passes no gate on copies. "
                f"{verdict['sentence']}"
            )


def _is_absent(path: str, values: Mapping[str, Value | None]) -> bool:
    """Whether a part of the summary that would hold this value, or its interval, is null in this run."""
    parts = path.split(".")
    above = [".".join(parts[:length]) for length in range(1, len(parts))]
    return any(name in values and values[name] is None for name in (*above, *(f"{name}_interval" for name in above)))


def readable_values(summary: Mapping[str, Any]) -> dict[str, Value | None]:
    """Dotted name -> number or word, of everything in a summary that a gate can read; None where it has no value."""
    found = _flat(summary)
    if "check" in summary:
        check = summary["check"]
        found["check"] = "not run" if check is None else "passed" if check["passed"] else "failed"
    if "copies" in summary and (summary["copies"] is None or "calibrated" in summary["copies"]):
        copies = summary["copies"]
        found["calibration"] = (
            "not searched" if copies is None else "calibrated" if copies["calibrated"] else "uncalibrated"
        )
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Value | None]:
    found: dict[str, Value | None] = {}
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, Mapping) and key not in ("plan", "stages"):
            found |= _flat(value, f"{name}.")
        elif isinstance(value, str) or value is None:
            found[name] = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
        elif _is_interval(key, value):
            found |= {
                f"{name.removesuffix('_interval')}.{end}": v for end, v in zip(("low", "high"), value, strict=True)
            }
    return found


def _is_interval(key: str, value: Any) -> bool:
    return key.endswith("interval") and isinstance(value, list | tuple) and len(value) == 2


def known_names(about: type[BaseModel], prefix: str = "") -> dict[str, tuple[str, ...] | None]:
    """Names that a summary of this class can have, with the words that each may be; None: a number, or any text.

    A name that ends in "." stands for everything below it.
    """
    found: dict[str, tuple[str, ...] | None] = {}
    for key, field in about.model_fields.items():
        name = prefix + key
        for kind in _alternatives(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= known_names(kind, f"{name}.")
            elif get_origin(kind) is Literal:
                found[name] = tuple(str(word) for word in get_args(kind))
            elif kind in (int, float, str):
                found[name] = None
            elif get_origin(kind) is dict:
                found[f"{name}."] = None
            elif get_origin(kind) is tuple and key.endswith("interval"):
                found |= {f"{name.removesuffix('_interval')}.{end}": None for end in ("low", "high")}
    return found


def _alternatives(annotation: Any) -> list[Any]:
    """The types that a field may have, without what only annotates them."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def _require_known(gate: Gate, about: type[Summary]) -> None:
    names = known_names(about)
    if "check." in names:
        names |= WORDS
    if gate.path not in names and not any(name.endswith(".") and gate.path.startswith(name) for name in names):
        raise _no_such_name(gate, [*(a for a, path in ALIASES.items() if path in names), *names])
    words = names.get(gate.path)
    if words is not None and gate.limit not in words:
        close = difflib.get_close_matches(str(gate.limit), words, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UsageError(f"--fail-if {gate.text!r}: '{gate.name}' is one of {', '.join(words)}.{hint}")


def _no_such_name(gate: Gate, known: Sequence[str]) -> UsageError:
    close = difflib.get_close_matches(gate.name, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    short = ", ".join(name for name in known if name in ALIASES or name in WORDS)
    return UsageError(
        f"--fail-if {gate.text!r}: this run has nothing called '{gate.name}'.{hint} It has {short or 'no short names'}, and "
        "every number of summary.json by its path (docs/gates.md)."
    )
