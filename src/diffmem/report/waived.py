"""Which called pairs of a run are waived: both pictures are opened and looked for in the file of waivers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffmem.report.evidence import confirmed
from diffmem.report.matches import Matches
from diffmem.report.pair_pictures import open_pairs
from diffmem.report.waivers import Waivers


def called_pairs(
    folder: Path, fact: dict[str, Any], matches: Matches
) -> Iterator[tuple[int, Image.Image, Image.Image]]:
    """Number of the match, generated and training picture of every pair that is called a copy or confirmed.

    Raises:
        DataError: the training images cannot be opened, so no pair could be looked at.
    """
    identical, proven = confirmed(fact, matches)
    rows = {int(number): matches.row(int(number)) for number in np.flatnonzero(matches.copy | identical | proven)}
    yield from open_pairs(folder, fact, rows)


def without_waived(folder: Path, fact: dict[str, Any], matches: Matches, waivers: Waivers) -> tuple[Matches, int]:
    """The matches without those that are waived, and how many are. A pair whose picture is gone is not waived."""
    waived = np.zeros(matches.rows.num_rows, bool)
    if waivers.held:
        for number, generated, training in called_pairs(folder, fact, matches):
            waived[number] = waivers.find(generated, training) is not None
    return matches.without(waived), int(waived.sum())
