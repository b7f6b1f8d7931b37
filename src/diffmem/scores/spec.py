"""Scores from text: `name` or `name:key=value,key=value`, as on the command line and in plans."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_type_hints

from pydantic import ValidationError

from diffmem.errors import UsageError
from diffmem.registry import Registry
from diffmem.scores import SCORES
from diffmem.scores.base import Parameters, Score
from diffmem.scores.image import IMAGE_SCORES
from diffmem.scores.image.base import ImageScore


def parse_score(text: str | Score) -> Score:
    """One score from its text; several numbers for one parameter are joined by `/` (weights=1/2).

    Raises:
        UsageError: unknown score or parameter (with the closest match), or a value out of range.
    """
    if isinstance(text, Score):
        return text
    score: Score = built(SCORES, text)
    return score


def parse_image_score(text: str | ImageScore) -> ImageScore:
    """One image score from its text; see `parse_score`."""
    if not isinstance(text, str):
        return text
    score: ImageScore = built(IMAGE_SCORES, text)
    return score


def built(registry: Registry[Any], text: str, what: str = "score") -> Any:
    """A method of a registry from `name` or `name:key=value,...`; its constructor takes its parameters.

    Args:
        registry: of the classes.
        text: as typed.
        what: what a method of this registry is called in messages.

    Raises:
        UsageError: unknown name or parameter (with the closest match), or a value out of range.
    """
    name, _, rest = text.partition(":")
    cls: Any = registry.get(name.strip())
    parameters = parameters_class(cls)
    given: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"In the {what} {text!r}, '{part}' is no key=value.")
        if key not in parameters.model_fields:
            close = difflib.get_close_matches(key, parameters.model_fields, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            known = ", ".join(parameters.model_fields) or "none"
            raise UsageError(f"The {what} {name} has no parameter '{key}'.{hint} It has: {known}.")
        text_only = parameters.model_fields[key].annotation is str  # a path keeps its slashes
        given[key] = tuple(value.split("/")) if "/" in value and not text_only else value
    try:
        return cls(parameters(**given))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(p) for p in first["loc"][:1])
        raise UsageError(f"In the {what} {text!r}, {where} = {first.get('input')!r}: {first['msg']}.") from problem


def parse_scores(texts: Sequence[str | Score]) -> list[Score]:
    """Several scores, each named once."""
    scores = [parse_score(text) for text in texts]
    return list({score.label: score for score in scores}.values())


def parse_image_scores(texts: Sequence[str | ImageScore]) -> list[ImageScore]:
    """Several image scores, each named once."""
    scores = [parse_image_score(text) for text in texts]
    return list({score.label: score for score in scores}.values())


def label_of(name: str, parameters: Parameters) -> str:
    """The name with the parameters that are not defaults, as typed on the command line: `name:key=value,...`."""
    changed = parameters.model_dump(exclude_defaults=True, mode="json")
    return name + (":" + ",".join(f"{k}={_typed(v)}" for k, v in changed.items()) if changed else "")


def _typed(value: Any) -> str:
    return "/".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


def parameters_class(cls: type[Any]) -> type[Parameters]:
    """The parameter model that a method's constructor takes."""
    hint = get_type_hints(cls.__init__)["parameters"]
    options = getattr(hint, "__args__", (hint,))
    return next(o for o in options if isinstance(o, type) and issubclass(o, Parameters))
