"""vgr: the estimator that is used unless another is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from diffmem.scores.base import About
from diffmem.scores.images.vgr.bottom import BottomParameters, VGRBottom


class VGR(VGRBottom):
    """The default: vgr-bottom."""

    about: ClassVar[About] = replace(VGRBottom.about, name="vgr")

    def __init__(self, parameters: BottomParameters | None = None) -> None:
        super().__init__(parameters)
