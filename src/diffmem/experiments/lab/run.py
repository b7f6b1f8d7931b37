"""The lab itself: every cell trained, generated and measured, resumable anywhere; then the table and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffmem.atomic import write_atomic
from diffmem.copies.descriptors import make_descriptor
from diffmem.data.images import ImageSet, load_images
from diffmem.errors import DiffmemError, IncompatibleRun, IncompleteRun, MitigationRefused
from diffmem.evaluation.text_alignment import parse_alignment
from diffmem.experiments.lab.cell import generate_and_match, seconds_of, trained, training_name
from diffmem.experiments.lab.compare import contrasts
from diffmem.experiments.lab.measure import Reference, described, measured
from diffmem.experiments.lab.plan import Cell, LabPlan, cells_of
from diffmem.experiments.lab.sources import opened
from diffmem.keys import row_key
from diffmem.runs.provenance import provenance
from diffmem.stages.match.stage import build_index
from diffmem.training.data import TrainingSet, load_training_set
from diffmem.training.duplication import repeated

PLAN, ROWS, FIGURES = "lab.json", "rows.json", "figures.json"
COLUMNS = ("similarity_mean", "similarity_p95", "share_copied", "alignment", "quality")
FURTHER = ("share_above", "share_own", "share_copied_repeated", "share_copied_once", "recall", "frechet")


@dataclass
class LabResult:
    """A lab, as far as it has come.

    Attributes:
        folder: where everything is.
        rows: one per cell and seed, in the order of the plan; see `row_of`.
        contrasts: every pair of cells; see `diffmem.experiments.lab.compare.Contrast`.
        missing: cells that are not done (another part of the work, or stopped).
        notes: what a reader must know.
    """

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    contrasts: list[dict[str, Any]] = field(default_factory=list)
    missing: int = 0
    notes: list[str] = field(default_factory=list)


def run_lab(
    plan: LabPlan,
    out: str | Path,
    *,
    part: tuple[int, int] | None = None,
    device: str | None = None,
    silent: bool = True,
) -> LabResult:
    """Train, generate, measure and compare every cell of a plan; the same call goes on where an earlier one stopped.

    Args:
        plan: see `LabPlan`.
        out: folder of the lab.
        part: (i, n): only the trainings of this part, so that several processes share a lab; the last call, without it,
            puts the table together.
        device: where to train and generate; default: a GPU where there is one.
        silent: no progress on stderr.

    Returns:
        Rows and contrasts of all cells that are done. A cell that cannot be done is a row with its reason.

    Raises:
        IncompleteRun: stopped, or a full disk; everything done is kept.
        IncompatibleRun: the folder holds another lab.
        DataError, UsageError: data or a plan that no cell could use.

    Cost: the trainings, and per cell `generate.images` generated images (steps x 2 NFE each under guidance).
    """
    return Lab(plan, Path(out), device, silent).run(part)


class Lab:
    """One lab at work."""

    def __init__(self, plan: LabPlan, folder: Path, device: str | None, silent: bool) -> None:
        self.plan, self.folder, self.device, self.silent = plan, folder, device, silent
        self.cells = cells_of(plan)
        folder.mkdir(parents=True, exist_ok=True)
        source, heldout = opened(plan.train.data.images, plan.measure.heldout, folder)
        self.data: TrainingSet = load_training_set(source, plan.train.data.limit)
        self.heldout: ImageSet | None = None if heldout is None else load_images(heldout)
        self._record()
        pictures = load_images({image.id: image.image for image in self.data.images})
        descriptor = make_descriptor(plan.measure.descriptor, pictures, **plan.measure.descriptor_options)
        index = build_index(pictures, descriptor, None, silent)
        judge = None if plan.measure.text_alignment is None else parse_alignment(plan.measure.text_alignment)
        self.reference = Reference(index, described(self.heldout, index), judge)

    def _record(self) -> None:
        """Refuse a folder that holds a lab of other data or other shared settings; seeds and cells may be added."""
        shared = self.plan.model_dump(mode="json", include={"train", "generate", "measure"})
        shared["train"].pop("checkpoint_every")
        shared["generate"].pop("batch")
        facts = {"shared": row_key(shared=shared).hex(), "data": self.data.fingerprint}
        file = self.folder / PLAN
        if file.exists():
            there = json.loads(file.read_text())
            differing = [name for name, value in facts.items() if there["facts"].get(name) != value]
            if differing:
                what = {"shared": "settings outside of the grid", "data": "training images"}
                raise IncompatibleRun(
                    f"'{self.folder}' holds another lab (its {' and '.join(what[d] for d in differing)} differ): give "
                    "another --out. Seeds, the grid and further cells may change."
                )
        settings = {
            "facts": facts, "plan": self.plan.model_dump(mode="json"), "images": len(self.data),
            "unreadable": dict(self.data.unreadable), "provenance": provenance().model_dump(mode="json"),
        }  # fmt: skip
        write_atomic(file, json.dumps(settings, indent=1).encode())

    def run(self, part: tuple[int, int] | None) -> LabResult:
        """Work on what is missing, then put together what there is."""
        trainings = list(dict.fromkeys(training_name(cell.training) for cell in self.cells))
        index, count = part or (0, 1)
        mine = [cell for cell in self.cells if trainings.index(training_name(cell.training)) % count == index]
        for number, cell in enumerate(mine, start=1):
            self._say(f"cell {number} of {len(mine)}: {cell.name}, seed {cell.seed}")
            self._finish(cell)
        result = LabResult(self.folder)
        cells: dict[str, dict[int, list[dict[str, Any]]]] = {}
        for cell in self.cells:
            report = self._report(cell)
            if report is None:
                result.missing += 1
                continue
            result.rows.append(row_of(cell, report))
            if report["status"] == "ok":
                cells.setdefault(cell.name, {})[cell.seed] = report["images"]
        result.contrasts = contrasts(cells)
        if self.data.unreadable:
            result.notes.append(f"{len(self.data.unreadable)} training pictures could not be read")
        content = {"rows": result.rows, "contrasts": result.contrasts, "missing": result.missing, "notes": result.notes}
        write_atomic(self.folder / ROWS, json.dumps(content, indent=1, allow_nan=False).encode())
        return result

    def place(self, cell: Cell) -> Path:
        """The folder of a cell."""
        labels = [one.label for one in cell.treatment.inference]
        return self.folder / "cells" / f"{training_name(cell.training)}-{row_key(inference=labels).hex()[:8]}"

    def _finish(self, cell: Cell) -> None:
        place = self.place(cell)
        there = self._report(cell)
        if there is not None and there["status"] == "ok":
            return
        training = self.folder / "trainings" / training_name(cell.training)
        try:
            target = trained(cell, training, self.data, self.device, self.silent)
            made = generate_and_match(
                cell, self.plan, target, self.data, self.reference.index, self.heldout, place, self.silent
            )
            more = repeated([i.id for i in self.data.images], cell.training.duplication, cell.seed)
            report = measured(made, self.reference, frozenset(self.data.images[i].id for i in more))
            report |= {"status": "ok", "reason": None, "training": str(training.relative_to(self.folder))}
            report["training_seconds"] = seconds_of(training)
        except (IncompleteRun, IncompatibleRun):
            raise
        except DiffmemError as problem:
            # One cell that cannot be done (a mitigation that refuses the model, too few captions) is a row, not the end.
            status = "refused" if isinstance(problem, MitigationRefused) else "error"
            report = {"status": status, "reason": str(problem), "images": [], "figures": {}, "quality": None}
            self._say(f"{status}: {problem}")
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / FIGURES, json.dumps(report, indent=1).encode())

    def _report(self, cell: Cell) -> dict[str, Any] | None:
        file = self.place(cell) / FIGURES
        if not file.exists():
            return None
        report: dict[str, Any] = json.loads(file.read_text())
        return report

    def _say(self, text: str) -> None:
        if not self.silent:
            import sys

            print(f"diffmem: {text}", file=sys.stderr, flush=True)


def row_of(cell: Cell, report: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table: the cell, its figures, and beside each its 95 % interval over training images."""
    row: dict[str, Any] = {
        "duplication": cell.duplication, "captions": cell.captions, "mitigation": cell.mitigation, "seed": cell.seed,
        "n_images": sum(image["status"] == "ok" for image in report["images"]),
    }  # fmt: skip
    figures = report["figures"]
    for name in COLUMNS:
        row[name] = figures.get(name, {}).get("value")
    row |= {"status": report["status"], "reason": report["reason"], "quality_is": report["quality"]}
    for name in (*COLUMNS, *FURTHER, *(key for key in figures if key.startswith("complexity:"))):
        estimate = figures.get(name, {})
        if name not in COLUMNS:
            row[name] = estimate.get("value")
        row |= {f"{name}_low": estimate.get("low"), f"{name}_high": estimate.get("high")}
    row |= {"set_aside": report.get("set_aside"), "training_seconds": report.get("training_seconds")}
    return row
