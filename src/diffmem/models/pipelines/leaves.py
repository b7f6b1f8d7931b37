"""The arguments of a network's call as named leaves: which belong to one row each, and how rows are put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

Kind = Literal["rows", "columns", "list", "whole"]
"""rows: a tensor whose first dimension is the row. columns: its second is (HiDream's [layer, row, ...]). list: one element
per row. whole: the same for all rows."""


def leaves(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Values by their path ("added_cond_kwargs.text_embeds"); dicts and tuples are opened, lists are not."""
    return dict(_walk(arguments, ""))


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _walk(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, tuple) and value:
        for i, inner in enumerate(value):
            yield from _walk(inner, f"{path}.{i}")
    else:
        yield path, value


def rebuilt(arguments: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the same structure with other leaves."""

    def fill(value: Any, path: str) -> Any:
        if isinstance(value, Mapping) and value:
            return {name: fill(inner, f"{path}.{name}" if path else str(name)) for name, inner in value.items()}
        if isinstance(value, tuple) and value:
            return tuple(fill(inner, f"{path}.{i}") for i, inner in enumerate(value))
        return values[path]

    return {name: fill(value, name) for name, value in arguments.items()}


def kind_of(once: Any, twice: Any, rows: int) -> Kind | None:
    """How a leaf depends on the batch, from a call of `rows` rows and one of twice as many; None where it is unclear."""
    if isinstance(once, torch.Tensor) and isinstance(twice, torch.Tensor):
        if once.shape == twice.shape:
            return "whole"
        grown = once.ndim > 0 and len(once) == rows and len(twice) == 2 * rows
        if grown and once.shape[1:] == twice.shape[1:]:
            return "rows"
        wider = once.ndim > 1 and once.shape[1] == rows and twice.shape[1] == 2 * rows
        return "columns" if wider and once[:, 0].shape == twice[:, 0].shape else None
    if isinstance(once, list) and isinstance(twice, list) and len(once) == rows and len(twice) == 2 * rows:
        return "list"
    return "whole" if type(once) is type(twice) and equal(once, twice) else None


def row_of(value: Any, kind: Kind, row: int) -> Any:
    """What one row of a call was given."""
    if kind == "columns":
        return value[:, row]
    return value if kind == "whole" else value[row]


def joined(rows: Sequence[Any], kind: Kind) -> Any:
    """One argument for several rows, from what each was given; a whole one is the first's."""
    if kind == "list":
        return list(rows)
    if kind == "whole":
        return rows[0]
    return torch.stack(list(rows), dim=1 if kind == "columns" else 0)


def equal(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    """Whether two leaves are the same, tensors up to rounding."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        difference = (a.double() - b.double()).norm()
        return bool(difference <= tolerance * b.double().norm().clamp_min(1e-12))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return False
    return bool(a == b)


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> set[str]:
    """Paths of the leaves that are not the same in both."""
    return {path for path in a.keys() | b.keys() if path not in a or path not in b or not equal(a[path], b[path])}


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors of a leaf: itself, or the elements of a list."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [v for v in value if isinstance(v, torch.Tensor)] if isinstance(value, list) else []
