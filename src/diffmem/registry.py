"""Names that are imported on first use: registries of classes, with `did you mean` errors, and names of packages."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
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


def load_object(text: str, what: str) -> Any:
    """What a user's own code defines: `./file.py:NAME` or `package.module:NAME`.

    Args:
        text: as typed.
        what: what it is, for messages ("score", "model").

    Raises:
        UsageError: there is no such file, module or name, or its code raises while it is imported.
    """
    source, _, name = text.rpartition(":")
    if not source or not name.isidentifier():
        raise UsageError(f"The {what} {text!r} is not of the form ./file.py:NAME or package.module:NAME.")
    try:
        module = _module_of_file(Path(source), what) if source.endswith(".py") else importlib.import_module(source)
    except UsageError:
        raise
    except Exception as problem:  # whatever a user's code raises is theirs to see
        raise UsageError(
            f"The {what} {text!r}: importing {source} raises {type(problem).__name__}: {problem}"
        ) from problem
    if not hasattr(module, name):
        names = [key for key in vars(module) if not key.startswith("_")]
        close = difflib.get_close_matches(name, names, n=1)
        raise UsageError(f"{source} defines no '{name}'." + (f" Did you mean '{close[0]}'?" if close else ""))
    return getattr(module, name)


def _module_of_file(file: Path, what: str) -> ModuleType:
    """The module of a Python file, run once per process and content."""
    if not file.is_file():
        raise UsageError(f"The {what}'s file {file} does not exist.")
    code = file.read_bytes()
    name = f"_diffmem_{file.stem}_{hashlib.sha256(str(file.resolve()).encode() + code).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None  # the suffix .py has a loader
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


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
