"""Conditionings as they reach the network: whether two are the same, and what was found out about each within one call."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from diffmem.models.conditioning import Conditioning

_SURROUNDINGS = frozenset({"time_ids", "guidance"})
"""Sizes, crops and a distilled guidance scale: part of a conditioning, but not of its prompt."""


def prompt_parts(names: Iterable[str]) -> set[str]:
    """Those tensors of a conditioning that carry the prompt: neither masks nor what surrounds it."""
    return {name for name in names if name not in _SURROUNDINGS and not name.endswith("mask")}


def surroundings(row: Conditioning) -> Conditioning:
    """What a prompt stands in: sizes, crops, a distilled guidance scale."""
    return Conditioning({name: value for name, value in row.tensors.items() if name in _SURROUNDINGS}, len(row))


def is_null(cond: Conditioning, null: Conditioning) -> np.ndarray:
    """Which rows carry the prompt of the conditioning without a prompt, [B] bool."""
    parts = prompt_parts(null.tensors)
    return near(cond, null, parts) if parts else np.zeros(len(cond), bool)


def tolerance(dtype: torch.dtype) -> float:
    """Relative mean square difference below which values are the same but for rounding (other batches round otherwise)."""
    return max(1e-10, 2 * torch.finfo(dtype).eps ** 2) if dtype.is_floating_point else 0.0


def key_of(row: Conditioning) -> str:
    """SHA-256 of a conditioning's exact values, hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(row.tensors.items()):
        digest.update(f"\n{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def kept(cond: Conditioning) -> Conditioning:
    """A copy that nobody else can change in place."""
    with torch.inference_mode(False), torch.no_grad():
        return Conditioning({name: value.detach().clone() for name, value in cond.tensors.items()}, len(cond))


def equal(one: Conditioning, other: Conditioning) -> bool:
    """Whether two conditionings are the same, bit by bit."""
    if len(one) != len(other) or one.tensors.keys() != other.tensors.keys():
        return False
    pairs = [(value, other.tensors[name]) for name, value in one.tensors.items()]
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b.to(a.device)) for a, b in pairs)


def near(rows: Conditioning, known: Conditioning, parts: Collection[str] | None = None) -> np.ndarray:
    """Which rows are the known one but for rounding, [B] bool.

    Args:
        rows: B rows.
        known: one row.
        parts: the tensors that count; None for all.
    """
    found = np.ones(len(rows), bool)
    for name in {*rows.tensors, *known.tensors} if parts is None else parts:
        if name not in rows.tensors or name not in known.tensors:
            return np.zeros(len(rows), bool)
        given = rows.tensors[name]
        one = known.tensors[name].to(given.device)
        if given.shape[1:] != one.shape[1:]:
            return np.zeros(len(rows), bool)
        difference = (given.double() - one.double()).square().reshape(len(rows), -1).mean(1)
        scale = one.double().square().mean()
        found &= (difference <= tolerance(given.dtype) * scale).cpu().numpy()
    return found


@dataclass
class Known:
    """What is known of the conditionings of one call, over all attempts to carry it out.

    Attributes:
        rows: (the conditioning, the image that it was given for, its score or None where it has none of its own).
    """

    rows: list[tuple[Conditioning, int, float | None]] = field(default_factory=list)

    def find(self, cond: Conditioning, upto: int) -> list[tuple[int, float | None] | None]:
        """Per row the (image, score) of the same conditioning among the first `upto` known ones, or None."""
        found: list[tuple[int, float | None] | None] = [None] * len(cond)
        for known, image, value in self.rows[:upto]:
            if all(found):
                break
            for i in np.flatnonzero(near(cond, known)):
                found[i] = found[i] or (image, value)
        return found

    def part(self, images: Sequence[int]) -> Known:
        """What is known of some images, as a call of these alone counts them."""
        return Known([(row, images.index(image), value) for row, image, value in self.rows if image in images])
