"""Where a lab's images come from: files of the user's, or the testbed's digits for fine-tuning."""

from __future__ import annotations

from pathlib import Path

from diffmem.errors import UsageError
from diffmem.testbeds.names import PREFIX

DIGITS = f"{PREFIX}digits"


def opened(images: str, heldout: str | None, folder: Path) -> tuple[str, str | None]:
    """Training and held-out images as paths; those of the testbed are written into the lab's folder.

    Raises:
        UsageError: a testbed without images for fine-tuning.
    """
    if not images.startswith(PREFIX):
        return images, heldout
    if images != DIGITS:
        raise UsageError(f"data.images = '{images}'; the testbed with images for a lab is {DIGITS}.")
    from diffmem.testbeds.digits.fresh import fresh

    train, unseen = fresh(folder / "data")
    return str(train), heldout or str(unseen)
