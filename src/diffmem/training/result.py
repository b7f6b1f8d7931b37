"""What a training gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffmem.models.target import Target
from diffmem.notebook import ShownInNotebooks


@dataclass
class TrainResult(ShownInNotebooks):
    """A finished training run.

    Attributes:
        folder: where everything is.
        saved: the pipeline folder, or the adapter.
        log: settings, losses, seconds, versions.
        target: the trained model, ready to be audited.
        main: whether this process speaks for all.
    """

    folder: Path
    saved: Path
    log: dict[str, Any]
    target: Target
    notes: list[str] = field(default_factory=list)
    main: bool = True

    def __repr__(self) -> str:
        return f"TrainResult({str(self.saved)!r}, {len(self.log.get('loss', ()))} losses logged, {self.target!r})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "saved": str(self.saved), "model": repr(self.target), "steps": self.log.get("steps"),
            "seconds": self.log.get("seconds"),
            "last loss": self.log["loss"][-1] if self.log.get("loss") else None, "notes": self.notes,
        }  # fmt: skip
