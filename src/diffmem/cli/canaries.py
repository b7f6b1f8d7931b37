"""diffmem canaries: put registered synthetic pictures into a training set, and measure afterwards what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from diffmem.atomic import read_json
from diffmem.cli.model_options import ModelOptions
from diffmem.cli.options import (
    BatchOption,
    CaptionOption,
    PixelDescriptorOptions,
    RedactOption,
    SamplingOptions,
    WorkOptions,
    need,
)
from diffmem.cli.output import say
from diffmem.cli.verbs import VERBS
from diffmem.errors import DataError, UsageError

MODEL = ModelOptions()
COPIES = PixelDescriptorOptions()
SAMPLING = SamplingOptions()
WORK = WorkOptions()

canaries = App(
    name="canaries",
    help="Image canaries: put known pictures into your training set, and measure how strongly the model memorizes them.",
    help_prologue=VERBS["canaries"].shown_examples,
)


@canaries.command
def make(
    dataset: Path,
    *,
    out: Annotated[Path | None, Parameter(help="new folder: data/ to train on, registered/, canaries.json")] = None,
    counts: Annotated[
        str, Parameter(help="how many times each canary is put into the data, with commas between the numbers")
    ] = "1,2,4,8,16",
    per_count: Annotated[int, Parameter(help="how many canaries of each count")] = 8,
    controls: Annotated[
        int, Parameter(help="how many negative controls: pictures that are registered but never put into the data")
    ] = 40,
    coins: Annotated[
        int,
        Parameter(
            help="how many more canaries, each put into the data or not by a fair coin, to bound "
            "epsilon of differential privacy from below"
        ),
    ] = 0,
    coin_count: Annotated[
        int,
        Parameter(
            help="how many times a canary chosen by its coin is in the data; above 1 bounds the privacy of groups"
        ),
    ] = 1,
    words: Annotated[
        Literal["made-up", "dataset"],
        Parameter(help="words of the captions: invented (made-up), or words of the dataset newly combined (dataset)"),
    ] = "made-up",
    apart: Annotated[
        float | None, Parameter(help="least distance between two canaries; default: 1.5 times that of a copy")
    ] = None,
    captions: CaptionOption = None,
    only_canaries: Annotated[
        bool, Parameter(negative="", help="write the canaries without the dataset, for a data loader of your own")
    ] = False,
    seed: Annotated[int, Parameter(help="seed of pictures, captions and counts")] = 0,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
    quiet: Annotated[bool, Parameter(negative="", help="show no progress")] = False,
) -> int:
    """Draw unique pictures with captions, register them, and put them into a training set at known counts.

    Args:
        dataset: the pictures that the model will be trained on: folder or parquet.
    """
    from diffmem.cli.output import emit_json, note
    from diffmem.data.images import load_images
    from diffmem.training.canaries import CanaryPlan, draw_canaries
    from diffmem.training.canary_files import write_canaries

    folder = need(out, "--out", "canaries need a new folder")
    try:
        levels = tuple(int(part) for part in counts.split(","))
    except ValueError:
        raise UsageError(f"--counts is '{counts}'; expected whole numbers with commas between them: 1,2,4,8.") from None
    if coins < 0 or coins == 1 or coin_count < 1:
        raise UsageError(f"--coins {coins}, --coin-count {coin_count}; expected 0 or at least 2, and at least 1.")
    if per_count < 1 or controls < 2 or (apart is not None and apart <= 0):
        raise UsageError(
            f"--per-count {per_count}, --controls {controls}, --apart {apart}; expected at least 1, at least 2, above 0."
        )
    plan = CanaryPlan(
        counts=levels, per_count=per_count, controls=controls, coins=coins, coin_count=coin_count, words=words, apart=apart,
        seed=seed,
    )  # fmt: skip
    if coins and not json:
        from diffmem.experiments.canaries.bound import provable

        say(provable(coins, coin_count))
    listed = load_images(dataset, captions=captions)
    drawn = draw_canaries(listed, plan, quiet or json)
    data = write_canaries(drawn, listed, folder, only_canaries)
    registered = drawn.registration
    summary = {
        "registration": registered.hash, "file": str(folder / "canaries.json"), "data": str(data),
        "canaries": len(registered.trained), "controls": len(registered.controls),
        "repeats": sum(canary.count for canary in registered.trained), "images": registered.facts["images"],
        "share_of_the_data": _share(registered, only_canaries), "apart": registered.facts["apart"],
        "nearest": min(canary.nearest for canary in registered.canaries),
    }  # fmt: skip
    if json:
        emit_json(summary)
        return 0
    say(
        f"{summary['canaries']} canaries ({summary['repeats']} pictures with their repeats) and {summary['controls']} "
        f"controls registered as {registered.hash}\ntrain on {data}"
    )
    note(
        f"nearest two pictures: {summary['nearest']:.3g} apart ({registered.facts['descriptor']}); keep {folder} as it is"
    )
    return 0


def _share(registered: Any, only: bool) -> float:
    repeats = sum(canary.count for canary in registered.trained)
    return 1.0 if only else repeats / (repeats + int(registered.facts["images"]))


@canaries.command
def measure(
    model: str,
    *,
    registration: Annotated[
        Path | None, Parameter(help="canaries.json as diffmem canaries make wrote it, or its folder")
    ] = None,
    out: Annotated[Path | None, Parameter(help="run directory; the same command resumes it")] = None,
    images_per_prompt: Annotated[
        int,
        Parameter(help="images generated of each caption, or of each registered picture if the model takes no prompts"),
    ] = 8,
    scores: Annotated[
        tuple[str, ...], Parameter(name="--score", help='also measure with this image score; "none" for no score')
    ] = ("loss",),
    batch: BatchOption = 32,
    redact: RedactOption = "none",
    sampling: SamplingOptions = SAMPLING,
    copies: PixelDescriptorOptions = COPIES,
    target: ModelOptions = MODEL,
    work: WorkOptions = WORK,
) -> int:
    """Measure how strongly a trained model reproduces each canary, against controls that it never saw.

    Args:
        model: pipeline folder, hub id, or a run of diffmem train with its model/ in it.
    """
    from diffmem.cli.estimates import estimate_generation, print_estimate
    from diffmem.cli.gates import conclude
    from diffmem.cli.output import emit_json, note
    from diffmem.cli.show import print_run
    from diffmem.data.canaries import read_registration
    from diffmem.experiments.canaries.run import measure_canaries
    from diffmem.stages.generate import Generation

    if images_per_prompt < 1:
        raise UsageError(f"--images-per-prompt is {images_per_prompt}; expected at least 1.")
    known = read_registration(
        need(registration, "--registration", "give the canaries.json that was made before training")
    )
    settings = Generation(
        images_per_prompt=images_per_prompt, seed=work.seed, batch=batch, sampling=sampling.sampling()
    )
    folder = None if work.dry_run else need(out, "--out", "measuring needs a run directory")
    source = str(Path(model) / "model") if (Path(model) / "model" / "model_index.json").exists() else model
    opened = target.open(source, settings.sampling, check=not work.dry_run)
    if work.dry_run:
        print_estimate(estimate_generation(opened, len(known.canaries), settings), work.json)
        return 0
    run = measure_canaries(
        opened, known, settings, out=folder, scores=() if scores == ("none",) else scores,
        descriptor=copies.descriptor, descriptor_options=copies.options(target.allow_pickle),
        trained_with=_recorded(Path(source), target.lora), retry_errors=work.retry_errors,
        shard=work.part(), silent=work.quiet or work.json,
    )  # fmt: skip
    if work.shard is not None:
        return work.tell_part(run.summary)
    page = run.report(redact)
    summary: Any = run.summary
    if work.json:
        emit_json(summary.as_dict() | {"page": str(page)})
        return conclude(run.summary)
    print_run(summary)
    for text in summary.explanations():
        note(text)
    note(f"the page is {page}")
    return conclude(run.summary)


def _recorded(model: Path, loras: Sequence[str]) -> str | None:
    """The registration that the training of this model or LoRA recorded in its log, if there is one."""
    from diffmem.models.lora import choices

    places = [Path(choice.file) for choice in choices(loras)] or [model]
    for folder in [parent for place in places for parent in list(place.parents)[:2]]:
        file = folder / "log.json"
        if file.is_file():
            try:
                found = read_json(file).get("canaries")
            except (ValueError, AttributeError) as problem:
                raise DataError(f"'{file}' is no log of diffmem train ({problem}); move it away.") from problem
            if found is not None:
                return str(found["registration"])
    return None
