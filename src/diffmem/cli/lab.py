"""diffmem lab: train a grid of duplication, captions and mitigations; generate, measure, compare."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diffmem.cli.options import RedactOption, need
from diffmem.cli.output import say


def lab(
    plan: str,
    *,
    out: Annotated[Path | None, Parameter(help="folder of the lab; the same command resumes it")] = None,
    data: Annotated[Path | None, Parameter(help="training images, instead of the plan's data.images")] = None,
    shard: Annotated[
        str | None,
        Parameter(help="I/N: do only part I of N of the trainings; a last call without --shard makes the table"),
    ] = None,
    device: Annotated[str | None, Parameter(help="cpu or cuda; default: a GPU where there is one")] = None,
    redact: RedactOption = "none",
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
    quiet: Annotated[bool, Parameter(negative="", help="show no progress")] = False,
    dry_run: Annotated[bool, Parameter(negative="", help="list cells and trainings; then stop")] = False,
) -> int:
    """Train a grid of duplication, captions and mitigations, and compare on one page how much each model copies.

    Args:
        plan: a TOML file, or the name of a plan that ships: digits, gpu.
    """
    from diffmem.cli.gates import conclude
    from diffmem.cli.output import emit_json, emit_table
    from diffmem.cli.show import print_run
    from diffmem.experiments.lab.cell import training_name
    from diffmem.experiments.lab.plan import LabPlan, cells_of
    from diffmem.experiments.lab.run import run_lab
    from diffmem.runs.directory import parse_shard
    from diffmem.training.plan import load_plan

    file = _file(plan)
    settings = _placed(load_plan(file, LabPlan), file, data)
    cells = cells_of(settings)
    if dry_run:
        listed: list[dict[str, Any]] = [
            {"duplication": c.duplication, "captions": c.captions, "mitigation": c.mitigation, "seed": c.seed,
             "training": training_name(c.training)}
            for c in cells
        ]  # fmt: skip
        trainings = len({row["training"] for row in listed})
        emit_table(listed, json=json, title=f"{len(cells)} cells, {trainings} trainings")
        return 0
    folder = need(out, "--out", "a lab needs a folder")
    run = run_lab(settings, folder, shard=parse_shard(shard), device=device, silent=quiet or json)
    page = run.report(redact)
    if json:
        summary: Any = run.summary
        emit_json(summary.rows)
        return conclude(run.summary)
    print_run(run.summary)
    say(f"report: {page}")
    return conclude(run.summary)


def _file(plan: str) -> Path:
    """The plan's file: as typed, or one that ships."""
    shipped = Path(str(files("diffmem.experiments.lab") / "plans" / f"{plan}.toml"))
    return shipped if shipped.exists() and not Path(plan).exists() else Path(plan)


def _placed(settings: Any, file: Path, data: Path | None) -> Any:
    """Relative paths of the plan are relative to its file; `data` replaces the training images."""
    from diffmem.cli.train import beside

    train = settings.train
    images = str(data) if data is not None else beside(file, train.data.images)
    model = train.model.model_copy(update={"base": beside(file, train.model.base)})
    train = train.model_copy(update={"data": train.data.model_copy(update={"images": images}), "model": model})
    measure = settings.measure
    if measure.heldout is not None:
        measure = measure.model_copy(update={"heldout": beside(file, measure.heldout)})
    return settings.model_copy(update={"train": train, "measure": measure})
