"""vgr: the estimator that is used unless another is asked for.

It is vgr-bottom: on three training seeds of the digits testbed it put every memorized image above every other trained one
with 8 of 64 directions, where the released procedure with 16 did not, and it alone followed how often an image is
reproduced (benchmarks/vgr).
"""

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
