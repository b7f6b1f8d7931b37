"""The lab itself: every cell trained, generated and measured, resumable anywhere; then the table and the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from diffmem.atomic import read_json, write_atomic
from diffmem.copies.descriptors import make_descriptor
from diffmem.data.images import as_images
from diffmem.data.png import png_bytes
from diffmem.errors import DiffmemError, IncompatibleRun, IncompleteRun, MitigationRefused
from diffmem.evaluation.text_alignment import TextAlignment, parse_alignment
from diffmem.experiments import _arm
from diffmem.experiments._arm import Arm, Hook, Options
from diffmem.experiments._experiment import Experiment, Results, run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.lab.cell import Asked, asked_of, cell_arm, seconds_of, trained, training_name
from diffmem.experiments.lab.compare import contrasts
from diffmem.experiments.lab.measure import Reference, described, measured
from diffmem.experiments.lab.plan import Cell, LabPlan, cells_of
from diffmem.experiments.lab.sources import open_images
from diffmem.experiments.lab.summary import CellPair, LabSummary
from diffmem.experiments.lab.view import cells_of_rows, headline
from diffmem.keys import row_key
from diffmem.models.target import Target
from diffmem.notebook import is_silent
from diffmem.renamed import renamed
from diffmem.report.verdict import STATISTICS
from diffmem.runs.directory import RunDirectory
from diffmem.runs.identity import plan_differences
from diffmem.runs.manifest import FILE as MANIFEST
from diffmem.runs.store import RunStore
from diffmem.runs.summary import ArmPlace
from diffmem.stages.match.stage import Matching, build_index
from diffmem.training.data import TrainingSet, load_training_set
from diffmem.training.duplication import repeated

OLD_PLAN, FIGURES, PICTURES = "lab.json", "figures.json", "pairs"
"""The plan of 0.1.0; the figures of a cell, in its folder; the pictures of the most similar pairs."""
PAIRS = 4
COLUMNS = ("similarity_mean", "similarity_p95", "share_copied", "alignment", "quality")
FURTHER = ("share_above", "share_own", "share_copied_repeated", "share_copied_once", "recall", "frechet")


@renamed(part="shard")
def run_lab(
    plan: LabPlan,
    out: str | Path,
    *,
    shard: tuple[int, int] | None = None,
    device: str | None = None,
    silent: bool | None = None,
) -> Run:
    """Train, generate, measure and compare every cell of a plan; the same call goes on where an earlier one stopped.

    Args:
        plan: see `LabPlan`.
        out: folder of the lab.
        shard: (i, n): only the trainings of this part, so that several processes share a lab; the last call, without it,
            puts the table together.
        device: where to train and generate; default: a GPU where there is one.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        The run: `run.summary.rows` and `.contrasts` of all cells that are done. A cell that cannot be
        done is a row with its reason.

    Raises:
        IncompleteRun: stopped, or a full disk; everything done is kept.
        IncompatibleRun: the folder holds another lab.
        DataError, UsageError: data or a plan that no cell could use.

    Cost: the trainings, and per cell `generate.images_per_cell` generated images (steps x 2 NFE each under guidance).

    Examples:
        >>> import diffmem as dm
        >>> plan = dm.experiments.LabPlan.model_validate({
        ...     "train": {
        ...         "model": {"base": "testbed:digits"}, "data": {"images": "testbed:digits", "limit": 8},
        ...         "optimizer": {"steps": 2, "batch": 4},
        ...     },
        ...     "generate": {"images_per_cell": 4, "sampling": {"steps": 2}},
        ...     "grid": {"mitigation": ["none", "random-tokens:count=2"]},
        ... })
        >>> run = dm.lab(plan, "runs/lab", device="cpu")
        >>> [row["mitigation"] for row in run.summary.rows]
        ['none', 'random-tokens:count=2']
    """
    silent = is_silent(silent)
    lab = Lab(plan, Path(out), device, silent)
    lab.shard = shard or (0, 1)
    return run_experiment(lab, out, Options(silent=silent))


class Lab(Experiment[LabSummary]):
    """One lab at work: the cells are its arms, each with the model that its training gives.

    Attributes:
        shard: (i, n): only the trainings of this part.
    """

    describes: ClassVar[bool] = False
    summarize_at_end: ClassVar[bool] = True
    refusals: ClassVar[tuple[type[DiffmemError], ...]] = (DiffmemError,)

    def __init__(self, plan: LabPlan, folder: Path, device: str | None, silent: bool) -> None:
        self.plan, self.folder, self.device, self.silent = plan, folder, device, silent
        self.shard = (0, 1)
        self.cells = cells_of(plan)
        self.problems: dict[Path, DiffmemError] = {}
        folder.mkdir(parents=True, exist_ok=True)
        source, heldout = open_images(plan.train.data.images, plan.measure.heldout, folder)
        self.data: TrainingSet = load_training_set(source, plan.train.data.limit)
        self._refuse_another_lab()
        held = None if heldout is None else as_images(heldout)
        pictures = as_images({image.id: image.image for image in self.data.images})
        descriptor = make_descriptor(plan.measure.descriptor, pictures, **plan.measure.descriptor_options)
        index = build_index(pictures, descriptor, None, silent)
        matching = Matching(
            descriptor=plan.measure.descriptor, statistic=plan.measure.statistic,
            fpr=plan.measure.fpr,
        )  # fmt: skip
        self.reference = _arm.Reference(index, held, matching)
        self.alignment: TextAlignment | None = None
        if plan.measure.text_alignment is not None:
            self.alignment = parse_alignment(plan.measure.text_alignment)
        self.against = Reference(index, described(held, index), self.alignment)

    def _facts(self) -> dict[str, str]:
        """Hashes of what all cells share: settings outside of the grid, and the training images."""
        shared = self.plan.model_dump(mode="json", include={"train", "generate", "measure"})
        shared["train"].pop("checkpoint_every")
        shared["generate"].pop("batch")
        return {"shared": row_key(shared=shared).hex(), "data": self.data.fingerprint}

    def _refuse_another_lab(self) -> None:
        """Before anything is trained; a lab of 0.1.0 kept its facts in lab.json."""
        file = self.folder / (MANIFEST if (self.folder / MANIFEST).exists() else OLD_PLAN)
        if not file.exists():
            return
        written = read_json(file)
        there = written["facts"] if file.name == OLD_PLAN else written["plan"].get("lab", {})
        what = {"shared": "settings outside of the grid", "data": "training images"}
        own = self._facts()
        there = {name: there.get(name) for name in own}
        differing = [what[d.place] for d in plan_differences(there, dict(own))]
        if differing:
            raise IncompatibleRun(
                f"'{self.folder}' holds another lab (its {' and '.join(differing)} differ): give another --out. Seeds, the "
                "grid and further cells may change."
            )

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Seeds and cells may be added; the data and the settings outside of the grid may not change."""
        return {"lab": self._facts()}, {"training": self.data.fingerprint}

    def place(self, cell: Cell) -> Path:
        """The folder of a cell."""
        labels = [one.label for one in cell.treatment.inference]
        return self.folder / "cells" / f"{training_name(cell.training)}-{row_key(inference=labels).hex()[:8]}"

    def arms(self, results: Results) -> Iterator[Arm]:
        """The cells of this part that are not done, each trained when its turn comes."""
        trainings = list(dict.fromkeys(training_name(cell.training) for cell in self.cells))
        index, count = self.shard
        for cell in self.cells:
            if trainings.index(training_name(cell.training)) % count != index or self._report(cell) is not None:
                continue
            training = self.folder / "trainings" / training_name(cell.training)
            try:
                target = trained(cell, training, self.data, self.device, self.silent)
                asked = asked_of(cell, self.plan, target, self.data)
            except (IncompleteRun, IncompatibleRun):
                raise
            except DiffmemError as problem:
                # One cell that cannot be trained (too few captions) is a row, not the end.
                self.problems[self.place(cell)] = problem
                continue
            place = str(self.place(cell).relative_to(self.folder))
            yield cell_arm(cell, self.plan, target, asked, place, self.data, self._measuring(cell, asked, training))

    def _measuring(self, cell: Cell, asked: list[Asked], training: Path) -> Hook:
        def measure(run: RunDirectory, _: Target) -> None:
            more = repeated([i.id for i in self.data.images], cell.training.duplication, cell.seed)
            report = measured(run.path, asked, self.against, frozenset(self.data.images[i].id for i in more))
            report |= {"status": "ok", "reason": None, "training": str(training.relative_to(self.folder))}
            report["training_seconds"] = seconds_of(training)
            write_atomic(run.path / FIGURES, json.dumps(report, indent=1).encode())

        return measure

    def _report(self, cell: Cell) -> dict[str, Any] | None:
        """The figures of a cell that is done."""
        file = self.place(cell) / FIGURES
        if not file.exists():
            return None
        report: dict[str, Any] = read_json(file)
        return report if report["status"] == "ok" else None

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> LabSummary:
        """Every cell that is done, by whichever command, and why others are not."""
        failed = {self.folder / one.arm.place: one for one in results.values() if one.status != "ok"}
        rows: list[dict[str, Any]] = []
        cells: dict[str, dict[int, list[dict[str, Any]]]] = {}
        done: list[ArmPlace] = []
        missing = 0
        for cell in self.cells:
            place, report = self.place(cell), self._report(cell)
            if report is not None:
                cells.setdefault(cell.name, {})[cell.seed] = report["images"]
                name = f"{cell.name}, seed {cell.seed}"
                done.append(ArmPlace(name=name, place=str(place.relative_to(self.folder))))
            elif place in self.problems:
                problem = self.problems[place]
                report = _without_figures(
                    "refused" if isinstance(problem, MitigationRefused) else "error", str(problem)
                )
            elif place in failed:
                report = _without_figures(failed[place].status, str(failed[place].reason))
            else:
                missing += 1
                continue
            rows.append(row_of(cell, report))
        return LabSummary(
            headline=headline(cells_of_rows(rows)), arms=tuple(done), name=self.plan.name, facts=self._shown_facts(rows, missing),
            rows=tuple(rows), contrasts=tuple(contrasts(cells)), missing=missing, pairs=tuple(self._pairs()),
            plan=self.plan.model_dump(mode="json"), notes=self._notes(missing), limits=self._limits(),
        )  # fmt: skip

    def _notes(self, missing: int) -> tuple[str, ...]:
        notes = []
        if self.data.unreadable:
            notes.append(f"{len(self.data.unreadable)} training pictures could not be read")
        if missing:
            notes.append(f"{missing} cells are not done yet; the same command without --shard goes on")
        return tuple(notes)

    def _limits(self) -> tuple[str, ...]:
        limits = [
            "Every figure is of these images, this model and this length of training: a lab on other data may order the cells "
            "otherwise.",
            "Every cell is asked under its own captions; alignment compares cells of the same captions only.",
        ]
        if len(self.plan.seeds) < 3:
            limits.append(
                f"{len(self.plan.seeds)} training seed{'s' * (len(self.plan.seeds) > 1)}: differences between trainings are "
                "hardly or not at all in the intervals; three or more tell."
            )
        if self.alignment is None:
            limits.append("Nothing judged text alignment (measure.text_alignment).")
        return tuple(limits)

    def _shown_facts(self, rows: list[dict[str, Any]], missing: int) -> tuple[tuple[str, str], ...]:
        plan = self.plan
        seconds = {row["training_seconds"] for row in rows if row["training_seconds"] is not None}
        facts = [
            ("Training images", f"{len(self.data):,}"),
            ("Model", f"{plan.train.model.base}, {plan.train.model.method}, {plan.train.optimizer.steps:,} steps"),
            ("Seeds", ", ".join(map(str, plan.seeds))),
            ("Cells", f"{len(rows)} done, {missing} missing"),
            ("Training time", f"{sum(seconds):,.0f} s over {len(seconds)} trainings"),
        ]
        threshold = next((r["threshold"] for cell in self.cells if (r := self._report(cell)) is not None), None)
        if threshold is not None:
            rate = f"{threshold['nominal_fpr']:.1%} false positives per image"
            called = rate if threshold["calibrated"] else "customary threshold, not calibrated"
            facts.append(
                ("A copy", f"by the {STATISTICS[threshold['statistic']]} of {plan.measure.descriptor}; {called}")
            )
        facts.append(("Quality", next((row["quality_is"] for row in rows if row["quality_is"]), "not measured")))
        return tuple(facts)

    def _pairs(self) -> Iterator[CellPair]:
        """The most similar pairs of each cell's first seed, their pictures kept beside the summary."""
        seen: set[str] = set()
        for number, cell in enumerate(self.cells):
            report = self._report(cell)
            if report is None or cell.name in seen:
                continue
            seen.add(cell.name)
            sound = (row for row in report["images"] if row["status"] == "ok")
            rows = sorted(sound, key=lambda row: (row["copied"], row["similarity"]), reverse=True)[:PAIRS]
            png = _generated(self.place(cell), {(row["text"], row["draw"]) for row in rows})
            for place, row in enumerate(rows):
                names = [f"{PICTURES}/{number:03d}-{place}-{kind}.png" for kind in ("generated", "training")]
                write_atomic(self.folder / names[0], png[(row["text"], row["draw"])])
                training = self.against.index.image(row["train_id"]).image
                if training is not None:
                    write_atomic(self.folder / names[1], png_bytes(training))
                yield CellPair(
                    cell=cell.name, generated=names[0], training=None if training is None else names[1], caption=row["text"],
                    similarity=row["similarity"], copied=row["copied"],
                )  # fmt: skip


def _generated(place: Path, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    store = RunStore(place)
    texts = {row["prompt_id"]: row["text"] for row in store.read("prompts", ["prompt_id", "text"]).to_pylist()}
    png: dict[tuple[str, int], bytes] = {}
    for table in store.stream("images", ["prompt_id", "draw", "png"]):
        for image in table.to_pylist():
            key = (texts[image["prompt_id"]], image["draw"])
            if key in wanted and image["png"] is not None:
                png[key] = image["png"]
    return png


def _without_figures(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason, "images": [], "figures": {}, "quality": None}


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
