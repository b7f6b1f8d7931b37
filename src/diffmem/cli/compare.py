"""diffmem compare: two runs on the same prompts, paired."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from diffmem.cli.options import between_0_and_1


def compare(
    before: Path,
    after: Path,
    *,
    labels: Annotated[
        Literal["given", "measured"],
        Parameter(
            help="which prompts count as memorized: as the prompt list says (given), or those whose "
            "images in BEFORE are copies (measured)"
        ),
    ] = "given",
    fpr: Annotated[float, Parameter(validator=between_0_and_1, help="false-positive rate")] = 0.01,
    seed: Annotated[int, Parameter(help="seed of the resampling")] = 0,
    despite_settings: Annotated[
        bool,
        Parameter(negative="", help="compare although seeds, sampling, images per prompt or training images differ"),
    ] = False,
    out: Annotated[Path | None, Parameter(help="write the comparison as a page, one HTML file")] = None,
    redact: Annotated[
        Literal["none", "blur", "hash"], Parameter(help="pictures on the page: as they are, blurred, or left out")
    ] = "blur",
    hash_prompts: Annotated[bool, Parameter(negative="", help="show hashes instead of prompts on the page")] = False,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
) -> int:
    """Compare two runs on the same prompts, AFTER minus BEFORE: share of copies, and AUROC of the scores that both have.

    Args:
        before: a run directory, for example of the base model.
        after: another, for example of the fine-tune, made with the same prompts and settings.
    """
    from diffmem.cli.output import emit_table, note, say
    from diffmem.experiments.evaluate.compare import compare as compare_pairs

    found = compare_pairs(before, after, labels, fpr, seed, despite_settings=despite_settings)
    if found.models[0] != found.models[1]:
        note(f"different models: {found.models[0]} before, {found.models[1]} after")
    for text in found.unlike:
        note(f"unlike settings: {text}")
    for what, reason in found.missing.items():
        note(f"{what} cannot be compared: {reason}")
    if not json:
        say(found.headline)
    if found.rows or json:
        emit_table(found.rows, json=json, title=f"{after} minus {before}, 95 % intervals")
    if out is not None:
        note(f"the page is {found.report(out, redact, hash_prompts=hash_prompts)}")
    return 0
