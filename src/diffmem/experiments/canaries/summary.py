"""`summary.json` of `diffmem canaries measure`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from diffmem.experiments.canaries.bound import Bound, in_words
from diffmem.report import prose
from diffmem.runs.summary import Row, ShownTable, Summary


class ClosestImage(BaseModel):
    """The generated image that is most like a registered picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    caption: str
    count: int
    control: bool
    prompt_id: str
    draw: int
    similarity: float


class CanariesSummary(Summary):
    """How strongly a model reproduces registered canaries.

    Attributes:
        model: its name.
        registration: hash of what was registered.
        created: when it was.
        place: folder of the registration, with its pictures.
        canaries: pictures in the training data.
        controls: registered pictures that never were.
        other_images: other pictures in the training data; None in runs of 0.1.0.
        bounds: lower bounds of epsilon, one per measure; empty without canaries that a coin decided on.
        exposure_at_most: the greatest exposure that so many controls can show, in bits.
        measures: generation (or sampling) first, then image scores; see `CanaryMeasure`.
        closest: per canary and control the generated image most like it, strongest first.
    """

    verb: ClassVar[str] = "canaries"

    model: str
    registration: str
    created: str
    place: str | None = None
    canaries: int
    controls: int
    other_images: int | None = None
    bounds: tuple[Bound, ...] = ()
    exposure_at_most: float
    measures: tuple[Row, ...]
    closest: tuple[ClosestImage, ...] = ()

    def tables(self) -> list[ShownTable]:
        """One table per measure."""
        return [_table(measure) for measure in self.measures]

    def explanations(self) -> list[str]:
        """What the columns of the tables mean."""
        texts = [*in_words(self.bounds)]
        measures: list[dict[str, Any]] = list(self.measures)
        for measure in measures:
            texts.append(
                f"strength by {measure['name']}: {measure['unit']}; Spearman's correlation with the count "
                f"{_say(measure['trend'])}"
            )
            if measure["chance"] is not None:
                texts.append(f"nearest to own: share of images; by chance {measure['chance']:.1%}")
        at_most = f"at most {self.exposure_at_most:.2f}"
        return [*texts, f"exposure: log2 of (controls + 1) / rank, {at_most}; detected: p <= 5 % among the controls"]


def _table(measure: Mapping[str, Any]) -> ShownTable:
    rows = []
    for row in measure["rows"]:
        shown: dict[str, Any] = {
            "count": "0 (controls)" if row["count"] == 0 else str(row["count"]), "pictures": row["n"],
            "strength": _say(row["strength"]), "exposure (bits)": _say(row["exposure"]),
            "detected": "-" if row["detected"] is None else f"{row['detected']} of {row['n']}",
            "p vs controls": row["p_stronger_than_controls"],
        }  # fmt: skip
        if measure["chance"] is not None:
            shown["nearest to own"] = _say(row["nearest"], True)
        if measure["threshold"] is not None:
            shown["beyond controls"] = _say(row["copied"], True)
        rows.append(shown)
    return ShownTable(f"By {measure['name']}; 95 % intervals over canaries", rows)


def _say(estimate: Mapping[str, Any] | None, share: bool = False) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"

    def say(value: float) -> str:
        return prose.percent(value) if share else prose.number(value, 3)

    ends = "" if estimate["low"] is None else f" ({say(estimate['low'])} to {say(estimate['high'])})"
    return say(estimate["value"]) + ends
