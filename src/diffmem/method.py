"""What every plug-in shares (scores of prompts and images, mitigations, descriptors): about, parameters, label, parsing."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
import sys
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError

from diffmem.errors import UsageError
from diffmem.registry import Registry
from diffmem.user_code import load_object


class Parameters(BaseModel):
    """Parameters of a method: frozen, unknown names refused, part of the key of every row."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, kw_only=True)
class About:
    """What a reader must know of a method; the tables of methods are made of these.

    Attributes:
        name: as typed on the command line.
        summary: one line.
        formula: in plain text, with the paper's equation.
        reference: authors, year, identifier.
        cost: network evaluations, in words.
        fails_when: when its number misleads, or when it does harm or nothing.
        kind: what sort of answer it gives, where the methods of one registry differ in that.
    """

    name: str
    summary: str
    formula: str
    reference: str
    cost: str
    fails_when: str
    kind: str = ""


class Method(ABC):
    """Base of scores, image scores, mitigations and descriptors.

    A class says which parameters it takes by annotating `settings: MyParameters`, under which it finds them.

    Attributes:
        about: what a reader must know.
        version: raised whenever a value or an image can change; part of the key of every row. A class that is read from a
            user's file has the file's hash behind it, so that rows of an edited file are computed again.
    """

    about: ClassVar[Any]
    version: ClassVar[int | str] = 1

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = parameters_class(type(self))() if parameters is None else parameters
        self.settings: Any = self.parameters

    @classmethod
    def of(cls, **parameters: Any) -> Self:
        """The method with these parameters; UsageError names what is wrong with them."""
        made: Self = _make(cls, parameters, f"In {cls.__name__}(...)")
        return made

    @property
    def name(self) -> str:
        """The method's name."""
        return str(self.about.name)

    @property
    def label(self) -> str:
        """The name with the parameters that are not defaults, as typed on the command line: `name:key=value,...`."""
        changed = self.parameters.model_dump(exclude_defaults=True, mode="json")
        return self.name + (":" + ",".join(f"{k}={_typed(v)}" for k, v in changed.items()) if changed else "")

    def __repr__(self) -> str:
        return self.label


M = TypeVar("M", bound=Method)


def parse_method(registry: Registry[type[M]], given: str | M, what: str, base: type[Any] = Method) -> M:
    """A method from `name`, `name:key=value,...` or `./file.py:Class[:key=value,...]`; an object is returned as it is.

    Several numbers for one parameter are joined by `/` (weights=1/2).

    Args:
        registry: of the classes.
        given: as typed, or the method itself.
        what: what a method of this registry is called in messages.
        base: the class that one from a file must be of.

    Raises:
        UsageError: unknown name or parameter (with the closest match), or a value out of range.
    """
    if isinstance(given, Method):
        return given
    if not isinstance(given, str):
        raise UsageError(f"A {what} is given as text or as an object of its class, not as {type(given).__name__}.")
    cls, values = read_method(registry, given, what, base)
    method: M = _make(cls, values, f"In the {what} {given!r}")
    return method


def read_method(
    registry: Registry[type[M]], given: str, what: str, base: type[Any] = Method
) -> tuple[type[M], dict[str, Any]]:
    """(class, parameters as typed) of a method as it is typed, see `parse_method`."""
    cls, rest = _class_and_rest(registry, given, what, base)
    parameters = parameters_class(cls)
    values: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"In the {what} {given!r}, '{part}' is no key=value.")
        require_parameter(cls, key, what)
        kinds = parameters.model_fields[key].annotation
        text_only = str in (kinds, *get_args(kinds))  # a path keeps its slashes
        values[key] = tuple(value.split("/")) if "/" in value and not text_only else value
    return cls, values


def require_parameter(cls: type[Method], key: str, what: str) -> None:
    """UsageError with the closest match if a method has no such parameter."""
    fields = parameters_class(cls).model_fields
    if key not in fields:
        close = difflib.get_close_matches(key, fields, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        known = ", ".join(fields) or "none"
        raise UsageError(f"The {what} {cls.about.name} has no parameter '{key}'.{hint} It has: {known}.")


def _class_and_rest(registry: Registry[Any], given: str, what: str, base: type[Any]) -> tuple[Any, str]:
    """A method's class and the text of its parameters; the class may be one of the user's own file."""
    if own := _OWN.match(given):
        return _register_own(registry, own["file"], own["name"], what, base), own["rest"] or ""
    name, _, rest = given.partition(":")
    return registry.get(name.strip()), rest


_OWN = re.compile(r"(?P<file>.*?\.py):(?P<name>\w+)(?::(?P<rest>.*))?$")
"""`./file.py:Class` or `./file.py:Class:key=value,...`."""


def _register_own(registry: Registry[Any], file: str, name: str, what: str, base: type[Any]) -> Any:
    """The class of a user's file, under the name in its `about`."""
    cls = load_object(f"{file}:{name}", what)
    if not _is_method(cls, base):
        raise UsageError(f"{file}:{name} is no {what}: expected a subclass of {base.__name__} with `about`.")
    label = str(cls.about.name)
    if label in registry and registry.get(label) is not cls and _file_of(registry.get(label)) != _file_of(cls):
        raise UsageError(f"{file}:{name} calls itself '{label}', which another {what} is called.")
    if "-" not in str(cls.version):
        cls.version = f"{cls.version}-{hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8]}"
    return registry.add(label, cls)


def _is_method(value: Any, base: type[Any]) -> bool:
    return isinstance(value, type) and issubclass(value, base) and hasattr(value, "about")


def _file_of(cls: Any) -> str | None:
    return getattr(sys.modules.get(cls.__module__), "__file__", None)


def class_names(*registries: Registry[Any]) -> list[str]:
    """The methods of registries under names of objects: "random-tokens" is RandomTokens."""
    return [_class_name(name) for registry in registries for name in registry]


def by_class_name(wanted: str, *registries: Registry[Any]) -> Callable[..., Any]:
    """What makes a method from its parameters as keywords: RandomTokens(count=2) is "random-tokens:count=2".

    Raises:
        AttributeError: no method has this name.
    """
    for registry in registries if wanted[:1].isupper() else ():
        for name in registry:
            if _class_name(name) == wanted:
                return _constructor(registry.get(name), wanted)
    raise AttributeError(f"There is no method {wanted!r}; there are: {', '.join(class_names(*registries))}.")


def _constructor(cls: Any, name: str) -> Callable[..., Any]:
    def make(**parameters: Any) -> Any:
        return _make(cls, parameters, f"In {name}(...)")

    make.__name__ = make.__qualname__ = name
    fields = parameters_class(cls).model_fields.items()
    told = [f"    {key}: {field.description or ''} (default: {field.default!r})" for key, field in fields]
    make.__doc__ = "\n".join([f"{cls.about.summary}\n\n{cls.about.formula}\n{cls.about.reference}\n\nArgs:", *told])
    return make


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


def _make(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """A method from its parameters; UsageError names what is wrong with them, and where it was given."""
    try:
        return cls(parameters_class(cls)(**values))
    except ValidationError as problem:
        first = problem.errors()[0]
        if not first["loc"]:  # a check of several parameters together
            raise UsageError(f"{where}: {first['ctx']['error']}.") from problem
        raise UsageError(f"{where}, {first['loc'][0]} = {first.get('input')!r}: {first['msg']}.") from problem


def parameters_class(cls: type[Any]) -> type[Parameters]:
    """The parameter model of a method: of its `settings`, or of what its own constructor takes."""
    for base in cls.__mro__:
        hint = inspect.get_annotations(base).get("settings")
        if isinstance(hint, str):
            hint = getattr(sys.modules[base.__module__], hint)
        elif hint is None and "__init__" in vars(base):
            hint = get_type_hints(vars(base)["__init__"]).get("parameters")
        options = getattr(hint, "__args__", (hint,))
        for option in options:
            if isinstance(option, type) and issubclass(option, Parameters):
                return option
    raise TypeError(f"{cls.__name__} says nowhere which parameters it takes: annotate `settings`.")


def _typed(value: Any) -> str:
    return "/".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)
