"""What `diffmem canaries measure` prints, and the page that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffmem.experiments.canaries.page import ShownCanary
    from diffmem.experiments.canaries.run import CanaryResult
    from diffmem.report.redaction import Redaction

SHOWN = 8


def print_canaries(result: CanaryResult) -> None:
    """One table per measure, then what a reader must know."""
    from diffmem.cli.output import emit_table, note

    at_most = result.as_dict()["exposure_at_most"]
    for measure in result.measures:
        rows = []
        for row in measure.rows:
            shown: dict[str, Any] = {
                "count": "0 (controls)" if row["count"] == 0 else str(row["count"]), "pictures": row["n"],
                "strength": _say(row["strength"]), "exposure (bits)": _say(row["exposure"]),
                "detected": "-" if row["detected"] is None else f"{row['detected']} of {row['n']}",
                "p vs controls": row["p_stronger_than_controls"],
            }  # fmt: skip
            if measure.chance is not None:
                shown["nearest to own"] = _say(row["nearest"], True)
            if measure.threshold is not None:
                shown["beyond controls"] = _say(row["copied"], True)
            rows.append(shown)
        emit_table(rows, title=f"By {measure.name}; 95 % intervals over canaries")
        note(f"strength: {measure.unit}; Spearman's correlation with the count {_say(vars(measure.trend))}")
        if measure.chance is not None:
            note(f"nearest to own: share of images; by chance {measure.chance:.1%}")
    note(f"exposure: log2 of (controls + 1) / rank, at most {at_most:.2f}; detected: p <= 5 % among the controls")
    for text in result.notes:
        note(text)


def _say(estimate: Mapping[str, Any] | None, share: bool = False) -> str:
    from diffmem.cli.output import number, percent

    if estimate is None or estimate["value"] is None:
        return "-"
    say = percent if share else lambda value: number(value, 3)
    ends = "" if estimate["low"] is None else f" ({say(estimate['low'])} to {say(estimate['high'])})"
    return say(estimate["value"]) + ends


def write_page(result: CanaryResult, model: str, redact: Redaction = "none") -> Path:
    """Write the page of measured canaries into the run directory."""
    from diffmem.experiments.canaries.page import CanaryView, write_canary_page

    plain = result.as_dict()
    registered = result.registration
    facts = [
        ("Model", model), ("Registration", f"{registered.hash}, {registered.created}"),
        ("Canaries", f"{plain['canaries']} in the data, {plain['controls']} controls"),
        ("Data", f"{registered.facts['images']:,} other pictures"),
    ]  # fmt: skip
    view = CanaryView(facts, plain["measures"], _shown(result, redact), plain["exposure_at_most"], result.notes)
    return write_canary_page(result.run.path, view)


def _shown(result: CanaryResult, redact: Redaction) -> list[ShownCanary]:
    from diffmem.data.png import decode_png
    from diffmem.experiments.canaries.page import ShownCanary
    from diffmem.report.redaction import embed

    known = {canary.id: canary for canary in result.registration.canaries}
    order = sorted(result.closest, key=lambda name: -result.closest[name][2])
    trained = [name for name in order if not known[name].control][:SHOWN]
    names = trained + [name for name in order if known[name].control][: SHOWN // 2]
    wanted = {result.closest[name][:2]: name for name in names}
    pictures = result.registration.pictures()
    made: dict[str, Any] = {}
    for table in result.run.store.stream("images", ["prompt_id", "draw", "png"]):
        for row in table.to_pylist():
            if (row["prompt_id"], row["draw"]) in wanted and row["png"] is not None:
                made[wanted[row["prompt_id"], row["draw"]]] = decode_png(row["png"])
    return [
        ShownCanary(
            embed(pictures[name], redact), embed(made[name], redact) if name in made else None, known[name].caption,
            known[name].count, result.closest[name][2],
        )
        for name in names
    ]  # fmt: skip
