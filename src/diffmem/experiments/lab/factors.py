"""What a lab varies, from text: duplication (`dup_both:weight=10`) and mitigations (`train:MC`, `random-tokens:count=2`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from diffmem.errors import UsageError
from diffmem.mitigation.base import Mitigation
from diffmem.mitigation.spec import parse_mitigation
from diffmem.training.plan import ChangesPlan, DuplicationPlan

NONE = "none"
TRAINING = "train:"
CHANGES: dict[str, dict[str, Any]] = {
    "MC": {"multiple_captions": 20},
    "GN": {"embedding_noise": 0.1},
    "mixing": {"embedding_mixing": 0.1},
    "RC": {"caption_replacement": 0.1},
    "RT": {"token_addition": 0.1},
    "CWR": {"word_repetition": 0.1},
    "dedup": {"deduplicate": True},
    "u-shaped": {"noise_levels": "u-shaped"},
    "danger-zone": {"noise_levels": "outside-zone"},
}
"""Train-time mitigations by the names of Somepalli et al. (NeurIPS 2023, section 5), at the paper's values; the last two draw
other noise levels than the plan (`diffmem.training.objective.draw_time`)."""


@dataclass(frozen=True)
class Duplication:
    """What a cell says about duplication: keys of the plan's section."""

    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Treatment:
    """A cell's mitigations.

    Attributes:
        training: keys of the plan's section `changes`.
        inference: mitigations of the generation, applied together.
    """

    training: Mapping[str, Any]
    inference: tuple[Mitigation, ...]


def parse_duplication(text: str) -> Duplication:
    """`nodup`, `dup_both` or `dup_image`, with `share` and `weight` after a colon.

    Raises:
        UsageError: another regime or key, a value out of range.
    """
    regime, _, rest = text.partition(":")
    given = {"regime": regime, **_pairs(rest, text)}
    return Duplication({key: getattr(_checked(DuplicationPlan, given, text), key) for key in given})


def parse_treatment(text: str) -> Treatment:
    """`none`, or parts joined by +: `train:NAME` or `train:key=value,…` at training, else a mitigation at inference.

    Raises:
        UsageError: unknown names or keys (with the closest match), values out of range.
    """
    training: dict[str, Any] = {}
    inference = []
    for part in text.split("+") if text.strip() != NONE else []:
        part = part.strip()
        if not part.startswith(TRAINING):
            inference.append(parse_mitigation(part))
            continue
        name = part.removeprefix(TRAINING)
        if name in CHANGES:
            training |= CHANGES[name]
            continue
        if "=" not in name:
            known = [*CHANGES, *(f"{key}=…" for key in ChangesPlan.model_fields)]
            raise UsageError(f"'{part}' names no train-time mitigation; expected train: and one of {', '.join(known)}.")
        given = _pairs(name, text)
        training |= {key: getattr(_checked(ChangesPlan, given, text), key) for key in given}
    return Treatment(training, tuple(inference))


def _pairs(text: str, whole: str) -> dict[str, str]:
    found = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, sign, value = part.partition("=")
        if not sign:
            raise UsageError(f"'{whole}': '{part}' is no key=value.")
        found[key.strip()] = value.strip()
    return found


def _checked(kind: type[BaseModel], given: Mapping[str, str], text: str) -> BaseModel:
    for key in given:
        if key not in kind.model_fields:
            close = difflib.get_close_matches(key, kind.model_fields, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"'{text}': unknown key '{key}'.{hint} Known: {', '.join(kind.model_fields)}.")
    try:
        return kind.model_validate(dict(given))
    except ValidationError as problem:
        first = problem.errors()[0]
        raise UsageError(
            f"'{text}': {'.'.join(map(str, first['loc']))} = {first.get('input')!r}: {first['msg']}."
        ) from problem
