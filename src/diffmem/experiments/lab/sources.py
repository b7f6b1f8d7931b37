"""Where a lab's images come from: files of the user's, or the testbed's digits for fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffmem.errors import UsageError
from diffmem.models.bundled import PREFIX
from diffmem.registry import Registry

DIGITS = f"{PREFIX}digits"

BUNDLED_DATA: Registry[Callable[[Path], tuple[Path, Path]]] = Registry(
    "bundled-data", {"digits": "diffmem.testbeds.digits.fresh:fresh"}
)
"""Functions that write a testbed's training and held-out images into a folder."""


def open_images(images: str, heldout: str | None, folder: Path) -> tuple[str, str | None]:
    """Training and held-out images as paths; those of the testbed are written into the lab's folder.

    Raises:
        UsageError: a testbed without images for fine-tuning.
    """
    if not images.startswith(PREFIX):
        return images, heldout
    if images != DIGITS:
        raise UsageError(f"data.images = '{images}'; the testbed with images for a lab is {DIGITS}.")
    train, unseen = BUNDLED_DATA.get("digits")(folder / "data")
    return str(train), heldout or str(unseen)
