"""How a measure came about, in the few words that stand under a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffmem.report.prose import count, number


def detail_of(components: Mapping[str, Any]) -> str | None:
    """Share of the cap of a volume, or how a search ended; None for measures that say neither."""
    share = components.get("share_of_cap")
    if share is not None:
        beyond = components.get("beyond_cap")
        more = f", {number(beyond)} of {number(components['k'])} directions beyond it" if beyond else ""
        return f"{100 * share:.0f} % of the cap{more}"
    status, steps = components.get("status"), components.get("steps")
    if status == "reached":
        fresh = components.get("fresh_passed")
        again = "" if fresh is None else f"; {count(fresh, 'fresh noise')} passed"
        return f"reached after {count(steps or 0, 'step')}{again}"
    if status == "not reached":
        near, beta = components.get("worst_similarity"), components.get("beta")
        came = "" if near is None or beta is None else f"; came to {near:.3f} of {beta:g}"
        return f"not reached in {count(steps or 0, 'step')}{came}"
    return None


def fitted_of(components: Mapping[str, Any]) -> str | None:
    """The prompt that an inversion recovered, None where none was fitted."""
    prompt = components.get("prompt")
    return prompt if isinstance(prompt, str) and prompt else None


def cap_of(components: Sequence[Mapping[str, Any]]) -> float | None:
    """The cap that all rows share; None where they have none, or several."""
    caps = {part.get("cap") for part in components}
    return float(cap) if len(caps) == 1 and (cap := caps.pop()) is not None else None
