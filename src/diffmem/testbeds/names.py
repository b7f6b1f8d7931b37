"""The pipeline folders of the bundled models, as `diffmem.models.bundled` registers them."""

from __future__ import annotations

from pathlib import Path

from diffmem.testbeds.digits import model_path as _digits
from diffmem.testbeds.photos import model_path as _photos


def digits() -> Path:
    """The text-to-image model of the digits, epsilon."""
    return _digits("text", "epsilon")


def digits_v() -> Path:
    """The text-to-image model of the digits, v."""
    return _digits("text", "v")


def digits_flow() -> Path:
    """The text-to-image model of the digits, flow."""
    return _digits("text", "flow")


def digits_unconditional() -> Path:
    """The unconditional model of the digits."""
    return _digits("unconditional", "epsilon")


def photos() -> Path:
    """The latent text-to-image model of the photos."""
    return _photos()
