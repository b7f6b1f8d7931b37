"""diffmem plan: how large an audit has to be to give a wanted answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.options import between_0_and_1
from diffmem.cli.output import say
from diffmem.errors import UsageError


def plan(
    *,
    detect: Annotated[str, Parameter(help="share of the prompts that reproduce a training image, e.g. 1%")] = "5%",
    power: Annotated[
        float, Parameter(validator=between_0_and_1, help="probability with which the audit shall find such a share")
    ] = 0.8,
    copying_seeds: Annotated[
        str, Parameter(help="share of the seeds of such a prompt that give a copy; 100% if every seed does")
    ] = "100%",
    recall: Annotated[str, Parameter(help="share of the copies that the matcher recognizes")] = "100%",
    prompts: Annotated[int | None, Parameter(help="how many distinct prompts you have; default: any number")] = None,
    heldout: Annotated[
        int | None, Parameter(help="how many held-out images you have; default: as many as are needed")
    ] = None,
    images_per_prompt: Annotated[
        int | None, Parameter(help="images generated of each prompt; default: the number that needs the fewest images")
    ] = None,
    looks: Annotated[
        str | None,
        Parameter(
            help="numbers of images per prompt after which the audit looks at the results, such as "
            "2,4,8; replaces --images-per-prompt"
        ),
    ] = None,
    fpr: Annotated[
        float | None, Parameter(help="false-positive rate; default: the rate that needs the fewest images")
    ] = None,
    cost_of: Annotated[
        Path | None, Parameter(help="a finished run of this model; its seconds per image give the duration")
    ] = None,
    seconds_per_image: Annotated[float | None, Parameter(help="seconds to generate and match one image")] = None,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
) -> int:
    """Say how many prompts, seeds and held-out images an audit needs to give a wanted answer, before it is run."""
    from dataclasses import asdict

    from diffmem.cli.output import duration, emit_json, note
    from diffmem.evaluation.chance import LEVEL
    from diffmem.evaluation.looks import plan_looks, spending_levels
    from diffmem.evaluation.planning import plan_audit
    from diffmem.report.prose import percent

    if cost_of is not None and seconds_per_image is not None:
        raise UsageError("--cost-of and --seconds-per-image say the same; give one of them.")
    share = parse_share("--detect", detect)
    planned, hit = parse_looks(looks), (parse_share("--copying-seeds", copying_seeds), parse_share("--recall", recall))
    if planned and images_per_prompt is not None:
        raise UsageError("--looks and --images-per-prompt say the same; give one of them.")
    found = plan_audit(
        share, power, *hit, heldout, planned[-1] if planned else images_per_prompt, fpr, prompts,
        spending_levels(planned)[-1] if planned else LEVEL,
    )  # fmt: skip
    several = plan_looks(found.prompts, share, hit[0] * hit[1], found.references, found.fpr, planned) if planned else ()
    each = seconds_per_image if cost_of is None else _seconds_per_image(cost_of)
    seconds = None if each is None else each * found.images
    if json:
        about = {"detect": share, "level": LEVEL, "seconds": seconds, "looks": [asdict(look) for look in several]}
        emit_json({**asdict(found), **about})
        return 0
    say(f"Prompts            {found.prompts:,} distinct ones")
    say(f"Images per prompt  {found.images_per_prompt:,}")
    say(f"Images             {found.images:,}" + ("" if seconds is None else f", about {duration(seconds)}"))
    say(f"Held-out images    {found.references:,}, at --fpr {found.fpr:g}")
    for number, look in enumerate(several, start=1):
        say(
            f"Look {number}             {look.images_per_prompt} images per prompt: `reproduces` where p <= {look.level:.2g}; "
            f"finds such a share in {percent(look.power)} of audits"
        )
    say(
        f"\nIf {percent(share)} of the prompts reproduce a training image, {percent(found.power)} of such audits say so. If none "
        f"does, at most {percent(LEVEL)} of them say so all the same; no call at all leaves up to {percent(found.bound)} of such "
        "prompts not excluded."
    )
    say(
        "\n  diffmem audit MODEL --prompts PROMPTS --train TRAIN --heldout HELDOUT --out RUN "
        + (f"--looks {looks}" if planned else f"--images-per-prompt {found.images_per_prompt}")
        + f" --fpr {found.fpr:g}"
    )
    if seconds is None:
        note("how long it takes: give a run of this model (--cost-of RUN), or --seconds-per-image")
    return 0


def parse_looks(text: str | None) -> tuple[int, ...]:
    """Looks typed as 2,4,8; none where there are none."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) if part.isdigit() else 0 for part in parts]
    if len(parts) < 2 or numbers[0] < 1 or sorted({*numbers}) != numbers:
        raise UsageError(f"--looks is {text!r}; expected two or more numbers of images that rise, such as 2,4,8.")
    return tuple(numbers)


def parse_share(option: str, text: str) -> float:
    """A share typed as 0.01 or 1%."""
    typed = text.strip()
    try:
        value = float(typed.removesuffix("%")) / (100 if typed.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise UsageError(f"{option} is {text!r}; expected a share above 0, at most 1, such as 0.01 or 1%.")
    return value


def _seconds_per_image(run: Path) -> float:
    from diffmem.runs.facts import read_fact
    from diffmem.runs.manifest import read_manifest

    stages = read_manifest(run).stages
    fact = read_fact(run, "cost") or {}
    spent = sum(stages[name].seconds for name in ("generate", "match") if name in stages)
    images = fact.get("images") or (stages["generate"].done if "generate" in stages else 0)
    if not images or not spent:
        raise UsageError(f"'{run}' does not say how long its images took; give --seconds-per-image.")
    return spent / float(images)
