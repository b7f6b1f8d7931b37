"""What a digest holds of the verdict."""

from __future__ import annotations

from typing import Literal

from pydantic import FiniteFloat

from diffmem.report.shapes.base import Interval, Part, Share


class Step(Part):
    """What to do next: in words, and as command lines to paste."""

    what: str
    commands: tuple[str, ...] = ()


class Verdict(Part):
    """Does the model reproduce its training images? See docs/reading-a-report.md.

    Attributes:
        state: `reproduces`: a pair is confirmed, or more prompts are called copies than chance makes. `no-excess`: no more
            than chance, up to `bound`. `unknown`: this run cannot tell; `needs` says what would change it.
        by: what the state rests on: "pixel identity", "verification", "review" (a confirmed pair), "gallery" (more calls
            than against images that no training saw), "rate" (more calls than the threshold lets through by chance); null:
            unknown.
        sentence: the finding.
        plain: the same for those who read no further.
        needs: what would change `unknown`; null otherwise.
        confirmed: training images of confirmed pairs, near-duplicates counted once.
        called, prompts: prompts called copies, and prompts that could be judged.
        independent: what the called prompts count as, if near-duplicate prompts with the same training image count once.
        share, share_interval: of the judged prompts that are called.
        expected: prompts called by chance, at most, if none copies; null without a calibrated threshold or a gallery.
        excess, excess_interval: share called above chance.
        p_value: probability of so many calls by chance, the threshold's own uncertainty included.
        bound: share of such prompts that may reproduce a training image without this run contradicting it (95 %);
            `recall` is the matcher's measured one that it was divided by, null where none is known; `recall_of` says on
            what: prompts that are known to be reproduced ("labels"), or the planted pictures of the "control".
        steps: what to do next.
    """

    state: Literal["reproduces", "no-excess", "unknown"]
    by: Literal["pixel identity", "verification", "review", "gallery", "rate"] | None
    sentence: str
    plain: str
    needs: str | None = None
    confirmed: int = 0
    called: int = 0
    prompts: int = 0
    independent: int = 0
    share: Share | None = None
    share_interval: Interval | None = None
    expected: FiniteFloat | None = None
    excess: FiniteFloat | None = None
    excess_interval: tuple[FiniteFloat, FiniteFloat] | None = None
    p_value: Share | None = None
    bound: Share | None = None
    recall: Share | None = None
    recall_of: Literal["labels", "control"] | None = None
    steps: tuple[Step, ...] = ()
