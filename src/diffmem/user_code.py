"""What a user's own code defines, by `./file.py:NAME` or `package.module:NAME`: models, scores, mitigations, functions."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from diffmem.errors import DiffmemError, UsageError, first_line


def load_object(text: str, what: str) -> Any:
    """The object that a user's file or module defines.

    A file's neighbours can be imported from it, as when it is run; modules are also looked for in the current folder.

    Args:
        text: `./file.py:NAME` or `package.module:NAME`.
        what: what it shall be, for messages ("score", "model").

    Raises:
        UsageError: there is no such file, module or name, or importing it raises.
    """
    source, _, name = text.rpartition(":")
    if not source or not name.isidentifier():
        raise UsageError(f"The {what} {text!r} is not of the form ./file.py:NAME or package.module:NAME.")
    try:
        module = _file(Path(source), what) if source.endswith(".py") else _module(source, what)
    except DiffmemError:
        raise
    except (
        Exception,
        SystemExit,
    ) as problem:  # of the user's own code; a script may end the process when it is imported
        raise UsageError(
            f"The {what} {text!r}: importing {source} raises {type(problem).__name__}: {first_line(problem)}"
        ) from problem
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        close = difflib.get_close_matches(name, own, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UsageError(f"{source} has no '{name}'.{hint}" + (f" It defines: {', '.join(own)}." if own else ""))
    return getattr(module, name)


def load_function(text: str, what: str) -> Callable[..., Any]:
    """The function that a user's file or module defines, see `load_object`.

    Raises:
        UsageError: also where the name is of something that cannot be called.
    """
    function = load_object(text, what)
    if not callable(function):
        raise UsageError(f"The {what} {text} is a {type(function).__name__}; expected a function.")
    found: Callable[..., Any] = function
    return found


def _module(name: str, what: str) -> ModuleType:
    _import_from(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name is None or not (name == problem.name or name.startswith(f"{problem.name}.")):
            raise
        raise UsageError(
            f"There is no module {name} here or among the installed packages; a {what} of a file is given as "
            "path/to/file.py:NAME."
        ) from problem


def _file(path: Path, what: str) -> ModuleType:
    """The module of a Python file, run once per process and content."""
    if not path.is_file():
        raise UsageError(f"The {what}'s file {path} does not exist; expected path/to/file.py:NAME.")
    place = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(place).encode() + path.read_bytes()).hexdigest()[:12]}"
    if name not in sys.modules:
        _import_from(place.parent)
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None and spec.loader is not None  # the suffix .py has a loader
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _import_from(folder: Path) -> None:
    if str(folder) not in sys.path[:1]:
        sys.path.insert(0, str(folder))  # as `python file.py` and `python -m module` do
