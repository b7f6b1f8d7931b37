"""vgr: the estimator that is used unless another is asked for.

It is vgr-bottom: on three training seeds of the digits testbed it put every memorized image above every other trained one
with 8 of 64 directions in 25 steps, which the released procedure with 16 in 200 steps did not (all 64 in 1000 steps do, at
132 times the evaluations), and it followed best how often an image is reproduced (benchmarks/vgr, docs/design/findings.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from diffmem.scores.base import About
from diffmem.scores.image.vgr.bottom import VGRBottom


class VGR(VGRBottom):
    """The default: vgr-bottom."""

    about: ClassVar[About] = replace(VGRBottom.about, name="vgr")
