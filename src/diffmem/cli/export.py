"""diffmem export: a run's tables and images as files that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.errors import UsageError


def export(
    run: Path,
    *,
    csv: Annotated[Path | None, Parameter(help="folder for one CSV file per table")] = None,
    parquet: Annotated[Path | None, Parameter(help="folder for one Parquet file per table")] = None,
    png: Annotated[Path | None, Parameter(help="folder for the generated images")] = None,
    json: Annotated[bool, Parameter(negative="", help="print what was written as JSON")] = False,
) -> int:
    """Write a run's tables and images as CSV, Parquet and PNG files.

    Tables: prompts, scores, images, matches, measures, ... as far as the run has them, rows of all arms together. CSV leaves
    out what is no text or number (pictures); Parquet keeps every column.

    Args:
        run: the folder given to --out.
    """
    from diffmem.cli.output import emit_json, note
    from diffmem.experiments._export import export_run

    if csv is None and parquet is None and png is None:
        raise UsageError("Nothing to write: give --csv DIR, --parquet DIR or --png DIR.")
    written = export_run(run, csv=csv, parquet=parquet, png=png)
    if json:
        emit_json([{"file": str(item.file), "rows": item.rows, "left_out": list(item.left_out)} for item in written])
        return 0
    for item in written:
        left = f"; left out: {', '.join(item.left_out)}" if item.left_out else ""
        note(f"{item.file}: {item.rows:,} {'images' if item.file == png else 'rows'}{left}")
    return 0
