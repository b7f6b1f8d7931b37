"""Outcomes of conditions on disk, so that a robustness run that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem.keys import row_key
from diffmem.runs.facts import read_fact, write_fact

if TYPE_CHECKING:
    from diffmem.experiments.robustness.conditions import Condition, RobustnessPlan
    from diffmem.experiments.robustness.outcome import Outcome
    from diffmem.mitigation.base import Mitigation


@dataclass(frozen=True)
class Kept:
    """One file per arm and condition in `facts/`, named by everything that its figures depend on.

    Attributes:
        folder: of the run.
        basis: what all conditions depend on: model, training images, threshold, judge of alignment.
    """

    folder: Path
    basis: Mapping[str, Any]

    def read(self, condition: Condition, mitigation: Mitigation | None, plan: RobustnessPlan) -> Outcome | None:
        """What was kept of a condition, None if it was not done yet; DataError if the file is damaged."""
        from diffmem.experiments.robustness.outcome import Outcome

        found = read_fact(self.folder, self._name(condition, mitigation, plan))
        return None if found is None else Outcome(**found)

    def write(
        self, condition: Condition, mitigation: Mitigation | None, plan: RobustnessPlan, outcome: Outcome
    ) -> None:
        """Keep a condition that is done."""
        write_fact(self.folder, self._name(condition, mitigation, plan), asdict(outcome))

    def _name(self, condition: Condition, mitigation: Mitigation | None, plan: RobustnessPlan) -> str:
        adversarial = plan.adversarial if condition.kind == "adversarial" else None
        return row_key(
            basis=dict(self.basis), kind=condition.kind, setting=condition.setting, draws=condition.draws, seed=plan.seed,
            sampling=condition.sampling.model_dump(mode="json"), texts=[list(texts) for texts in condition.texts],
            mitigation=None if mitigation is None else [mitigation.label, mitigation.version],
            adversarial=None if adversarial is None else adversarial.model_dump(mode="json"),
        ).hex()[:24]  # fmt: skip
