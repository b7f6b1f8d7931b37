"""Arguments and fields that had other names: the old ones work for one release more, with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Self, TypeVar

from pydantic import (
    BaseModel,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

P = ParamSpec("P")
R = TypeVar("R")

STORED = {"stored": True}
"""Context in which files of diffmem's own are validated: their names are the stored ones, and nobody is warned."""


def renamed(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For a function whose keywords had other names: `@renamed(images="images_per_prompt")`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(*args, **_translated(kwargs, new_names, f"{function.__name__}()"))

        return call

    return decorate


class RenamedFields(BaseModel):
    """A model whose fields had other names; files keep the old ones, so that plans keep their hashes and runs resume.

    Attributes:
        new_names: old name -> name today.
    """

    new_names: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        return _translated(values, cls.new_names, None if info.context == STORED else cls.__name__)

    @model_serializer(mode="wrap")
    def _keep_stored_names(self, plain: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = plain(self)
        stored = {new: old for old, new in self.new_names.items()} if info.mode == "json" else {}
        return {stored.get(name, name): value for name, value in values.items()}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values; TypeError for a name that is no field today, which pydantic would keep and nobody read."""
        strange = {*(update or {})} - {*type(self).model_fields}
        if strange:
            known = ", ".join(type(self).model_fields)
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(strange))}; its fields: {known}.")
        return super().model_copy(update=update, deep=deep)

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            new = type(self).new_names.get(name)
            if new is None:
                return super().__getattr__(name)
            _warn(type(self).__name__, name, new)
            return getattr(self, new)


def _translated(values: Mapping[str, Any], new_names: Mapping[str, str], owner: str | None) -> dict[str, Any]:
    """Values under the names of today; TypeError where a thing is given under both names."""
    translated: dict[str, Any] = {}
    for name, value in values.items():
        new = new_names.get(name, name)
        if new != name and owner is not None:
            _warn(owner, name, new)
        if new in translated or (new != name and new in values):
            raise TypeError(f"{owner or 'The file'}: {name} and {new} are the same; give {new}.")
        translated[new] = value
    return translated


def _warn(owner: str, old: str, new: str) -> None:
    warnings.warn(
        f"{owner}: {old} is called {new} now; the old name works in this release only.", DeprecationWarning, 4
    )
