"""Well-known models: where they are to be had today, how they are meant to be run, and what was removed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from diffmem.atomic import user_path
from diffmem.models.bundled import bundled_path

TABLE = "known_models.json"


@dataclass(frozen=True)
class KnownModel:
    """What is known of a published model without opening it; None where it is not known.

    Attributes:
        alias: short name that can be typed in place of the hub id.
        aliases: further short names.
        hub_id: where the model is today.
        family: diffmem's family.
        prediction: what the network returns.
        dtype: recommended on a GPU; on a CPU float32 is.
        scheduler: the sampler that it ships with or that its card advises, by diffmem's name; None for flow models,
            which bring their own.
        guidance: recommended guidance scale.
        steps: recommended sampling steps.
        pixels: side of its images.
        gated: whether its publisher asks for consent before a download.
        weights: format of the weights; diffmem opens pickles only when told to.
        formerly: hub ids that were removed.
        notes: what a user must know.
        confirmed: facts with the place where they were read. No model of the table was opened here.
        unconfirmed: what was not checked.
    """

    alias: str
    hub_id: str
    family: str
    prediction: str | None
    dtype: str
    scheduler: str | None
    guidance: float | None
    steps: int | None
    pixels: int | None
    gated: bool | None
    weights: Literal["safetensors", "pickle"] | None
    aliases: tuple[str, ...]
    formerly: tuple[str, ...]
    notes: tuple[str, ...]
    confirmed: tuple[str, ...]
    unconfirmed: tuple[str, ...]

    @property
    def names(self) -> frozenset[str]:
        """Everything by which the model is found, in lower case."""
        return frozenset(name.lower() for name in (self.alias, *self.aliases, self.hub_id, *self.formerly))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@cache
def known_models() -> tuple[KnownModel, ...]:
    """The whole table."""
    text = (files("diffmem.models") / TABLE).read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = [
        {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in json.loads(text)
    ]
    return tuple(KnownModel(**row) for row in rows)


def find_known(source: str | Path) -> KnownModel | None:
    """The model that an alias, a hub id or a removed hub id means; None if it is not in the table."""
    name = str(source).lower()
    return next((model for model in known_models() if name in model.names), None)


def resolve(source: str | Path) -> str | Path:
    """The hub id behind an alias such as "sd1.4", the folder of `testbed:NAME`; folders and hub ids as they are."""
    bundled = bundled_path(str(source))
    if bundled is not None:
        return bundled
    if user_path(source).exists() or "/" in str(source):
        return source
    model = find_known(source)
    return source if model is None else model.hub_id


def loading_hint(source: str | Path) -> str:
    """What to add when a model cannot be opened: that it moved, is gated or holds pickles; "" if nothing is known."""
    model = find_known(source)
    if model is None:
        return ""
    hints = []
    if str(source).lower() in {old.lower() for old in model.formerly}:
        hints.append(f"{source} was removed from the hub and moved to {model.hub_id}: open that instead.")
    if model.gated:
        hints.append(f"{model.hub_id} is gated: accept its conditions on the hub and log in with an access token.")
    if model.weights == "pickle":
        hints.append(f"The weights of {model.hub_id} are pickles: pass allow_pickle=True (--allow-pickle).")
    return " ".join(hints)
