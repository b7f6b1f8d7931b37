"""What a change to a pipeline's calls did: network evaluations beyond its own, and what was changed per image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffmem.models.meter import Nfe


@dataclass
class Record:
    """What a mitigation did while it was applied.

    Attributes:
        nfe: network evaluations beyond those that the pipeline makes itself.
        items: per image, in the order of generation: what was changed (JSON values).
    """

    nfe: Nfe = field(default_factory=Nfe)
    items: list[dict[str, Any]] = field(default_factory=list)
