"""diffmem train: train or fine-tune a model with known duplication, captions and mitigations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.options import need


def train(
    plan: Path,
    *,
    out: Annotated[Path | None, Parameter(help="folder of the run; the same command goes on in it")] = None,
    device: Annotated[str | None, Parameter(help="cpu or cuda; default: a GPU where there is one")] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="", help="check plan and data, print them, and stop")] = False,
) -> int:
    """Train or fine-tune a model with known duplication, captions and mitigations; several processes through torchrun.

    Args:
        plan: TOML file: [model] base, [data] images, [optimizer] steps; see the page on training.
    """
    from diffmem.cli.output import emit_json, note
    from diffmem.training.data import load_training_set
    from diffmem.training.plan import TrainPlan, load_plan

    settings = load_plan(plan, TrainPlan)
    settings = settings.model_copy(
        update={"data": settings.data.model_copy(update={"images": beside(plan, settings.data.images)}),
                "model": settings.model.model_copy(update={"base": beside(plan, settings.model.base)})}
    )  # fmt: skip
    if dry_run:
        data = load_training_set(settings.data.images, settings.data.limit, settings.data.caption_files)
        emit_json(
            {"plan": settings.model_dump(mode="json"), "images": len(data), "fingerprint": data.fingerprint,
             "unreadable": dict(data.unreadable), "with_captions": sum(bool(i.captions) for i in data.images)}
        )  # fmt: skip
        return 0
    folder = need(out, "--out", "training needs a folder")
    from diffmem.training.loop import train as run

    result = run(settings, folder, device=device, silent=quiet or json)
    if not result.main:
        return 0
    losses = result.log["loss"]
    summary = {
        "saved": str(result.saved), "steps": result.log["steps"], "images": result.log["images"],
        "loss_last_50": sum(losses[-50:]) / len(losses[-50:]), "seconds": result.log["seconds"], "notes": result.notes,
    }  # fmt: skip
    if json:
        emit_json(summary)
        return 0
    for text in result.notes:
        note(text)
    print(f"{summary['steps']} steps on {summary['images']} images in {summary['seconds']:.0f} s; saved {result.saved}")
    return 0


def beside(plan: Path, source: str) -> str:
    """A relative path in a plan, if there is such a file beside the plan; names and hub ids stay as they are."""
    beside = plan.parent / source
    return str(beside) if not Path(source).is_absolute() and beside.exists() else source
