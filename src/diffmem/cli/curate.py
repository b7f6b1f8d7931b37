"""diffmem curate: what to do with each image of a training set, from what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.options import CaptionOption, PixelDescriptorOptions, between_0_and_1, need
from diffmem.cli.output import say

COPIES, OPENING = PixelDescriptorOptions(), ModelOptions()


def curate(
    images: Path,
    *,
    run: Annotated[Path | None, Parameter(help="run directory of diffmem measure on these images")] = None,
    out: Annotated[Path | None, Parameter(help="folder for the proposal and the modified dataset")] = None,
    score: Annotated[
        str | None, Parameter(help="which score of the run to use; default: its first score of memorization")
    ] = None,
    fpr: Annotated[
        float,
        Parameter(
            validator=between_0_and_1,
            help="call an image memorized if its score is above all but this share of the held-out images",
        ),
    ] = 0.01,
    share: Annotated[
        float,
        Parameter(
            help="without held-out images: call this share of the images memorized, those with the strongest evidence"
        ),
    ] = 0.02,
    alter: Annotated[
        Literal["drop", "crop", "flip", "blur", "colour", "mix", "least"],
        Parameter(
            help="what to do with a memorized image that has no duplicates; least: the smallest "
            "change that is enough (needs --model)"
        ),
    ] = "crop",
    model: Annotated[str | None, Parameter(help="with --alter least: the model that was measured")] = None,
    recaption: Annotated[
        str | None,
        Parameter(help='give memorized images with a caption of their own this caption instead, e.g. "An image"'),
    ] = None,
    captions: CaptionOption = None,
    cut: Annotated[
        float | None,
        Parameter(help="similarity from which two images are near-duplicates; default: the descriptor's customary one"),
    ] = None,
    write: Annotated[bool, Parameter(negative="", help="write the modified dataset too")] = False,
    format: Annotated[Literal["folder", "parquet"], Parameter(help="file format of the modified dataset")] = "folder",
    seed: Annotated[int, Parameter(help="seed of the places where images are cropped")] = 0,
    top: Annotated[int, Parameter(help="how many images are printed")] = 15,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
    quiet: Annotated[bool, Parameter(negative="", help="show no progress")] = False,
    copies: PixelDescriptorOptions = COPIES,
    opening: ModelOptions = OPENING,
) -> int:
    """Rank a training set by measured ease of reproduction and duplicates, and propose what to do with each image.

    Args:
        images: the training set: folder or parquet. It is never modified.
    """
    from diffmem.cli.output import emit_json, emit_table, note
    from diffmem.copies.curation import Proposal, Rule
    from diffmem.data.images import load_images
    from diffmem.experiments.curate.run import curate as run_curation

    made = run_curation(
        load_images(images, captions=captions), need(run, "--run", "curation reads what diffmem measure found"),
        need(out, "--out", "the proposal needs a folder"), score=score,
        rule=Rule(fpr=fpr, share=share, alter=alter, recaption=recaption),
        descriptor=copies.descriptor, descriptor_options=copies.options(), cut=cut, write=write, format=format,
        model=None if model is None else opening.open(model), seed=seed, silent=quiet or json,
    )  # fmt: skip
    if json:
        emit_json(
            {"score": made.score, "held": made.limit, "counts": made.counts(), "notes": made.notes,
             "files": made.files, "dataset": made.dataset[0] if made.dataset else None,
             "dataset_images": made.dataset[1] if made.dataset else None,
             "images": [proposal.as_dict() for proposal in made.proposals]}
        )  # fmt: skip
        return 0
    changed = [p for p in made.proposals if p.action != "keep"]
    # One row for near-duplicates that are treated alike: fifty equal ones would hide everything else.
    alike: dict[tuple[int, str], list[Proposal]] = {}
    for p in changed:
        alike.setdefault((p.group, p.action), []).append(p)
    rows = [
        {"rank": p.rank, "image": p.image_id, "value": p.value, "above held-out": p.above_heldout,
         "near-duplicates": p.group_size, "action": p.action, "images": len(same), "reason": p.reason}
        for same in alike.values() for p in same[:1]
    ]  # fmt: skip
    of_all = f"{len(changed)} of {len(made.proposals)} images would be changed, by {made.score}"
    emit_table(rows[:top], title=f"{of_all}; the most memorized first, near-duplicates in one row")
    say("  ".join(f"{action}: {number}" for action, number in made.counts().items()))
    for text in [*made.notes, *(f"wrote {file}" for file in made.files)]:
        note(text)
    if made.dataset is not None:
        note(f"wrote {made.dataset[0]} with {made.dataset[1]} images; the originals are untouched")
    return 0
