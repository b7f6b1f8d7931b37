"""Names that are imported on first use: registries of classes, with `did you mean` errors, and names of packages."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from diffmem.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of things of one kind, each given as `module:attribute` and imported when it is first asked for.

    Other packages add their own through an entry point in the group `diffmem.<kind>`.

    Args:
        kind: what is registered, in the plural and as the user would say it ("scores").
        entries: name to `module:attribute`.
    """

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind = kind
        self._paths = dict(entries)
        self._loaded: dict[str, T] = {}
        self._plugins_read = False

    def add(self, name: str, value: T) -> T:
        """Register an object directly (for code that is not an installed package)."""
        self._loaded[name] = value
        return value

    def names(self) -> list[str]:
        """All names, built-in ones first, in the order of registration."""
        self._read_plugins()
        return list(dict.fromkeys([*self._paths, *self._loaded]))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str) -> T:
        """The object called `name`; raises UsageError naming the closest matches if there is none."""
        if name in self._loaded:
            return self._loaded[name]
        if name not in self.names():
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"There is no '{name}' among the {self.kind}.{hint} Available: {', '.join(self.names())}.")
        module, _, attribute = self._paths[name].partition(":")
        self._loaded[name] = getattr(importlib.import_module(module), attribute)
        return self._loaded[name]

    def _read_plugins(self) -> None:
        if self._plugins_read:
            return
        self._plugins_read = True
        for entry in entry_points(group=f"diffmem.{self.kind}"):
            self._paths.setdefault(entry.name, entry.value)


def lazy(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported on first use (PEP 562).

    Args:
        package: its name.
        modules: public name -> module that defines it.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(modules[name]), name)

    return load, lambda: sorted(modules)
