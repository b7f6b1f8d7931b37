"""Which training run a folder belongs to: the same plan, data and base model go on in it, others are refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmem.atomic import write_atomic
from diffmem.errors import DataError, IncompatibleRun
from diffmem.runs.identity import plan_differences
from diffmem.training.plan import FREE, TrainPlan

PLAN = "plan.json"
_FREE = frozenset(f"plan.{name}" for name in FREE)


@dataclass(frozen=True)
class Identity:
    """What makes a training run the one that it is.

    Attributes:
        folder: of the run.
        plan: what was asked for; micro-batch and checkpoints change no result and may differ.
        data: fingerprint of the training set.
        model: fingerprint of the base.
    """

    folder: Path
    plan: TrainPlan
    data: str
    model: str

    def facts(self) -> dict[str, Any]:
        """As JSON values, without the fields that may differ."""
        settings = self.plan.model_dump(mode="json")
        for name in FREE:
            section, _, key = name.rpartition(".")
            (settings[section] if section else settings).pop(key, None)
        return {"plan": settings, "data": self.data, "model": self.model}

    def check(self) -> None:
        """Raise IncompatibleRun where the folder holds another run, DataError where its plan.json cannot be read."""
        file = self.folder / PLAN
        if not file.exists():
            return
        try:
            there = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as problem:
            raise DataError(f"{file} is damaged ({problem}): give another --out, or remove the folder.") from problem
        there = {name: there.get(name) for name in ("plan", "data", "model")}
        differences = plan_differences(there, self.facts(), _FREE)
        if differences:
            what = {
                "data": "its training images, their captions or how often each is seen are others",
                "model": "its base model is another",
            }
            found = "; ".join(what.get(d.place) or d.in_words() for d in differences)
            raise IncompatibleRun(
                f"'{self.folder}' holds another training run: {found}. Give another --out, or the values of the run."
            )

    def claim(self) -> None:
        """Write plan.json, if it is not there."""
        file = self.folder / PLAN
        if not file.exists():
            write_atomic(file, json.dumps(self.facts(), indent=1).encode())
