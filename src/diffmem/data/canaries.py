"""The registration of image canaries: what was drawn, before any training, and a hash that holds it fast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from diffmem.atomic import read_json, write_atomic
from diffmem.data.decode import decode_bytes
from diffmem.data.fingerprint import hash_bytes, hash_json
from diffmem.errors import DataError

NAME = "canaries.json"
PICTURES = "registered"
FORMAT = "diffmem-canaries-1"


@dataclass(frozen=True)
class Canary:
    """One registered picture with its caption.

    Attributes:
        id: unique within the registration.
        count: how often it is in the training data; 0 for a negative control, which no training sees.
        caption: unique; no caption of the dataset is like it.
        pixels: content hash of mode, size and pixels.
        nearest: the least distance to any other registered picture and to the dataset, in the descriptor's units.
        coin: whether a fair coin of its own decided if it is in the data, for a lower bound of epsilon.
    """

    id: str
    count: int
    caption: str
    pixels: str
    nearest: float
    coin: bool = False

    @property
    def control(self) -> bool:
        """Whether it is a negative control."""
        return self.count == 0


@dataclass(frozen=True)
class Registration:
    """What is registered.

    Attributes:
        canaries: canaries and controls, in an order that says nothing of their roles.
        seed: root seed of the draw.
        created: time in UTC, ISO 8601.
        facts: size, mode, dataset, descriptor, least distance asked for; plain values.
        folder: where it was read from, None if it is in memory; not part of what is hashed.
    """

    canaries: tuple[Canary, ...]
    seed: int
    created: str
    facts: dict[str, Any]
    folder: Path | None = None

    @cached_property
    def hash(self) -> str:
        """Content hash of everything registered."""
        return hash_json(self._content())

    @property
    def controls(self) -> tuple[Canary, ...]:
        """The negative controls."""
        return tuple(canary for canary in self.canaries if canary.control)

    @property
    def trained(self) -> tuple[Canary, ...]:
        """The canaries that are in the training data."""
        return tuple(canary for canary in self.canaries if not canary.control)

    @property
    def coins(self) -> tuple[int, ...]:
        """The places of the canaries that a coin put into the data or left out."""
        return tuple(i for i, canary in enumerate(self.canaries) if canary.coin)

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "seed": self.seed, "created": self.created, "facts": self.facts,
            # Without the coin where there is none, so that older registrations keep their hashes.
            "canaries": [{k: v for k, v in asdict(canary).items() if k != "coin" or v} for canary in self.canaries],
        }  # fmt: skip

    def write(self, folder: Path) -> Path:
        """Write `canaries.json` into a folder."""
        text = json.dumps(self._content() | {"hash": self.hash}, indent=1, ensure_ascii=False)
        write_atomic(folder / NAME, text.encode())
        return folder / NAME

    @property
    def place(self) -> Path:
        """The folder of the registered pictures, with their captions in metadata.jsonl; DataError if it is not there."""
        places = [] if self.folder is None else [self.folder / PICTURES, self.folder.parent / PICTURES]
        place = next((path for path in places if path.is_dir()), None)
        if place is None:
            raise DataError(
                f"The folder '{PICTURES}' with the registered pictures lies neither beside {NAME} nor above it: keep the "
                "folder that `diffmem canaries make` wrote as it is."
            )
        return place

    def pictures(self) -> dict[str, Image.Image]:
        """Id -> picture, each proved against its registered hash.

        Raises:
            DataError: a picture is not there or is another than the registered one.
        """
        found, place = {}, self.place
        for canary in self.canaries:
            file = place / f"{canary.id}.png"
            image = decode_bytes(file.read_bytes()).image if file.exists() else None
            if image is None or pixel_hash(image) != canary.pixels:
                what = "is missing or cannot be read" if image is None else "is another picture than was registered"
                raise DataError(f"{file} {what}: restore the folder that `diffmem canaries make` wrote.")
            found[canary.id] = image
        return found


def read_registration(path: str | Path) -> Registration:
    """A registration from its file, or from a folder that holds one.

    Raises:
        DataError: none there, not one, or changed since it was written.
    """
    file = Path(path) / NAME if Path(path).is_dir() else Path(path)
    try:
        raw = read_json(file)
        named = raw.pop("hash")
        if raw.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        canaries = tuple(Canary(**row) for row in raw.pop("canaries"))
        found = Registration(canaries, **raw)
    except FileNotFoundError:
        raise DataError(f"There is no registration '{file}'; `diffmem canaries make` writes {NAME}.") from None
    except (ValueError, KeyError, TypeError, OSError, AttributeError) as problem:
        raise DataError(f"'{file}' is no registration of canaries ({problem}).") from problem
    if found.hash != named:
        raise DataError(
            f"'{file}' was changed after it was written: its hash is {found.hash}, registered is {named}. Restore it; a "
            "registration that is edited after the fact proves nothing."
        )
    return replace(found, folder=file.parent)


def pixel_hash(image: Image.Image) -> str:
    """Content hash of mode, size and pixels, whatever the file's format."""
    return hash_bytes(f"{image.mode} {image.size} ".encode() + image.tobytes())


def counted(registration: Registration, hashes: Sequence[str]) -> dict[str, int]:
    """How often each registered picture is among pictures given by their hashes: id -> count."""
    seen: dict[str, int] = {}
    for value in hashes:
        seen[value] = seen.get(value, 0) + 1
    return {canary.id: seen.get(canary.pixels, 0) for canary in registration.canaries}
