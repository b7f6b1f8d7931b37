"""diffmem index: describe a training set once, for later matching."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.options import DescriptorOptions, need
from diffmem.cli.output import say
from diffmem.cli.verbs import RARE

COPIES = DescriptorOptions()


def index(
    images: Path,
    *,
    out: Annotated[Path | None, Parameter(help="folder of the index")] = None,
    copies: DescriptorOptions = COPIES,
    allow_pickle: Annotated[
        bool, Parameter(group=RARE, negative="", help="open descriptor weights that can run code")
    ] = False,
    append: Annotated[
        bool, Parameter(negative="", help="add these images to the index that is in --out already")
    ] = False,
    column: Annotated[str | None, Parameter(group=RARE, help="the image column of a parquet file")] = None,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
    quiet: Annotated[bool, Parameter(negative="", help="show no progress")] = False,
) -> int:
    """Describe a training set once, for later matching.

    Args:
        images: folder or parquet file(s) of training images.
    """
    from diffmem.cli.output import emit_json, note
    from diffmem.copies.descriptors import make_descriptor
    from diffmem.data.images import load_images
    from diffmem.stages.match.stage import append_images, build_index, open_index

    folder = need(out, "--out", "the index needs a folder")
    listed = load_images(images, column)
    if append:
        built = append_images(listed, open_index(folder, copies.options(allow_pickle)), quiet or json)
    else:
        descriptor = make_descriptor(copies.descriptor, listed, **copies.options(allow_pickle))
        built = build_index(listed, descriptor, folder, quiet or json)
    problems = [{"id": name, "problem": text} for name, text in built.problems.items()]
    summary = {"images": len(built), "descriptor": built.about["name"], "recipe": built.about["recipe"],
               "duplicates": len(built) - len(built.duplicates().first), "problems": problems, "folder": str(folder)}  # fmt: skip
    if json:
        emit_json(summary)
    else:
        say(
            f"{len(built)} images described by {built.about['name']} in {folder}; {summary['duplicates']} of them are "
            "near-duplicates of another"
        )
        for problem in problems[:10]:
            note(f"left out {problem['id']}: {problem['problem']}")
    return 0
