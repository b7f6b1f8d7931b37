"""Versions of other packages with which diffmem gives wrong numbers without a word: refused before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from diffmem.errors import UsageError

SILENTLY_WRONG: Mapping[str, tuple[tuple[int, int], str]] = {
    "transformers": ((5, 6), "a text encoder gets random weights, and nothing memorized is found"),
    "scipy": ((1, 12), "an exception inside a search is swallowed, and nothing memorized is found"),
}
"""Package -> the first version that works, and what goes wrong before it."""


@cache
def require_versions() -> None:
    """Look at the installed versions once per process; imports none of the packages.

    Raises:
        UsageError: the package, its version, what goes wrong with it and what to install.
    """
    for package in SILENTLY_WRONG:
        try:
            check_version(package, version(package))
        except PackageNotFoundError:
            continue  # whatever needs it says so


def check_version(package: str, installed: str) -> None:
    """Refuse a version of a package of `SILENTLY_WRONG` that is too old."""
    first, consequence = SILENTLY_WRONG[package]
    parts = installed.split(".")
    try:
        found = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        return  # a version that counts otherwise is not one of those known
    if found < first:
        needed = ".".join(map(str, first))
        raise UsageError(
            f"{package} {installed} is installed; diffmem needs {needed} or newer (with older ones {consequence}). "
            f"Run: pip install '{package}>={needed}'"
        )
