"""The table of methods, made from the registries: nothing here is written twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffmem.scores import SCORES
from diffmem.scores.base import About
from diffmem.scores.spec import parameters_class


def all_methods() -> list[About]:
    """Every registered score, as it describes itself."""
    return [SCORES.get(name).about for name in SCORES]


def one_method(name: str) -> dict[str, Any]:
    """One method in full, with its parameters and their defaults."""
    cls = SCORES.get(name)
    about = cls.about
    parameters = parameters_class(cls)
    described = {
        field: f"{info.default!r}" + (f" ({info.description})" if info.description else "")
        for field, info in parameters.model_fields.items()
    }
    return {
        "name": about.name, "summary": about.summary, "formula": about.formula, "reference": about.reference,
        "sees": about.access, "NFE": about.cost, "fails when": about.fails_when, "unit": about.unit,
        "version": str(cls.version), **{f"  {field}": text for field, text in described.items()},
    }  # fmt: skip


def markdown_table(methods: Sequence[About]) -> str:
    """The table of methods as Markdown."""
    lines = ["| method | what it is | sees | NFE per prompt and noise | reference |", "|---|---|---|---|---|"]
    lines += [f"| `{m.name}` | {m.summary} | {m.access} | {m.cost} | {m.reference} |" for m in methods]
    return "\n".join(lines)
