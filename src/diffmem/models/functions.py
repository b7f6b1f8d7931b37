"""Models that a function of the user's builds: `module:function` or `./file.py:function` wherever a model is asked for."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffmem.errors import DiffmemError, ModelError, UsageError, first_line
from diffmem.models.target import Target
from diffmem.user_code import load_function

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
    function = load_function(f"{match['place']}:{match['name']}", "function that builds the model")
    positional, named = _arguments(match["given"] or "")
    named |= dict(options or {})
    shown = f"{match['place']}:{match['name']}"
    try:
        inspect.signature(function).bind(*positional, **named)
    except TypeError as problem:
        raise UsageError(
            f"{shown} cannot be called so: {problem}; it is {match['name']}{inspect.signature(function)}."
        ) from problem
    try:
        made = function(*positional, **named)
    except DiffmemError:
        raise
    except (Exception, SystemExit) as problem:  # of the user's own code; it may be written as a script
        raise ModelError(f"{shown} failed: {type(problem).__name__}: {first_line(problem)}") from problem
    if isinstance(getattr(made, "components", None), dict):
        made = Target.from_pipeline(made, name=shown)
    if not isinstance(made, Target):
        raise ModelError(
            f"{shown} returned a {type(made).__name__}; expected a model: diffmem.Target.from_callable(network, shape, ...), or "
            "a diffusers pipeline."
        )
    if made.name == "callable":
        made.name = shown
    made.reopen = partial(open_function, model, options)
    return made


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """What stands in the brackets: as Python reads it, or parts between commas where it reads nothing (a path)."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except SyntaxError:
        call = None
    if isinstance(call, ast.Call):
        if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
            raise UsageError(f"({text}) holds a *; write out the arguments, as in (weights.pt, epoch=3).")
        source = f"f({text})"
        named = {str(k.arg): _value(ast.get_source_segment(source, k.value) or "") for k in call.keywords}
        return [_value(ast.get_source_segment(source, part) or "") for part in call.args], named
    positional: list[Any] = []
    found: dict[str, Any] = {}
    for part in (piece.strip() for piece in text.split(",")):
        key, equals, value = part.partition("=")
        if equals and key.strip().isidentifier():
            found[key.strip()] = _value(value.strip())
        elif part:
            positional.append(_value(part))
    return positional, found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
