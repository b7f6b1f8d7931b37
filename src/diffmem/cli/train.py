"""diffmem train: train or fine-tune a model with known duplication, captions and mitigations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diffmem.cli.options import need
from diffmem.cli.output import say
from diffmem.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from diffmem.training.data import TrainingSet
    from diffmem.training.loop import Watch
    from diffmem.training.plan import TrainPlan


def train(
    plan: Path,
    *,
    out: Annotated[Path | None, Parameter(help="folder of the run; the same command resumes it")] = None,
    device: Annotated[str | None, Parameter(help="cpu or cuda; default: a GPU where there is one")] = None,
    monitor: Annotated[
        bool,
        Parameter(
            negative="", help="check at every checkpoint whether the model copies; results go to monitor/ of the run"
        ),
    ] = False,
    heldout: Annotated[Path | None, Parameter(help="with --monitor: images that the training does not use")] = None,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
    quiet: Annotated[bool, Parameter(negative="", help="show no progress")] = False,
    dry_run: Annotated[
        bool, Parameter(negative="", help="check plan and data, print steps, images and time; then stop")
    ] = False,
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
        _print_estimate(settings, data, device, json)
        return 0
    folder = need(out, "--out", "training needs a folder")
    from diffmem.training.loop import train as run

    watch = _Watching(settings.data.images, folder, heldout, quiet or json) if monitor else None
    if heldout is not None and not monitor:
        raise UsageError("--heldout belongs to --monitor: the training itself sees none of these images.")
    result = run(settings, folder, device=device, silent=quiet or json, watch=watch)
    if not result.main:
        return 0
    result.notes += [] if watch is None else watch.notes()
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
    say(f"{summary['steps']} steps on {summary['images']} images in {summary['seconds']:.0f} s; saved {result.saved}")
    return 0


class _Watching:
    """Makes the monitor once the training has read its data; it writes its page after every look."""

    def __init__(self, images: str, folder: Path, heldout: Path | None, silent: bool) -> None:
        self._images, self._folder, self._heldout, self._silent = images, folder, heldout, silent
        self.notes: Callable[[], list[str]] = list

    def __call__(self, data: TrainingSet, captions: Mapping[str, str | None]) -> Watch:
        from diffmem.experiments.monitor.loop import Monitor

        monitor = Monitor(
            self._images, self._folder / "monitor", heldout=self._heldout, captions=captions, silent=self._silent
        )
        self.notes = monitor.notes

        def watch(step: int, pipeline: Any) -> None:
            if monitor(step, pipeline) is not None:
                monitor.report()

        return watch


def _print_estimate(settings: TrainPlan, data: TrainingSet, device: str | None, json: bool) -> None:
    """What the training takes, and what of the data it reads."""
    from diffmem.cli.output import duration, emit_json, note
    from diffmem.training.cost import seconds_of
    from diffmem.training.duplication import repeated
    from diffmem.training.model import open_base

    more = repeated([image.id for image in data.images], settings.duplication, settings.seed)
    seconds = seconds_of(settings, open_base(settings.model.base, device))
    captions = sum(bool(image.captions) for image in data.images)
    if json:
        emit_json(
            {"steps": settings.optimizer.steps, "images": len(data), "seconds": seconds, "repeated": len(more),
             "with_captions": captions, "unreadable": dict(data.unreadable), "fingerprint": data.fingerprint,
             "plan": settings.model_dump(mode="json")}
        )  # fmt: skip
        return
    say(
        f"{settings.optimizer.steps:,} steps of {settings.optimizer.batch:,} of {len(data):,} images ({captions:,} with "
        f"captions, {len(more):,} repeated), about {duration(seconds)} on this device"
    )
    for image, problem in list(data.unreadable.items())[:10]:
        note(f"{image} is left out: {problem}")


def beside(plan: Path, source: str) -> str:
    """A relative path in a plan, if there is such a file beside the plan; names and hub ids stay as they are."""
    beside = plan.parent / source
    return str(beside) if not Path(source).is_absolute() and beside.exists() else source
