"""diffmem demo: audit the bundled model whose memorized images are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diffmem.cli.output import say

if TYPE_CHECKING:
    from diffmem.copies.statistics import Statistic

KNOWN = {
    "photos": "latent Stable Diffusion pipeline trained on recognisable pictures (a cat, an astronaut, faces)",
    "digits": "Stable Diffusion pipeline trained on handwritten digits",
}
STEPS = {"photos": 12, "digits": 20}  # as in the measured truth
# A small autoencoder blurs: generated photos are far from their sharp originals, but still much farther from any other.
PIXEL_STATISTIC: dict[str, Statistic | None] = {"photos": "ratio", "digits": None}
"""By which pixels separate the planted pictures best; altered copies are told by the descriptor's own."""


def demo(
    *,
    testbed: Annotated[Literal["photos", "digits"], Parameter(help="which bundled model is audited")] = "photos",
    out: Annotated[Path, Parameter(help="run directory; an earlier demo in it is replaced")] = Path("runs/demo"),
    prompts: Annotated[int | None, Parameter(help="use only this many of the prompts, spread over all kinds")] = None,
    images_per_prompt: Annotated[int, Parameter(help="images generated of each prompt")] = 4,
    seed: Annotated[int, Parameter(help="root seed of all randomness")] = 0,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
    quiet: Annotated[bool, Parameter(negative="", help="show no progress")] = False,
) -> int:
    """Audit the bundled model, whose memorized images are known: takes minutes on a CPU, without a network."""
    import collections
    import shutil

    import torch

    from diffmem.cli.output import emit_json, note
    from diffmem.cli.show import print_summary
    from diffmem.copies.descriptors import DEFAULT_DESCRIPTOR, PIXEL_DESCRIPTOR
    from diffmem.data.prompts import load_prompts
    from diffmem.errors import UsageError
    from diffmem.experiments.audit.run import audit
    from diffmem.models.generation import Sampling
    from diffmem.models.target import Target
    from diffmem.report.html import FILE
    from diffmem.stages.match.stage import Matching
    from diffmem.testbeds import digits, photos

    if out.exists():
        if not (out / "run.json").exists() and any(out.iterdir()):
            raise UsageError(f"{out} is not empty and no run of diffmem; give another --out.")
        shutil.rmtree(out)
    materialize = photos.materialize if testbed == "photos" else digits.materialize
    inputs = materialize(out.with_name(out.name + "-inputs"), prompts)
    listed = load_prompts(inputs.prompts, labels="label")
    kinds = collections.Counter(_kind(p.extra["tier"], p.extra["count"]) for p in listed)
    silent = quiet or json
    if not silent:
        planted = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        note(f"the bundled model is a {KNOWN[testbed]}, some of them planted")
        note(f"its {len(listed)} captions: {planted}")
    statistic = PIXEL_STATISTIC[testbed] if DEFAULT_DESCRIPTOR == PIXEL_DESCRIPTOR else None
    # So small a network gains nothing from threads, and loses much where other processes want the cores.
    torch.set_num_threads(1)
    target = Target.from_pretrained(inputs.model, name=f"testbed:{testbed}")
    result = audit(
        target, listed, inputs.train, heldout=inputs.held_out, out=out, images_per_prompt=images_per_prompt, seed=seed,
        sampling=Sampling(steps=STEPS[testbed], guidance=2.0), matching=Matching(statistic=statistic),
        silent=silent, batch=64,
    )  # fmt: skip
    summary = result.summary.as_dict()
    if json:
        emit_json(summary)
        return 0
    print_summary(summary, top=3)
    say("\nPictures of generated and training image side by side:")
    made = result.results["audit"].made
    for path in made.after.pictures if made is not None else []:
        say(f"  {path}")
    say(f"The report, one file to open in a browser: {result.path / FILE}")
    return 0


def _kind(tier: str, count: int) -> str:
    words = {
        "plant": f"of images repeated {count} times", "template": "of a background with a varied part",
        "hard": "of images seen once", "generic": "in everyday words", "unseen": "never seen",
    }  # fmt: skip
    return words[tier]
