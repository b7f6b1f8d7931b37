"""Models that a function of the user's builds: `module:function` or `./file.py:function` wherever a model is asked for."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from diffmem.errors import DiffmemError, ModelError, UsageError, first_line
from diffmem.models.target import Target

FORM = re.compile(
    r"(?P<place>[^:()]*\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)(?:\((?P<given>.*)\))?"
)


def is_function(model: str) -> bool:
    """Whether a model is given as `module:function`, with or without arguments in brackets."""
    return FORM.fullmatch(model) is not None and not Path(model).exists()


def open_function(model: str, options: Mapping[str, Any] | None = None) -> Target:
    """Call the user's function and take what it returns as the model.

    Args:
        model: `package.module:function` or `path/to/file.py:function`, `function(weights.pt, epoch=3)` to give it arguments:
            numbers, true values and None as in Python, all else as text.
        options: further keyword arguments (device, dtype); the function must have them.

    Raises:
        ModelError: no such module or function, an exception in it, or something else than a model returned.
        UsageError: arguments that the function does not take.
    """
    match = FORM.fullmatch(model)
    if match is None:
        raise UsageError(f"{model!r} is no function; expected module:function or path/to/file.py:function.")
    function = _function(match["place"], match["name"])
    positional, named = _arguments(match["given"] or "")
    named |= dict(options or {})
    shown = f"{match['place']}:{match['name']}"
    try:
        inspect.signature(function).bind(*positional, **named)
    except TypeError as problem:
        raise UsageError(
            f"{shown} cannot be called so: {problem}; it is {match['name']}{_signature(function)}."
        ) from problem
    try:
        made = function(*positional, **named)
    except DiffmemError:
        raise
    except Exception as problem:  # of the user's own code
        raise ModelError(f"{shown} failed: {type(problem).__name__}: {first_line(problem)}") from problem
    if isinstance(getattr(made, "components", None), dict):
        return Target.from_pipeline(made, name=shown)
    if not isinstance(made, Target):
        raise ModelError(
            f"{shown} returned a {type(made).__name__}; expected a model: diffmem.Target.from_callable(network, shape, ...), or "
            "a diffusers pipeline."
        )
    if made.name == "callable":
        made.name = shown
    return made


def _function(place: str, name: str) -> Callable[..., Any]:
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    function = getattr(module, name, None)
    if not callable(function):
        own = [
            n for n, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        there = f"; its functions: {', '.join(own)}" if own else ""
        raise ModelError(f"{place} has no function {name!r}{there}.")
    found: Callable[..., Any] = function
    return found


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name is None or not (name == problem.name or name.startswith(f"{problem.name}.")):
            raise ModelError(f"The module {name} cannot be imported: {first_line(problem)}") from problem
        raise ModelError(
            f"There is no module {name} here or among the installed packages: give a file as path/to/file.py:function."
        ) from problem
    except Exception as problem:  # of the user's own code
        raise ModelError(
            f"The module {name} cannot be imported: {type(problem).__name__}: {first_line(problem)}"
        ) from problem


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"There is no file {path}: expected path/to/file.py:function.")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known
    # Its neighbours can be imported from it, as when the file is run.
    if str(path.resolve().parent) not in sys.path:
        sys.path.insert(0, str(path.resolve().parent))
    name = path.stem if path.stem not in sys.modules else f"diffmem_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as problem:  # of the user's own code
        del sys.modules[name]
        raise ModelError(f"{path} cannot be run: {type(problem).__name__}: {first_line(problem)}") from problem
    return module


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for part in (piece.strip() for piece in text.split(",")):
        key, equals, value = part.partition("=")
        if equals and key.strip().isidentifier():
            named[key.strip()] = _value(value.strip())
        elif part:
            positional.append(_value(part))
    return positional, named


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _signature(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function))
