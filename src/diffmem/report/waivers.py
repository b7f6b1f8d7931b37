"""Waivers: pairs that somebody answers for until a date; gates count what is new. Found again by content, not by name."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffmem.atomic import write_atomic
from diffmem.errors import DataError
from diffmem.report.pair_identity import SIDE, PairContent, PairFinder


class Waiver(BaseModel):
    """One accepted pair.

    Attributes:
        owner: who answers for it.
        expires: last day on which it holds.
        reason: why it is accepted.
        train_id, prompt_id: what the pair was called when it was waived; for people, nothing is found by them.
        generated, training: the two pictures at 32 x 32 pixels, RGB, base64.
        tolerance: see `PairContent`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: Annotated[str, Field(min_length=1)]
    expires: date
    reason: str = ""
    train_id: str = ""
    prompt_id: str = ""
    generated: str
    training: str
    tolerance: tuple[float, float]

    @cached_property
    def content(self) -> PairContent:
        """The pair by its content."""
        one, two = (base64.b64decode(text) for text in (self.generated, self.training))
        return PairContent(one, two, self.tolerance)


@dataclass(frozen=True)
class Waivers:
    """Waivers of a file.

    Attributes:
        held: those that hold today.
        expired: those that do not any more.
    """

    held: tuple[Waiver, ...]
    expired: tuple[Waiver, ...] = ()

    @cached_property
    def _finder(self) -> PairFinder:
        return PairFinder([waiver.content for waiver in self.held])

    def find(self, generated: Image.Image, training: Image.Image) -> Waiver | None:
        """The waiver of this pair, whatever it is called and however it is encoded; None if there is none."""
        number = self._finder.find(PairContent.of(generated, training)) if self.held else None
        return None if number is None else self.held[number]


def waive(
    generated: Image.Image, training: Image.Image, owner: str, expires: date, reason: str = "", train_id: str = "",
    prompt_id: str = "",
) -> Waiver:  # fmt: skip
    """A waiver of one pair."""
    pair = PairContent.of(generated, training)
    one, two = (base64.b64encode(data).decode("ascii") for data in (pair.generated, pair.training))
    return Waiver(
        owner=owner, expires=expires, reason=reason, train_id=train_id, prompt_id=prompt_id, generated=one, training=two,
        tolerance=pair.tolerance,
    )  # fmt: skip


def read_waivers(path: Path, today: date | None = None) -> Waivers:
    """The waivers of a file.

    Raises:
        DataError: it cannot be read, or a waiver in it lacks something; names the waiver.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["waivers"]
    except OSError as problem:
        raise DataError(f"Cannot read '{path}': {problem.strerror}.") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise DataError(f"'{path}' is no file of waivers ({problem}); diffmem waive writes one.") from problem
    found = []
    for number, values in enumerate(listed, 1):
        try:
            waiver = Waiver.model_validate(values)
            if {len(data) for data in (waiver.content.generated, waiver.content.training)} != {SIDE * SIDE * 3}:
                raise ValueError("the pictures are not 32 × 32 pixels")
        except (ValidationError, ValueError) as problem:
            what = problem.errors()[0] if isinstance(problem, ValidationError) else {"loc": (), "msg": str(problem)}
            where = ".".join(str(part) for part in what["loc"])
            raise DataError(f"'{path}': waiver {number}: {where} {what['msg']}.") from problem
        found.append(waiver)
    now = today or datetime.now(UTC).date()
    return Waivers(
        tuple(w for w in found if w.expires >= now), tuple(w for w in found if w.expires < now)
    )  # fmt: skip


def add_waivers(path: Path, new: Iterable[Waiver]) -> int:
    """Add waivers to a file, which is made if need be; a pair that is in it already gets the new owner and date.

    Returns:
        How many the file holds now.
    """
    known: Sequence[Waiver] = ()
    if path.exists():
        before = read_waivers(path, date.min)
        known = before.held
    pairs = {(w.generated, w.training): w for w in [*known, *new]}
    rows = [w.model_dump(mode="json") for w in pairs.values()]
    write_atomic(path.absolute(), json.dumps({"waivers": rows}, indent=1, ensure_ascii=False).encode("utf-8"))
    return len(rows)


def owners(waivers: Collection[Waiver]) -> str:
    """Who answers for them, and until when at the earliest."""
    names = sorted({waiver.owner for waiver in waivers})
    return f"{', '.join(names)}; the first expires on {min(waiver.expires for waiver in waivers)}"
