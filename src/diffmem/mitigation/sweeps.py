"""The published sweep of each mitigation's main parameter, in this toolkit's units."""

from __future__ import annotations

SWEEPS: dict[str, tuple[str, ...]] = {
    "random-tokens": ("count=1", "count=2", "count=6", "count=8"),
    "replace": ("count=1", "count=4"),
    "word-repetition": ("count=1", "count=2", "count=6", "count=8"),
    "random-numbers": ("count=1", "count=2", "count=6", "count=8"),
    "wen": ("pull=0.413", "pull=0.517", "pull=0.62", "pull=0.723"),  # norms of 4 to 7 on SD 1.4; the default is 3
    "anisotropy": ("target=0", "target=0.1", "target=0.2", "target=0.413"),  # none published: about Wen's
    "han-sample": (
        "pull=0.072",
        "pull=0.093",
        "pull=0.114",
        "pull=0.134",
        "pull=0.155",
    ),  # norms of .7 to 1.5 on SD 1.4
    "transition-static": ("until=500", "until=700"),
    "opposite-guidance": ("scale=-1", "scale=-3", "scale=-5", "scale=-7", "scale=-9"),
    "ren": ("start=1.1", "start=1.15", "start=1.2", "start=1.3", "start=1.35", "start=1.5"),
}
"""Settings beside the default, which is always part of a sweep. Methods without a published sweep are not listed."""


def sweep_of(text: str) -> list[str]:
    """A mitigation as typed and, where it was typed without parameters, the settings of its sweep."""
    return [text] if ":" in text else [text, *(f"{text}:{setting}" for setting in SWEEPS.get(text, ()))]
