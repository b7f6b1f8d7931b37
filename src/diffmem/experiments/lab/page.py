"""What a lab's page shows, gathered from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmem.copies.index import CopyIndex
from diffmem.data.png import decode_png
from diffmem.experiments.lab.plan import Cell
from diffmem.experiments.lab.run import FIGURES, Lab, LabResult
from diffmem.experiments.lab.view import LabView, ShownPair, write_lab_page
from diffmem.report.redaction import Redaction, embed
from diffmem.report.verdict import STATISTICS
from diffmem.runs.store import RunStore

PAIRS = 4


def write_page(lab: Lab, result: LabResult, redact: Redaction = "none") -> Path:
    """Write the page of a lab as far as it has come."""
    plan = lab.plan
    shown: dict[str, list[ShownPair]] = {}
    for cell in lab.cells:
        file = lab.place(cell) / FIGURES
        if cell.name not in shown and file.exists():
            report = json.loads(file.read_text())
            if report["status"] == "ok":
                shown[cell.name] = _pairs(lab.place(cell), report, lab.reference.index, redact)
    reference = lab.cells[0].name
    view = LabView(
        plan.name, _facts(lab, result), result.rows, [row for row in result.contrasts if row["second"] == reference],
        shown, _limits(lab, result),
    )  # fmt: skip
    return write_lab_page(lab.folder, view)


def _pairs(place: Path, report: Mapping[str, Any], index: CopyIndex, redact: Redaction) -> list[ShownPair]:
    rows = sorted(
        (row for row in report["images"] if row["status"] == "ok"),
        key=lambda row: (row["copied"], row["similarity"]), reverse=True,
    )[:PAIRS]  # fmt: skip
    wanted = {(row["text"], row["draw"]) for row in rows}
    png: dict[tuple[str, int], bytes] = {}
    store = RunStore(place)
    texts = {row["prompt_id"]: row["text"] for row in store.read("prompts", ["prompt_id", "text"]).to_pylist()}
    for table in store.stream("images", ["prompt_id", "draw", "png"]):
        for image in table.to_pylist():
            key = (texts[image["prompt_id"]], image["draw"])
            if key in wanted and image["png"] is not None:
                png[key] = image["png"]
    found = []
    for row in rows:
        training = index.image(row["train_id"]).image
        found.append(
            ShownPair(
                embed(decode_png(png[(row["text"], row["draw"])]), redact),
                None if training is None else embed(training, redact), row["text"], row["similarity"], row["copied"],
            )
        )  # fmt: skip
    return found


def _facts(lab: Lab, result: LabResult) -> list[tuple[str, str]]:
    plan = lab.plan
    seconds = {row["training_seconds"] for row in result.rows if row["training_seconds"] is not None}
    threshold = next((t for t in (_threshold(lab, cell) for cell in lab.cells) if t is not None), None)
    facts = [
        ("Training images", f"{len(lab.data):,}"),
        ("Model", f"{plan.train.model.base}, {plan.train.model.method}, {plan.train.optimizer.steps:,} steps"),
        ("Seeds", ", ".join(map(str, plan.seeds))),
        ("Cells", f"{len(result.rows)} done, {result.missing} missing"),
        ("Training time", f"{sum(seconds):,.0f} s over {len(seconds)} trainings"),
    ]
    if threshold is not None:
        rate = f"{threshold['nominal_fpr']:.1%} false positives per image"
        called = rate if threshold["calibrated"] else "customary threshold, not calibrated"
        facts.append(("A copy", f"by the {STATISTICS[threshold['statistic']]} of {plan.measure.descriptor}; {called}"))
    facts.append(("Quality", next((row["quality_is"] for row in result.rows if row["quality_is"]), "not measured")))
    return facts


def _threshold(lab: Lab, cell: Cell) -> dict[str, Any] | None:
    file = lab.place(cell) / FIGURES
    found: dict[str, Any] | None = json.loads(file.read_text()).get("threshold") if file.exists() else None
    return found


def _limits(lab: Lab, result: LabResult) -> list[str]:
    limits = [
        "Every figure is of these images, this model and this length of training: a lab on other data may order the cells "
        "otherwise.",
        "Every cell is asked under its own captions; alignment compares cells of the same captions only.",
    ]
    if len(lab.plan.seeds) < 3:
        limits.append(
            f"{len(lab.plan.seeds)} training seed{'s' * (len(lab.plan.seeds) > 1)}: differences between trainings are hardly "
            "or not at all in the intervals; three or more tell."
        )
    if lab.reference.judge is None:
        limits.append("Nothing judged text alignment (measure.text_alignment).")
    return limits + list(result.notes)
