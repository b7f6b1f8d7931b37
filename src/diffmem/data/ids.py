"""Ids of pictures and prompts: row numbers, and ids that occur again made unique."""

from __future__ import annotations

from collections.abc import Sequence

from diffmem.data.notes import count, named


def row_ids(number: int) -> list[str]:
    """Zero-padded row numbers, at least six digits."""
    width = max(6, len(str(max(number - 1, 0))))
    return [f"{i:0{width}d}" for i in range(number)]


def unique_ids(ids: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """The ids with `#2`, `#3`, … behind those that occur again, and a sentence that says so where any does."""
    seen: dict[str, int] = {}
    taken = set(ids)
    unique: list[str] = []
    for item in ids:
        seen[item] = seen.get(item, 0) + 1
        new = item
        while seen[item] > 1 and (new := f"{item}#{seen[item]}") in taken:
            seen[item] += 1
        unique.append(new)
    repeated = [item for item, times in seen.items() if times > 1]
    if not repeated:
        return unique, []
    example = repeated[0]
    rows = [str(i) for i, item in enumerate(ids, start=1) if item == example]
    text = (
        f"{count(len(repeated), 'id')} of {name} occur more than once ({named(repeated, 3)}; '{example}' in rows "
        f"{named(rows, 3)}): they are numbered {example}, {example}#2, …"
    )
    return unique, [text]
