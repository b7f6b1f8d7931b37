"""diffmem index: describe a training set once, for later matching."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.options import need


def index(
    images: Path,
    *,
    out: Annotated[Path | None, Parameter(help="folder of the index")] = None,
    descriptor: Annotated[str, Parameter(help="l2-tiled, sscd, dinov2 or clip")] = "l2-tiled",
    weights: Annotated[str | None, Parameter(help="file, folder or hub id of the descriptor's weights")] = None,
    column: Annotated[str | None, Parameter(help="the image column of a parquet file")] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Describe a training set once, for later matching.

    Args:
        images: folder or parquet file(s) of training images.
    """
    from diffmem.cli.output import emit_json, note
    from diffmem.data.images import load_images
    from diffmem.engine.match import build_index, make_descriptor

    folder = need(out, "--out", "the index needs a folder")
    listed = load_images(images, column)
    built = build_index(listed, make_descriptor(descriptor, weights, listed), folder, quiet or json)
    problems = [{"id": name, "problem": text} for name, text in built.problems.items()]
    summary = {"images": len(built), "descriptor": built.about["name"], "recipe": built.about["recipe"],
               "duplicates": len(built) - len(built.duplicates().first), "problems": problems, "folder": str(folder)}  # fmt: skip
    if json:
        emit_json(summary)
    else:
        print(
            f"{len(built)} images described by {built.about['name']} in {folder}; {summary['duplicates']} of them are "
            "near-duplicates of another"
        )
        for problem in problems[:10]:
            note(f"left out {problem['id']}: {problem['problem']}")
    return 0
