"""diffmem verify: whether a sealed run is as it was sealed, and whether its images can be made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.output import plain, say
from diffmem.errors import CheckFailed, UsageError

MODEL = ModelOptions()


def verify(
    bundle: Path,
    *,
    expect: Annotated[str | None, Parameter(help="the seal that diffmem seal printed and you kept elsewhere")] = None,
    model: Annotated[str | None, Parameter(help="the model of the run, to make images again and compare them")] = None,
    replays: Annotated[
        int | None,
        Parameter(help="with --model: how many images to make again; the seal chooses them, copies first; default: 3"),
    ] = None,
    target: ModelOptions = MODEL,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
) -> int:
    """Say whether a sealed run is as it was sealed; with the model, make some of its images again.

    Nothing in the file is run or unpacked. It ends with 1 where anything was changed, added, removed, renamed or moved.

    Args:
        bundle: the file that `diffmem seal` wrote.
    """
    from diffmem.cli.output import emit_json
    from diffmem.experiments.seal.run import verify as verify_bundle

    if model is None and (replays is not None or target != MODEL):
        raise UsageError("--replays and the options of a model are for making images again: give --model too.")
    opened = None if model is None else target.open(model)
    found = verify_bundle(bundle, expected=expect, target=opened, replays=3 if replays is None else replays)
    protocol = found.checked.protocol or {}
    if json:
        emit_json(
            {"intact": not found.problems, "seal": found.checked.seal, "expected": found.expected,
             "files": len(found.checked.links), "problems": list(found.problems), "verb": protocol.get("verb"),
             "sealed": protocol.get("sealed"), "headline": protocol.get("headline"),
             "replays": [vars(one) for one in found.replays]}
        )  # fmt: skip
    else:
        for problem in found.problems:
            say(f"Problem  {plain(problem)}")
        if not found.problems:
            say(f"Intact   {len(found.checked.links):,} files agree with the seal in the file")
            for head, name in (("Sealed", "sealed"), ("Finding", "headline")):  # a forged file may lack them
                say(f"{head:9}{plain(str(protocol.get(name, 'the file does not say')))}")
            say(f"Seal     {found.checked.seal}, {'not compared' if expect is None else 'as expected'}")
            if expect is None:
                say(
                    "         Whoever forges a file can write a new seal into it, and it reads as intact, too: only the seal that"
                )
                say("         was kept elsewhere shows that (--expect SEAL).")
        for one in found.replays:
            say(f"Replay   {plain(one.prompt_id)}, draw {one.draw}: {plain(one.text)}")
    if found.problems:
        raise CheckFailed(f"{bundle} is not as it was sealed: {found.problems[0]}")
    return 0
